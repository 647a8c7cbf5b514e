"""How long a command will still take: all cells and stages, as the plans say, corrected by what was measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from hfadapt.core.errors import RunError
from hfadapt.core.progress import CellFinished, Event, Progress, StageFinished, StageStarted, Stepped
from hfadapt.records.plan import Plan
from hfadapt.run_folder import Cell
from hfadapt.stages import Stage

TELLING = 10.0
"""Seconds. A stage that is planned for less takes mostly what no plan counts, such as a start: how much longer it takes
says nothing of other stages."""


class Remaining(Progress):
    """Hands everything on, steps and stages with the time that is left of the whole command.

    A stage that no plan knows takes as long as it took for another cell, before the first one no time at all.

    Args:
        progress: Who is told.
        cells: Those that are to be done.
        stages: Those that are to be done, in their order.
    """

    def __init__(self, progress: Progress, cells: Sequence[Cell], stages: Sequence[Stage]) -> None:
        self.progress = progress
        self.cells = {cell.name: cell for cell in cells}
        self.stages = {stage.name: stage for stage in stages}
        done = {cell.name: cell.state.stages for cell in cells}
        self._left = {(cell, stage) for cell in self.cells for stage in self.stages if stage not in done[cell]}
        self._took: dict[str, float] = {}
        self._slower: dict[str, float] = {}
        self._telling: dict[str, float] = {}
        self._now: StageStarted | None = None
        self._began = 0.0
        self._later: float | None = None

    def tell(self, event: Event) -> None:
        """Handed on, with the time that is left."""
        if isinstance(event, StageStarted):
            self._left |= {(cell, event.stage) for cell in event.cells}
            self._now, self._began = event, time.monotonic()
            self._look_ahead()
            event = replace(event, seconds_left=None if self._later is None else self._later + self._planned(event))
        elif isinstance(event, StageFinished):
            self._finish(event)
        elif isinstance(event, CellFinished):
            self._left = {pair for pair in self._left if pair[0] != event.cell or self.stages[pair[1]].scope == "run"}
        elif isinstance(event, Stepped) and self._now is not None:
            event = self._stepped(event, self._now)
        self.progress.tell(event)

    def _finish(self, event: StageFinished) -> None:
        self._left -= {(cell, event.stage) for cell in event.cells}
        self._took[event.stage] = event.seconds / max(1, len(event.cells))
        self._compare(event.stage, event.cells, event.seconds)
        self._now = None

    def _compare(self, stage: str, cells: Sequence[str], seconds: float) -> None:
        """Takes note of how much longer than planned a stage takes."""
        planned = [self._expected(cell, stage) for cell in cells]
        if (total := sum(each or 0.0 for each in planned)) > 0:
            self._slower[stage] = seconds / total
            if total >= TELLING:
                self._telling[stage] = seconds / total

    def _stepped(self, event: Stepped, now: StageStarted) -> Stepped:
        gone = time.monotonic() - self._began
        left = event.training_seconds_left
        if any(part.trial for part in event.parts):
            left = max(left, self._planned(now) - gone)
        else:
            before = self._slower.get(now.stage)
            self._compare(now.stage, now.cells, gone + left)
            if before is None or abs(self._slower.get(now.stage, before) / before - 1) > 0.01:
                self._look_ahead()
        return replace(event, seconds_left=None if self._later is None else self._later + left)

    def _look_ahead(self) -> None:
        """Of all that comes after the stage that runs; None before any plan is made."""
        if not any(self._expected(cell, stage) for cell in self.cells for stage in self.stages):
            self._later = None
            return
        now = {(cell, self._now.stage) for cell in self._now.cells} if self._now else set()
        self._later = sum(self._seconds(cell, stage) for cell, stage in self._left - now)

    def _planned(self, event: StageStarted) -> float:
        return sum(self._seconds(cell, event.stage) for cell in event.cells)

    def _seconds(self, cell: str, stage: str) -> float:
        """As the plan says, or those of other cells, at the speed that was measured."""
        expected = self._expected(cell, stage)
        if expected is None:
            others = [found for other in self.cells if (found := self._expected(other, stage)) is not None]
            expected = sum(others) / len(others) if others else None
        if expected is None:
            return self._took.get(stage, 0.0)
        return expected * (self._slower.get(stage) or max(self._telling.values(), default=1.0))

    def _expected(self, cell: str, stage: str) -> float | None:
        if cell not in self.cells or stage not in self.stages or not self.cells[cell].has(Plan):
            return None
        with suppress(RunError, LookupError, OSError):
            # Of a record that cannot be read, its own stage says so.
            return self.stages[stage].seconds(self.cells[cell])
        return None
