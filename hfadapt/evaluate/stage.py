"""The evaluation stage of one cell: fresh base, adapter from disk, both scored on the test rows, evaluation.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt import kinds
from hfadapt.data import read_split
from hfadapt.errors import RunError
from hfadapt.evaluate.bench import Bench
from hfadapt.evaluate.metrics import compare, find, usable
from hfadapt.evaluate.probe import put_head, train_probe
from hfadapt.launch import World
from hfadapt.manifest import check_folder, check_manifest
from hfadapt.measure import PeakMemory, load_libraries, release_memory, resident_bytes
from hfadapt.model import Base, json_sha256, load_base, open_adapter
from hfadapt.progress import Progress, Silent
from hfadapt.records import DataRecord, EvaluationRecord, Metric, PhaseMeasure
from hfadapt.run_folder import Cell
from hfadapt.spec import write_bytes
from hfadapt.tasks import Example, Row, Scores
from hfadapt.tasks.causal_lm import completion_ids
from hfadapt.train.stage import CHECK_ROWS, check_losses
from hfadapt.versions import versions

if TYPE_CHECKING:
    from hfadapt.recipe import Lock

MOST_CHOICES = 20
"""With at most this many different completions, the task is to choose among them."""

SAME = 1e-4
"""Largest mean difference of a row's loss between the trained adapter and the one read back, in nats."""

SAME_AFTER_CONVERSION = 0.05
"""The same, where saving moves the update from a changed base onto the original one in 16 bits."""


def evaluate_cell(cell: Cell, world: World, progress: Progress | None = None) -> EvaluationRecord:
    """Scores baseline and adapter on the test split from the files in the cell, and writes evaluation.json.

    Raises:
        RunError: the adapter that was read back does not score as it did when it was trained.
    """
    room = world.max_memory(cell.plan.cells[0].budget_bytes)
    return world.on_main(lambda: _evaluate(cell, world.accelerator.device, progress or Silent(), room))


def open_bench(cell: Cell, device: torch.device, progress: Progress, room: dict[int, int] | None = None) -> Bench:
    """The cell's base with its adapter from disk on it, and the linear probe as its head where that is the baseline.

    Raises:
        RunError: the folder or its manifest does not fit the base.
    """
    lock, data = cell.lock, cell.data
    task = kinds.load("tasks", lock.task)
    manifest = check_folder(cell.adapter)
    base = load_base(lock, data.labels, device, max_memory=room)
    check_manifest(manifest, base, cell.adapter, data.labels)
    choices = answer_choices(cell, data, base) if lock.task == "causal-lm" else {}
    bench = Bench(cell, lock, data, task, base, base.model.eval(), device, choices, progress)
    if task.baseline == "linear probe":
        train, validation = (bench.encode(read_split(cell.folder, split)) for split in ("train", "validation"))
        with torch.inference_mode(False):
            put_head(
                base.model,
                base.head_modules,
                train_probe(base.model, base.head_modules, train, validation, bench.batches),
            )
    bench.model = open_adapter(base, cell.adapter, lock.adapter.method, device).eval()
    return bench


def _evaluate(cell: Cell, device: torch.device, progress: Progress, room: dict[int, int] | None) -> EvaluationRecord:
    lock, train = cell.lock, cell.train
    load_libraries()
    release_memory()
    floor = resident_bytes()
    started = time.perf_counter()
    with PeakMemory(device, floor) as peak:
        bench = open_bench(cell, device, progress, room)
        task, test, rows = bench.task, bench.test, bench.rows
        progress.say(f"{cell.domain}: scoring the {task.baseline}")
        base_scores = bench.score(test, adapter=False)
        progress.say(f"{cell.domain}: scoring the adapter")
        validation = bench.encode(read_split(cell.folder, "validation")[:CHECK_ROWS])
        difference = _reopened(bench, validation, train.check_losses)
        scored = time.perf_counter()
        scores = bench.score(test)
        scored = time.perf_counter() - scored
    names = bench.names
    metrics = _metrics(lock, base_scores, scores)
    record = EvaluationRecord(
        domain=cell.domain,
        target=cell.target,
        baseline=task.baseline,
        rows=len(rows),
        confidence=lock.evaluate.confidence,
        resamples=lock.evaluate.resamples,
        rows_sha256=json_sha256(rows),
        metrics=metrics,
        confusion=_confusion(scores, names),
        per_class=_per_class(base_scores, scores, names),
        reopened_difference=difference,
        seconds=time.perf_counter() - started,
        rows_per_second=len(rows) / scored,
        tokens_per_second=sum(len(example.input_ids) for example in test) / scored,
        gates_failed=_gates(lock, metrics),
        memory={
            "evaluate": PhaseMeasure(
                predicted_peak_bytes=next(
                    (phase.total_bytes for phase in cell.plan.cells[0].memory if phase.phase == "evaluate"), None
                ),
                measured_peak_bytes=peak.peak_bytes,
            )
        },
        versions=versions(str(device)),
    )
    _write_predictions(cell.folder / "predictions.parquet", rows, names, base_scores, scores)
    record.write(cell.folder / "evaluation.json")
    return record


