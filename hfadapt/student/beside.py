"""An adapted model and its student side by side, and what rounding to 8 bits costs one of them.

Shapes: L labels, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt.core.progress import Silent
from hfadapt.evaluate.context import EvaluationContext, open_context, spread
from hfadapt.evaluate.drift import Reference
from hfadapt.evaluate.metrics.rows import compare, find, known_metrics, leading, points_lost, sampling, usable
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.models.rounding import fake_quantise
from hfadapt.records.stages import Metric
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    from hfadapt.modalities import Example
    from hfadapt.recipe.schema import Lock
    from hfadapt.tasks import Scores

TIMED = 20
ROUNDED_ROWS = 400
"""Validation rows on which rounding is judged, as an export is on test rows."""


def rounding_cost(cell: Cell, device: torch.device, *, by_row: bool) -> tuple[float, float]:
    """Points of the leading metric, and mean nats of a label, by which a cell's answers to validation rows change when
    its model is rounded to 8 bits (`models.rounding`).

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
    return points_lost(metric, found.delta or 0.0, found.base or 0.0), apart


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

    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the lock; the adapted model is the base."""
        scores: list[Scores] = [each.score(each.test) for each in self.contexts]
        names = [name for name in self.lock.evaluate.metrics if name in known_metrics()]
        return tuple(
            compare(name, *scores, **sampling(self.lock))
            for name in names
            if find(name).needs != "texts" and usable(find(name), scores[1])
        )

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


def lost(metric: Metric) -> tuple[float, float, float]:
    """Points of a metric that the student loses, and their interval."""
    points, one, other = (
        points_lost(find(metric.name), change or 0.0, metric.base or 0.0)
        for change in (metric.delta, metric.low, metric.high)
    )
    return points, min(one, other), max(one, other)
