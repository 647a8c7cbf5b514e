"""An adapted model and its student side by side, and what rounding to 8 bits costs one of them.

Shapes: L labels, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hfadapt.core.errors import RunError
from hfadapt.core.hashing import json_sha256
from hfadapt.core.progress import Silent
from hfadapt.core.show import show_bytes
from hfadapt.evaluate.context import EvaluationContext, open_context, spread
from hfadapt.evaluate.drift import Reference
from hfadapt.evaluate.metrics.rows import (
    compare,
    find,
    known_metrics,
    leading,
    points_allowed,
    points_lost,
    sampling,
    usable,
)
from hfadapt.evaluate.quality import slices
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.hardware.versions import versions
from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_base
from hfadapt.models.rounding import fake_quantise
from hfadapt.records.evidence import SecurityRecord, Slice
from hfadapt.records.stages import Metric
from hfadapt.records.student import Check, StudentRecord
from hfadapt.run_folder import Cell
from hfadapt.student.parts import shape_of

if TYPE_CHECKING:
    from hfadapt.modalities import Example
    from hfadapt.recipe.schema import Lock

TIMED = 20
ENOUGH = 400
"""Test rows from which chance is no reason to judge once more."""
ROUNDED_ROWS = 400
"""Validation rows on which rounding is judged, as an export is on test rows."""


class Cost(NamedTuple):
    """Points of the leading metric, and mean nats of a label, by which answers to validation rows change; `least` are
    the points of one row."""

    points: float
    kl_nats: float
    least: float = 0.0


def rounding_cost(cell: Cell, device: torch.device, *, by_row: bool) -> Cost:
    """What it costs when a cell's model is rounded to 8 bits (`models.rounding`).

    Args:
        by_row: A range for each row of what is multiplied.
    """
    context = open_context(cell, device, Silent(), baseline=False)
    reference = Reference(context, context.encode(list(cell.read_split("validation"))[:ROUNDED_ROWS]))
    with fake_quantise(context.model, each_row=by_row):
        scores, apart, _ = reference.compared(context.model, device)
    metric = leading(cell.lock.evaluate.metrics, reference.scores)
    found = compare(metric.name, reference.scores, scores, **sampling(cell.lock))
    context.model = context.base.model = None
    release_memory()
    points = points_lost(metric, found.delta or 0.0, found.base or 0.0)
    return Cost(points, apart, points_allowed(metric, 0.0, found.rows))


def validation_loss(cell: Cell, device: torch.device) -> float:
    """Nats of a label by which a cell's model misses its validation rows."""
    context = open_context(cell, device, Silent(), baseline=False)
    scores = context.score(context.encode(list(cell.read_split("validation"))[:ROUNDED_ROWS]))
    context.model = context.base.model = None
    release_memory()
    return float(scores.losses.sum() / scores.tokens.sum())


class SideBySide:
    """The adapted model and its student on the same test rows."""

    def __init__(self, cell: Cell, student: Cell, device: torch.device, progress: Any, room: Any) -> None:
        self.lock: Lock = cell.lock
        # The adapter in the base's weights, as it would be used where speed matters.
        self.contexts = [open_context(each, device, progress, room, baseline=False) for each in (cell, student)]
        first = self.contexts[0]
        if hasattr(first.model, "merge_adapter") and not getattr(first.base.model, "is_quantized", False):
            first.model.merge_adapter()
        self.rows = len(first.test)

    def metrics(self) -> tuple[tuple[Metric, ...], tuple[Slice, ...]]:
        """The metrics of the lock, and the first on parts of the rows; the adapted model is the base."""
        one, other = (each.score(each.test) for each in self.contexts)
        names = [name for name in self.lock.evaluate.metrics if name in known_metrics()]
        names = [name for name in names if find(name).needs != "texts" and usable(find(name), other)]
        how, own = sampling(self.lock), self.contexts[1]
        parts = slices(names[0], one, other, own.test, own.rows, own.names, own.measures, **how)
        return tuple(compare(name, one, other, **how) for name in names), parts

    def seconds(self, rows: int) -> tuple[float, float]:
        """Median seconds of so many rows at once, of both models in turn."""
        found: list[list[float]] = [[], []]
        for at in spread(self.rows, TIMED):
            for context, seconds in zip(self.contexts, found, strict=True):
                examples = [context.test[(at + number) % self.rows] for number in range(rows)]
                seconds.append(_timed(context, examples))
        one, other = (float(np.median(each[1:] or each)) for each in found)
        return one, other

    def close(self) -> None:
        """Lets both models go."""
        self.contexts.clear()
        release_memory()


