"""What the plans of cells that are trained together say: how long it will take, at the speed of what the same run has
trained before, and how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell


def predicted_seconds(cells: Sequence[Cell]) -> float | None:
    """The training time of all cells; None where the plan had none."""
    found = [cell.plan.cells[0].predicted_seconds for cell in dict.fromkeys(cells)]
    return sum(seconds for seconds in found if seconds) * _slower(cells[0]) if found and all(found) else None


def planned_bytes(cells: Sequence[Cell]) -> dict[str, int]:
    """The predicted peak of each phase.

    Each plan has all adapters at its own length, and memory grows with the tokens of all: the mean is for all lengths.
    """
    predicted: dict[str, int] = {}
    for cell in cells:
        for phase in cell.plan.cells[0].memory:
            predicted[phase.phase] = predicted.get(phase.phase, 0) + phase.total_bytes // len(cells)
    return predicted


def _slower(cell: Cell) -> float:
    """How many times longer than planned the run's finished trainings on the same target took."""
    others = (Cell(place) for place in cell.folder.parent.parent.glob(f"*/{cell.target}") if place != cell.folder)
    records = [other.read(TrainRecord) for other in others if other.holds(TrainRecord) and _alike(cell, other)]
    ratios = [
        record.predicted_tokens_per_second / record.tokens_per_second
        for record in records
        if record.predicted_tokens_per_second and record.tokens_per_second
    ]
    return median(ratios) if ratios else 1.0


def _alike(cell: Cell, other: Cell) -> bool:
    """Whether they train the same base in the same storage, by the same method."""
    return other.planned and _settings(cell) == _settings(other)


def _settings(cell: Cell) -> tuple[Any, ...]:
    lock = cell.lock
    return lock.model, lock.task, lock.quant, lock.dtype, lock.adapter, lock.train.objective
