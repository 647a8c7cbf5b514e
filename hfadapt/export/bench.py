"""How fast an exported folder answers here, by threads and batch: each case in a process of its own.

Rows are as long as the model takes, and hold nothing: what is measured is the model, not what reads a row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes, show_latency
from hfadapt.core.spec import Spec
from hfadapt.hardware import processor
from hfadapt.models.adapter_files import EXPORT
from hfadapt.models.manifest import check_folder
from hfadapt.records.published import ExportRecord

WARM = 3
LEAST_CALLS = 10
MASK = "attention_mask"
THREADS = "OMP_NUM_THREADS"


class Case(Spec):
    """Seconds of a batch of `rows` rows, in the middle and at worst (of 20), with so many threads; rows a second; and
    the most memory that the process held above what Python and its libraries take."""

    threads: int
    rows: int
    calls: int
    p50_seconds: float
    p95_seconds: float
    rows_per_second: float
    peak_bytes: int


class Bench(Shown, Spec):
    """An exported folder's speed on this machine."""

    folder: str
    format: str
    variant: str | None
    runtime: str
    length: int
    processor: str
    features: tuple[str, ...]
    cases: tuple[Case, ...]

    def blocks(self) -> list[Block]:
        """A row for each case."""
        rows = [
            [
                str(case.threads),
                str(case.rows),
                show_latency(case.p50_seconds),
                show_latency(case.p95_seconds),
                f"{case.rows_per_second:,.1f}",
                show_bytes(case.peak_bytes),
            ]
            for case in self.cases
        ]
        columns = ["threads", "batch", "p50", "p95", "rows/s", "peak memory"]
        return [
            Heading(f"{self.variant or self.format}: {self.runtime}", 1),
            Table(columns, rows, frozenset(columns)),
            Text(f"rows of {self.length} positions; {self.processor}, {', '.join(self.features) or 'plain'}"),
        ]


def bench(
    folder: Path,
    threads: Sequence[int] = (),
    rows: Sequence[int] = (1, 8, 32),
    length: int | None = None,
    seconds: float = 2.0,
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measures a folder that hfadapt exported.

    Args:
        threads: By default one, and all cores.
        rows: Sizes of batches.
        length: Positions of each row, by default the most that the model was trained with.
        seconds: About how long each case is measured.

    Raises:
        RequestError: this is no exported folder, or it holds no model of its own.
        RunError: a case fails, for example because memory is not enough.
    """
    if not (folder / EXPORT).is_file():
        raise RequestError("this is no exported folder", place=str(folder), fix="hfadapt export CELL --to FOLDER")
    manifest, record = check_folder(folder), ExportRecord.read(folder / EXPORT)
    if not manifest.whole:
        raise RequestError(
            "an adapter without its base has no speed of its own",
            place=str(folder),
            fix="export it with its base: --format merged, or a format with a runtime",
        )
    length = length or manifest.max_length
    cores = processor.usable_cores()
    cases = []
    for count in threads or sorted({1, cores}):
        for size in rows:
            say(f"{count} threads, batches of {size}")
            cases.append(_in_a_process(folder, count, size, length, seconds))
    return Bench(
        folder=folder.name,
        format=record.format,
        variant=record.variant,
        runtime=registry.format(record.format).runtime,
        length=length,
        processor=processor.processor_name(),
        features=processor.cpu_features(),
        cases=tuple(cases),
    )


def _in_a_process(folder: Path, threads: int, rows: int, length: int, seconds: float) -> Case:
    """Libraries read the number of threads when they start, and memory that one case freed would help the next."""
    code = "import sys; from hfadapt.export.bench import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(folder), *map(str, (threads, rows, length, seconds))]
    done = subprocess.run(
        command, env={**os.environ, THREADS: str(threads)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        # Further lines of an error are indented.
        lines = [line for line in done.stderr.splitlines() if line[:1].strip()]
        last = (lines or [f"exit code {done.returncode}"])[-1]
        raise RunError("a case could not be measured", place=f"batches of {rows}, {threads} threads", got=last[:300])
    return Case.model_validate_json(done.stdout.strip().splitlines()[-1])


def main(folder: str, threads: str, rows: str, length: str, seconds: str) -> None:
    """Measures one case in this process, and prints it as JSON."""
    import numpy as np
    import torch
    import transformers  # noqa: F401 - before the floor is taken

    from hfadapt.hardware.peak_memory import PeakMemory, resident_bytes
    from hfadapt.serve.adapted import load_adapted

    torch.set_num_threads(int(threads))
    with PeakMemory(torch.device("cpu"), resident_bytes()) as peak:
        adapted = load_adapted(folder)
        task = registry.task(adapted.task)
        kind = registry.modality(task.modality)
        config = SimpleNamespace(**kind.shaped(adapted.model.config.to_dict(), int(length)))
        inputs = kind.traced(config, int(rows), int(length))
        if MASK in getattr(adapted.model, "inputs", ()) and MASK not in inputs:
            # Processors of some sounds say which places of a row are its own.
            first = next(iter(inputs.values()))
            inputs[MASK] = torch.ones(first.shape[:2], dtype=torch.long)
        times: list[float] = []
        with torch.inference_mode():
            while sum(times[WARM:]) < float(seconds) or len(times) < WARM + LEAST_CALLS:
                started = time.perf_counter()
                adapted.model(**inputs)
                times.append(time.perf_counter() - started)
    times = times[WARM:]
    case = Case(
        threads=int(threads),
        rows=int(rows),
        calls=len(times),
        p50_seconds=float(np.median(times)),
        p95_seconds=float(np.quantile(times, 0.95)),
        rows_per_second=int(rows) * len(times) / sum(times),
        peak_bytes=peak.peak_bytes,
    )
    print(json.dumps(case.model_dump()))  # noqa: T201