def answer_choices(cell: Cell, data: DataRecord, base: Base) -> dict[str, tuple[int, ...]]:
    """`answer_texts` as token ids without the end token."""
    texts = answer_texts(cell, data)
    return {name: tuple(completion_ids(text, base.tokenizer, end=False)) for name, text in texts.items()}


def answer_texts(cell: Cell, data: DataRecord) -> dict[str, str]:
    """The completions among which the model is asked to choose, by name.

    Empty when the rows are not of the kind where every answer is one of a few.
    """
    texts = dict(data.completions)
    if not texts and data.form == "completion":
        seen = sorted({row["completion"] for row in read_split(cell.folder, "train")})
        tested = {row["completion"] for split in ("validation", "test") for row in read_split(cell.folder, split)}
        if 2 <= len(seen) <= MOST_CHOICES and tested <= set(seen):
            texts = {text.strip() or text: text for text in seen}
    return texts


def _reopened(bench: Bench, validation: Sequence[Example], expected: Sequence[float]) -> float:
    """Mean absolute difference of the check rows' losses; raises RunError above the tolerance."""
    pad = int(bench.base.tokenizer.pad_token_id or 0)
    found, lock = check_losses(bench.task, bench.model, validation, pad, bench.device), bench.lock
    difference = float(np.mean(np.abs(np.array(found) - np.array(expected)))) if found else 0.0
    changed = kinds.load("adapters", lock.adapter.method).changes_base
    allowed = SAME_AFTER_CONVERSION if changed and lock.dtype != "float32" else SAME
    if not difference <= allowed:
        raise RunError(
            "the adapter read back from disk does not score as the trained one did",
            place="adapter/",
            got=f"mean difference of a row's loss: {difference:.3g}",
            allowed=f"at most {allowed:g}",
            fix="train again; if it happens again, report it with the recipe and lock.yaml",
        )
    return difference


def _metrics(lock: Lock, base: Scores, adapter: Scores) -> tuple[Metric, ...]:
    names = [name for name in lock.evaluate.metrics if usable(find(name), adapter)]
    return tuple(
        compare(
            name,
            base,
            adapter,
            resamples=lock.evaluate.resamples,
            confidence=lock.evaluate.confidence,
            seed=lock.data.seed,
        )
        for name in names
    )


def _gates(lock: Lock, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Sentences about the gates that were missed: a gain smaller than `evaluate.gates` asks for."""
    failed = []
    for metric in metrics:
        wanted = lock.evaluate.gates.get(metric.name)
        if wanted is None or metric.delta is None:
            continue
        gain = metric.delta if metric.higher_is_better else -metric.delta
        if gain < wanted:
            failed.append(f"{metric.name} gained {gain:+.3f}, the recipe asks for at least {wanted:+.3f}")
    return tuple(failed)


def _confusion(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows by right class and chosen class."""
    if scores.gold is None or scores.predictions is None:
        return {}
    table = {name: dict.fromkeys(names, 0) for name in names}
    for gold, chosen in zip(scores.gold, scores.predictions, strict=True):
        table[names[gold]][names[chosen]] += 1
    return table


def _per_class(base: Scores, adapter: Scores, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rows, and recall of baseline and adapter, of each class."""
    if adapter.gold is None or adapter.predictions is None or base.predictions is None:
        return {}
    table = {}
    for index, name in enumerate(names):
        own = adapter.gold == index
        if own.any():
            table[name] = {
                "rows": float(own.sum()),
                "base": float((base.predictions[own] == index).mean()),
                "adapter": float((adapter.predictions[own] == index).mean()),
            }
    return table


def _write_predictions(path: Path, rows: Sequence[Row], names: Sequence[str], base: Scores, adapter: Scores) -> None:
    """One line a test row: where it comes from, the losses, and for choices the right and the chosen ones."""
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "source": [str(row["source"]) for row in rows],
        "row": [int(row["row"]) for row in rows],
        "base_loss": base.losses,
        "adapter_loss": adapter.losses,
    }
    if adapter.gold is not None and adapter.predictions is not None and base.predictions is not None:
        columns |= {
            "gold": [names[i] for i in adapter.gold],
            "base": [names[i] for i in base.predictions],
            "adapter": [names[i] for i in adapter.predictions],
        }
    if adapter.probabilities is not None:
        columns["confidence"] = adapter.probabilities.max(-1)
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())
