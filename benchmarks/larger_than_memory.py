"""Shards of pictures larger than memory are prepared and trained on in a process that may not have more than 2 GiB.

    python benchmarks/larger_than_memory.py --gigabytes 12 --folder FOLDER     FOLDER on a disk with twice the room

Makes tar shards of noise-like JPEGs of 100 KB with a class each, prepares them with `data.streaming`, and trains a
small vision transformer for some hundred steps, its rows read from the disk (their file is put out of the page cache
before). Both processes are killed when their resident set passes the limit. Other processes train on the same rows in
the same order, with the bytes of all of them in memory; of each kind the fastest of several counts, in turns.
larger_than_memory.json has peaks, rows a second, and the processor's time for a row.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import memory_limit

RESULTS = Path(__file__).with_suffix(".json")
SIDE, QUALITY = 224, 92
SHARD_BYTES = 500 << 20
LABELS = ("flat", "striped", "dotted", "dark")
BATCH_ROWS = 16


def picture(number: int) -> tuple[bytes, str]:
    """A JPEG of noise, another one for each number, and its class, which can be seen in it."""
    from PIL import Image

    label = LABELS[number % len(LABELS)]
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    if label == "striped":
        noise[::8] = 255
    elif label == "dotted":
        noise[::8, ::8] = 0
    elif label == "dark":
        noise //= 2
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue(), label


def make_shards(folder: Path, size: int) -> tuple[int, int]:
    """Writes shards of `size` bytes in all; returns the numbers of pictures and of their bytes."""
    folder.mkdir(parents=True)
    number = total = 0
    while total < size:
        until = min(size, total + SHARD_BYTES)
        with tarfile.open(folder / f"{number:07}.tar", "w") as shard:
            while total < until:
                data, label = picture(number)
                for ending, content in (("jpg", data), ("cls", label.encode())):
                    member = tarfile.TarInfo(f"{number:07}.{ending}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
                number, total = number + 1, total + len(data)
    return number, total


def make_model(folder: Path) -> None:
    """A small vision transformer with random weights, for pictures of 64 pixels."""
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "patch_size": 8, "image_size": 64}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    crop = {"height": 64, "width": 64}
    processor = BitImageProcessorPil(size={"shortest_edge": 64}, crop_size=crop, do_convert_rgb=True)
    processor.save_pretrained(folder)


def recipe(folder: Path, steps: int) -> dict[str, Any]:
    """Two splits asked for by number, so that their rows are held while the stream is read."""
    return {
        "name": "large",
        "model": str(folder / "model"),
        "task": "image-classification",
        "domains": {"shards": {"source": "shards"}},
        "data": {"streaming": True, "validation": 500, "test": 500},
        "adapter": {"method": "lora", "rank": 8},
        "train": {
            **{"max_steps": steps, "batch_rows": BATCH_ROWS, "micro_batch_rows": BATCH_ROWS, "objective": "supervised"},
            **{"evaluate_every_steps": 10 * steps, "checkpoint_every_steps": 10 * steps},
            "fast": {"frozen_cache": False},
        },
    }


def out_of_the_page_cache(path: Path) -> None:
    """So that what is read of it comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(asked: dict[str, Any]) -> None:
    """Runs the recipe until a stage; of training, with the rows on the disk or in memory."""
    from hfadapt import load_recipe, run
    from hfadapt.files.stored import Stored
    from hfadapt.train.batches import epoch_batches
    from hfadapt.train.loop import Loop

    train, spent = Loop.run, list[float]()

    def with_rows(loop: Loop) -> None:
        (job,) = loop.jobs
        first = job.train[0].inputs["value"]
        if asked["rows"] == "disk":
            out_of_the_page_cache(first.path)
        else:
            batches = epoch_batches(job.lengths, BATCH_ROWS, job.settings.seed, 0)[: job.total_steps]
            values = [job.train[row].inputs["value"] for rows in batches for row in rows]
            held = {value.offset: bytes(value) for value in values}
            read = Stored.__bytes__
            Stored.__bytes__ = lambda value: held.get(value.offset) or read(value)  # type: ignore[method-assign, assignment]
        before = time.process_time()
        train(loop)
        spent.append(time.process_time() - before)

    Loop.run = with_rows  # type: ignore[method-assign, assignment]
    print(loaded(), flush=True)
    started = time.perf_counter()
    folder = Path(asked["folder"])
    result = run(
        load_recipe(folder / "large.yaml"), recipe_folder=folder, folder=folder / asked["run"], until=asked["until"]
    )
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak}
    (cell,) = result.cells()
    if asked["until"] == "train":
        trained = cell.train
        assert trained.first_loss is not None
        assert trained.final_loss is not None
        found |= {"steps": trained.steps, "rows_per_second": round(trained.steps * BATCH_ROWS / trained.seconds, 1)}
        found["cpu_ms_per_row"] = round(1000 * spent[0] / (trained.steps * BATCH_ROWS), 2)
        found["losses"] = [round(trained.first_loss, 4), round(trained.final_loss, 4)]
    else:
        found |= {"rows": cell.data.rows_kept, "dropped": cell.data.dropped}
    print(json.dumps(found))


def loaded() -> int:
    """What the process holds with all libraries loaded."""
    from hfadapt.hardware.peak_memory import load_libraries, resident_bytes

    load_libraries()
    return resident_bytes()


def limited(folder: Path, until: str, rows: str, run: str, limit_bytes: int | None) -> dict[str, Any]:
    """What a child found, and what it held before; it is killed when its resident set passes the limit."""
    asked = json.dumps({"folder": str(folder), "until": until, "rows": rows, "run": run})
    command = [sys.executable, str(Path(__file__).resolve()), "--child", asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    floor = int(process.stdout.readline())
    if limit_bytes is not None:
        memory_limit.watch(process, limit_bytes)
    rest, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{until} with rows on the {rows} ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(rest.splitlines()[-1])
    return {**found, "libraries_bytes": floor}


def main() -> None:
    """Makes the shards where there are none, and runs all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    folder, limit = options.folder.resolve(), int(options.limit_gib * (1 << 30))
    os.environ["HFADAPT_CACHE"] = str(folder / "cache")
    if not (folder / "shards").exists():
        made = make_shards(folder / "shards", int(options.gigabytes * 1e9))
        print(f"{made[0]:,} pictures of {made[1]:,} bytes", flush=True)
    make_model(folder / "model")
    (folder / "large.yaml").write_text(json.dumps(recipe(folder, options.steps)))
    found: dict[str, Any] = {
        "shards_bytes": sum(path.stat().st_size for path in (folder / "shards").iterdir()),
        "limit_bytes": limit,
    }
    found["prepare"] = limited(folder, "prepare", "disk", "disk-0", limit)
    print("prepare", json.dumps(found["prepare"]), flush=True)
    runs: dict[str, list[dict[str, Any]]] = {"disk": [], "memory": []}
    for turn in range(options.turns):
        for rows, own in runs.items():
            own.append(limited(folder, "train", rows, f"{rows}-{turn}", limit if rows == "disk" else None))
            print(rows, json.dumps(own[-1]), flush=True)
    for rows, own in runs.items():
        found[f"rows_on_{rows}"] = max(own, key=lambda each: each["rows_per_second"])
    speeds = [found[f"rows_on_{rows}"]["rows_per_second"] for rows in runs]
    found["speed_ratio"] = round(speeds[0] / speeds[1], 3)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