def _timed(context: EvaluationContext, examples: Sequence[Example]) -> float:
    parts = [part for example in examples for part in example.parts]
    batch = {
        name: value.to(context.device)
        for name, value in context.task.collate(parts, context.base.pad_token_id).items()
        if name != "labels"
    }
    with torch.inference_mode():
        started = time.perf_counter()
        context.task.outputs_of(context.model, batch)
        return time.perf_counter() - started


def _checks(cell: Cell, student: Cell) -> Iterator[Check]:
    """Of both models' security.json, what was found in each."""
    if not (cell.holds(SecurityRecord) and student.holds(SecurityRecord)):
        return
    own, other = cell.read(SecurityRecord), student.read(SecurityRecord)
    if own.membership and other.membership:
        aucs = [max(attack.auc.value for attack in each.attacks) for each in (own.membership, other.membership)]
        yield Check(part="membership", name="AUC", adapted=aucs[0], student=aucs[1])
    drops = {each.name: each.drop.value for each in other.robustness}
    for each in own.robustness:
        if each.name in drops:
            yield Check(part="robustness", name=each.name, adapted=each.drop.value, student=drops[each.name])


def lost(metric: Metric) -> tuple[float, float, float]:
    """Points of a metric that the student loses, and their interval."""
    points, one, other = (
        points_lost(find(metric.name), change or 0.0, metric.base or 0.0)
        for change in (metric.delta, metric.low, metric.high)
    )
    return points, min(one, other), max(one, other)


def compare_and_write(
    cell: Cell, student: Cell, device: torch.device, progress: Any, room: Any, facts: dict[str, Any]
) -> None:
    """Writes student.json.

    Args:
        room: Memory of each device, as `EvaluationContext` takes it.
        facts: Fields of the record that are known already.

    Raises:
        RunError: more is lost than the limit.
    """
    settings = cell.lock.student
    assert settings is not None
    both = SideBySide(cell, student, device, progress, room)
    (metrics, parts), one, many, rows = both.metrics(), both.seconds(1), both.seconds(32), both.rows
    both.close()
    own = load_base(BaseRef.of(student.lock), student.data.labels, device)
    student.set_state(status="done")
    points, low, high = lost(metrics[0])
    values = {each.name: each.base for each in cell.evaluation.metrics if each.base is not None}
    record = StudentRecord(
        domain=cell.domain,
        target=cell.target,
        made=True,
        folder=student.folder.relative_to(cell.folder).parts[0],
        student=shape_of(own, student.lock.task, student.lock.data.max_length),
        rows=rows,
        metrics=metrics,
        before={each.name: values[each.name] for each in metrics if each.name in values},
        slices=parts,
        checks=tuple(_checks(cell, student)),
        metric=metrics[0].name,
        points=points,
        points_low=low,
        points_high=high,
        limit=points_allowed(find(metrics[0].name), settings.limit, rows),
        adapted_seconds=one[0],
        seconds=one[1],
        adapted_seconds_of_32=many[0],
        seconds_of_32=many[1],
        teacher=dict(cell.manifest.files),
        weights_sha256=json_sha256(student.manifest.files),
        versions=versions(str(device)),
        **facts,
    )
    cell.write(record)
    if points > record.limit:
        raise RunError(
            "the student loses more than the limit",
            place=str(student.folder),
            got=f"{points:.2f} points of {metrics[0].name} [{low:.2f}, {high:.2f}]",
            allowed=f"{record.limit:g}",
            fix="; or ".join(_choices(record, student.lock.train.epochs)),
        )


def _choices(record: StudentRecord, epochs: float) -> list[str]:
    """The three nearest to a student that loses too much, from least to most that is given up; before them more test
    rows, where so few may say that by chance."""
    assert record.student is not None
    assert record.points is not None
    nearest = [f"student.limit: {math.ceil(record.points * 10) / 10:g}"]
    if record.rows < ENOUGH and (record.points_low or 0.0) <= record.limit:
        nearest.insert(0, f"data.test: {ENOUGH}, as {record.rows} test rows may say this by chance")
    larger = [each for each in reversed(record.considered) if not each.fits]
    if larger:
        size = show_bytes(larger[0].bytes)
        nearest.append(f"a budget of {size} for {larger[0].layers} layers and {larger[0].ffn:.0%} of the units")
    elif record.adapted is not None and (record.student.layers or 0) < (record.adapted.layers or 0):
        nearest.append(f"student.layers: {(record.student.layers or 0) + 1}, or a larger student.ffn")
    nearest.append(f"student.epochs: {2 * epochs:g} in the place of {epochs:g}, or more training rows")
    return nearest
