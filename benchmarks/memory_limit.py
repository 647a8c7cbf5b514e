"""A process given only as much memory as the plan asks for finishes; with the next larger plan it would not.

    python benchmarks/memory_limit.py [--model llama-60m] [--rows 4] [--tokens 256]

Trains the same model twice in a child process that gets what the smallest machine on which the plan says "fits" has:
the predicted peak over (1 - margin), above what the process holds before it loads the base. The first child runs that
plan, the second the next larger one, with twice the rows in a micro-batch. The limit is the kernel's where control
groups can be written (Linux, as root), with the checkpoint out of the page cache, so that its pages count; elsewhere
the high-water mark of the resident set is watched and the child is killed when it passes the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import memory_grid

MARGIN = 0.1
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)
POLL_SECONDS = 0.02


@contextmanager
def control_group(limit_bytes: int) -> Iterator[tuple[Path, str] | None]:
    """A new memory control group with this limit and the name of its peak file; None where none can be made."""
    for root, limit, peak in GROUPS:
        group = root / f"hfadapt-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
            swap = group / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        except OSError:
            group.rmdir()
            continue
        try:
            yield group, peak
        finally:
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        return
    yield None


def limited(point: dict[str, Any], about: dict[str, Any], folder: Path, limit_bytes: int) -> dict[str, Any]:
    """Runs one point under the limit: whether it finished, its exit code, its peak, and what limited it."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    from hfadapt.hardware import allocator

    with control_group(limit_bytes) as group:
        asked = {"point": point, "about": about, "folder": str(folder), "group": str(group[0]) if group else None}
        command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asked)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=allocator.environment())
        assert child.stdout is not None
        floor = int(child.stdout.readline())
        if group is None:
            watch(child, floor + limit_bytes)
        rest, _ = child.communicate()
        peak = int((group[0] / group[1]).read_text()) if group else None
    measured = json.loads(rest.splitlines()[-1])["peaks"] if child.returncode == 0 else None
    return {
        "finished": child.returncode == 0,
        "exit_code": child.returncode,
        "limited_by": "control group" if group else "watched resident set",
        "group_peak_bytes": peak,
        "resident_peak_bytes": max(measured.values()) if measured else None,
    }


def watch(child: subprocess.Popen[str], limit_bytes: int) -> None:
    """Kills the child when its resident set has passed the limit."""
    import psutil

    process = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            if process.memory_info().rss > limit_bytes:
                child.kill()
        except psutil.NoSuchProcess:
            return
        time.sleep(POLL_SECONDS)


def child(asked: dict[str, Any]) -> None:
    """Loads the libraries, joins the control group, says what it holds, and goes through all phases."""

    def ready(floor_bytes: int) -> None:
        if asked["group"]:
            (Path(asked["group"]) / "cgroup.procs").write_text(str(os.getpid()))
        print(floor_bytes, flush=True)

    found = memory_grid.measure(asked["point"], asked["about"], asked["folder"], "cpu", ready)
    print(json.dumps(found))


def compare(model: str, rows: int, tokens: int, quant: str = "none") -> dict[str, Any]:
    """Both runs of one model under the limit of the smaller plan."""
    about = {**memory_grid.MODELS, **memory_grid.OTHER_MODELS}[model]
    plans = [
        {"model": model, "quant": quant, "checkpointing": False, "rows": count, "tokens": tokens}
        for count in (rows, 2 * rows)
    ]
    tiles = memory_grid.on_tiles("cpu")
    peaks = [max(memory_grid.predicted(plan, about, "cpu", tiles, ()).values()) for plan in plans]
    limit = int(peaks[0] / (1 - MARGIN))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        memory_grid.make_model(folder, about)
        runs = [limited(plan, about, folder, limit) for plan in plans]
    return {
        "model": model,
        "tokens": tokens,
        "limit_bytes": limit,
        "runs": [
            {"rows": plan["rows"], "predicted_peak_bytes": peak, **run}
            for plan, peak, run in zip(plans, peaks, runs, strict=True)
        ],
    }


def main() -> None:
    """Runs both and says how they ended; exit code 0 when it is as planned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-60m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--quant", default="none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    found = compare(options.model, options.rows, options.tokens, options.quant)
    print(json.dumps(found, indent=1))
    sys.exit(0 if [run["finished"] for run in found["runs"]] == [True, False] else 1)


if __name__ == "__main__":
    main()
