"""The evaluation of one cell: fresh base, adapter from disk, both scored on the test rows, evaluation.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.hashing import json_sha256
from hfadapt.core.progress import Progress, Silent
from hfadapt.core.spec import write_bytes
from hfadapt.evaluate.context import EvaluationContext, open_context
from hfadapt.evaluate.efficiency import measure_efficiency
from hfadapt.evaluate.general_text import general_text
from hfadapt.evaluate.generation import generated_texts
from hfadapt.evaluate.harness import run_harness
from hfadapt.evaluate.metrics.rows import compare, find, known_metrics, sampling, usable
from hfadapt.evaluate.metrics.text import Texts
from hfadapt.evaluate.quality import (
    MOST_FAILURES,
    calibration,
    confidence,
    confusion,
    failures,
    paired_tests,
    per_class,
    said,
    sides_said,
    slices,
)
from hfadapt.hardware.peak_memory import PeakMemory, load_libraries, release_memory, resident_bytes
from hfadapt.hardware.processes import World
from hfadapt.hardware.versions import versions
from hfadapt.modalities import Row
from hfadapt.recipe.names import is_metric_path as is_path
from hfadapt.recipe.sources import resolve_source
from hfadapt.records.evidence import DriftRecord, SecurityRecord
from hfadapt.records.stages import EvaluationRecord, Metric, PhaseMeasure
from hfadapt.run_folder import Cell
from hfadapt.tasks import Scores
from hfadapt.train.check import rescored

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock


def evaluate_cell(
    cell: Cell, world: World, progress: Progress | None = None, recipe_folder: Path = Path()
) -> EvaluationRecord:
    """Scores baseline and adapter on the test split from the files in the cell, and writes evaluation.json.

    Of several processes each scores its share of the rows.

    Args:
        recipe_folder: Where paths in `evaluate.metrics` and `evaluate.harness` begin.

    Raises:
        RunError: the adapter that was read back does not score as it did when it was trained.
        RequestError: a metric or a harness task that was asked for cannot be had.
    """
    record = _evaluate(cell, world, progress or Silent(), recipe_folder)
    # What follows reads the records.
    world.on_main(lambda: None)
    return record


def _evaluate(cell: Cell, world: World, progress: Progress, recipe_folder: Path) -> EvaluationRecord:
    lock, train, device = cell.lock, cell.train, world.device
    room = world.max_memory(cell.plan.cells[0].budget_bytes)
    load_libraries()
    release_memory()
    floor = resident_bytes()
    started = time.perf_counter()
    with PeakMemory(device, floor) as peak:
        divided = world.divides(lock.train.shard)
        context = open_context(cell, device, progress, room, world=world, divided=divided)
        task, test, rows = context.task, context.test, context.rows
        progress.say(f"{cell.domain}: scoring the {task.baseline}")
        base_scores = context.score(test, adapter=False)
        progress.say(f"{cell.domain}: scoring the adapter")
        again = "train again; if it happens again, report it with the recipe and lock.yaml"
        difference = rescored(cell, context.base, context.model, device, "read back from disk", again)
        scored = time.perf_counter()
        scores = context.score(test)
        scored = time.perf_counter() - scored
    names = context.names
    texts = _texts(context)
    metrics = _metrics(context, base_scores, scores, texts, recipe_folder)
    general = None
    if task.writes and lock.evaluate.general_text:
        progress.say(f"{cell.domain}: scoring general text")
        general = general_text(context)
    if lock.evaluate.harness:
        progress.say(f"{cell.domain}: tasks of lm-evaluation-harness")
    harness = run_harness(context, recipe_folder)
    known = known_metrics()
    sliced = next((metric.name for metric in metrics if metric.name in known and _on_scores(metric.name)), None)
    warnings = tuple(task.warnings({metric.name: metric.adapter for metric in metrics}))
    for each in warnings:
        progress.say(f"{cell.domain}: {each}")
    speed = measure_efficiency(context, scored, train.adapter_bytes)
    record = EvaluationRecord(
        domain=cell.domain,
        target=cell.target,
        baseline=task.baseline,
        rows=len(rows),
        confidence=lock.evaluate.confidence,
        resamples=lock.evaluate.resamples,
        rows_sha256=json_sha256(rows),
        setting=task.setting(test),
        prompts_sha256=json_sha256([task.prompt(example) for example in test]),
        metrics=metrics,
        confusion=confusion(scores, names),
        per_class=per_class(base_scores, scores, names),
        paired_tests=paired_tests(base_scores, scores),
        slices=slices(sliced, base_scores, scores, test, rows, names, context.measures, **sampling(lock))
        if sliced
        else (),
        calibration=calibration(base_scores, scores),
        efficiency=speed,
        general_text=general,
        harness=harness,
        failures=failures(base_scores, scores, names),
        worst=tuple(task.worst(scores, MOST_FAILURES)),
        warnings=warnings,
        reopened_difference=difference,
        seconds=time.perf_counter() - started,
        rows_per_second=speed.rows_per_second,
        tokens_per_second=speed.tokens_per_second,
        gates_failed=_gates(lock, metrics, general, harness),
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
    if world.is_main:
        _write_predictions(cell.folder / "predictions.parquet", rows, names, base_scores, scores, texts)
        cell.write(record)
    _further_checks(context, world)
    return record


def _further_checks(context: EvaluationContext, world: World) -> None:
    """security.json and drift.json, from the same context; drift comes last, as it loads bases of its own beside it."""
    settings, cell = context.lock.evaluate, context.cell
    for kind in (SecurityRecord, DriftRecord) if world.is_main else ():
        # An earlier evaluation's would say something about another adapter or other settings.
        (cell.folder / kind.FILE).unlink(missing_ok=True)
    if settings.security:
        from hfadapt.evaluate.privacy.security import check

        context.progress.say(f"{cell.domain}: leaks and robustness")
        security = check(context)
        if world.is_main:
            cell.write(security)
    if settings.drift:
        from hfadapt.evaluate.drift import measure

        context.progress.say(f"{cell.domain}: merging, and bases in other precision")
        drift = measure(context)
        if world.is_main:
            cell.write(drift)


def _on_scores(name: str) -> bool:
    return find(name).needs != "texts"


def _texts(context: EvaluationContext) -> tuple[Texts, Texts] | None:
    """What base and adapter write, where a metric reads it."""
    wanted = context.lock.evaluate.metrics
    if not context.task.writes or all(not is_path(name) and _on_scores(name) for name in wanted):
        return None
    if context.choices:
        return None
    context.progress.say(f"{context.cell.domain}: generating")
    return generated_texts(context)


def _metrics(
    context: EvaluationContext, base: Scores, adapter: Scores, texts: tuple[Texts, Texts] | None, recipe_folder: Path
) -> tuple[Metric, ...]:
    """The metrics of the lock, in its order; those that have nothing to read in these rows are left out."""
    how = sampling(context.lock)
    found: list[Metric] = []
    for name in context.lock.evaluate.metrics:
        if is_path(name):
            from hfadapt.evaluate.metrics.modules import compare_module  # imports `evaluate` and `datasets`

            path = resolve_source(name, recipe_folder) or Path(name)
            found += compare_module(path, base, adapter, texts, context.names, **how)
        elif not _on_scores(name):
            found += [compare(name, *texts, **how)] if texts else []
        elif usable(find(name), adapter):
            found.append(compare(name, base, adapter, **how))
    known = known_metrics()
    if left := [
        name for name in context.lock.evaluate.metrics if name in known and name not in {m.name for m in found}
    ]:
        context.progress.say(f"{context.cell.domain}: these rows have no {', '.join(left)}, which is left out")
    return tuple(found)


def _gates(
    lock: Lock, metrics: Sequence[Metric], general: Metric | None, harness: Sequence[Metric] = ()
) -> tuple[str, ...]:
    """Sentences about the gates that were missed: a gain smaller than `evaluate.gates` asks for.

    `general_text` is the gain in perplexity on general text; later stages judge the gates of their own.
    """
    known = {metric.name: metric for metric in (*harness, *metrics)}
    if general is not None:
        known["general_text"] = general
    failed, later = [], {gate for stage in registry.stages() for gate in stage.gates}
    for name, wanted in lock.evaluate.gates.items():
        metric = known.get(name)
        if name in later:
            continue
        if metric is None or metric.gain is None:
            failed.append(f"the recipe has a gate on {name}, which was not measured; there are {', '.join(known)}")
        elif metric.gain < wanted:
            failed.append(f"{name} gained {metric.gain:+.3f}, the recipe asks for at least {wanted:+.3f}")
    return tuple(failed)


def _write_predictions(
    path: Path,
    rows: Sequence[Row],
    names: Sequence[str],
    base: Scores,
    adapter: Scores,
    texts: tuple[Texts, Texts] | None,
) -> None:
    """One line a test row: where it comes from, losses and number of labels, for choices the right and the chosen
    ones, for pairs what was said of both answers, for generated rows the texts."""
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "source": [str(row["source"]) for row in rows],
        "row": [int(row["row"]) for row in rows],
        "base_loss": base.losses,
        "adapter_loss": adapter.losses,
        "tokens": adapter.tokens,
    }
    if adapter.gold is not None and adapter.predictions is not None and base.predictions is not None:
        for name, values in (("gold", adapter.gold), ("base", base.predictions), ("adapter", adapter.predictions)):
            columns[name] = said(values, adapter.kind, names)
    columns |= sides_said(base, adapter)
    if adapter.probabilities is not None:
        columns["confidence"] = confidence(adapter)
    if texts is not None:
        written = {"reference_text": texts[1].references}
        written |= {"base_text": texts[0].predictions, "adapter_text": texts[1].predictions}
        for name, column in written.items():
            by_row = dict(zip(texts[1].rows, column, strict=True))
            columns[name] = [by_row.get(row) for row in range(len(rows))]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    write_bytes(path, sink.getvalue().to_pybytes())
