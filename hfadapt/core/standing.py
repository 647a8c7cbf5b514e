"""Where a run stands, from the events of its progress: what every display of it has in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import isfinite

from rich.cells import cell_len, set_cell_size

from hfadapt.core.progress import (
    CellFinished,
    Event,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Stepped,
    Validated,
)
from hfadapt.core.show import GAP, flush, show_bytes, show_seconds

BARS = "▁▂▃▄▅▆▇█"
KEPT = 512
"""Losses of a cell that are kept; of more, the means of neighbours."""
LONGEST_SPARK = 32


@dataclass
class Row:
    """What a cell is doing, or one of the trials for it.

    Args:
        losses: In their order, each the mean of `every` steps but the last one.
    """

    cell: str
    title: str = ""
    trial: str = ""
    step: int = 0
    total: int = 0
    loss: float | None = None
    validation: float | None = None
    losses: list[float] = field(default_factory=list)
    every: int = 1

    @property
    def called(self) -> str:
        """The cell, with the trial where it is one."""
        return f"{self.cell} {self.trial}".rstrip()

    def add(self, step: int, total: int, loss: float) -> None:
        """Takes note of a step."""
        if step <= self.step:
            # Another training of the same cell.
            self.losses, self.every, self.validation = [], 1, None
        self.step, self.total, self.loss = step, total, loss
        if len(self.losses) and (step - 1) % self.every:
            place = (step - 1) % self.every
            self.losses[-1] += (loss - self.losses[-1]) / (place + 1)
        else:
            self.losses.append(loss)
        if len(self.losses) > KEPT:
            pairs = zip(self.losses[::2], [*self.losses[1::2], self.losses[-1]], strict=False)
            self.losses, self.every = [sum(pair) / 2 for pair in pairs], self.every * 2


def sparkline(values: Sequence[float], width: int) -> str:
    """A line of at most `width` bars, each the mean of as many values; the lowest value has the lowest bar."""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if isfinite(mean)]
    if not finite:
        return ""
    least, span = min(finite), (max(finite) - min(finite)) or 1.0
    top = len(BARS) - 1
    return "".join(
        BARS[round((mean - least) / span * top)] if abs(mean) < float("inf") else BARS[top] for mean in means
    )


class Standing:
    """What goes on now; `rows` are the cells of the stages that run. Jobs may do several at the same time."""

    def __init__(self) -> None:
        self.run, self.unit = "", "tokens"
        self.rows: dict[str, Row] = {}
        self._together_with: dict[str, tuple[str, ...]] = {}
        self._steps: dict[str, Stepped] = {}
        self.seconds_left: float | None = None
        self._told = self.began = time.monotonic()
        self.title = ""

    def tell(self, event: Event) -> None:
        """Takes note of what has happened."""
        if isinstance(event, RunStarted):
            self.run, self.unit = event.run, event.unit
        elif isinstance(event, StageStarted):
            self._end(event.cells)
            self.rows |= {cell: Row(cell, event.title) for cell in event.cells}
            self._together_with |= dict.fromkeys(event.cells, event.cells)
            self.title, self.began = event.title, time.monotonic()
            self._left(event.seconds_left)
        elif isinstance(event, Stepped):
            self._steps |= {part.cell: event for part in event.parts}
            for part in event.parts:
                row = self._row(part.cell, part.trial)
                row.add(part.step, part.total, part.loss)
            self._left(event.training_seconds_left if event.seconds_left is None else event.seconds_left)
        elif isinstance(event, Validated):
            self._row(event.cell, event.trial).validation = event.loss
        elif isinstance(event, StageFinished):
            self._end(event.cells)
        elif isinstance(event, CellFinished):
            self._end((event.cell,))
        elif isinstance(event, RunFinished):
            self._end(tuple(self.rows))
            self.seconds_left = None

    def of(self, cells: Sequence[str]) -> list[Row]:
        """The rows of cells, and of those that share their work."""
        named = {name for cell in cells for name in (cell, *self._together_with.get(cell, ()))}
        return [row for row in self.rows.values() if row.cell in named]

    def _end(self, cells: Sequence[str]) -> None:
        """What these cells, and those that share their work, were doing is over."""
        over = {row.cell for row in self.of(cells)} | {*cells}
        self.rows = {name: row for name, row in self.rows.items() if row.cell not in over}
        self._steps = {cell: step for cell, step in self._steps.items() if cell not in over}
        self._together_with = {cell: named for cell, named in self._together_with.items() if cell not in over}

    @property
    def steps(self) -> list[Stepped]:
        """The last step of each training that runs."""
        return list({id(step): step for step in self._steps.values()}.values())

    def _row(self, cell: str, trial: str) -> Row:
        title = next((each.title for each in self.rows.values() if each.cell == cell), self.title)
        row = self.rows.setdefault(f"{cell} {trial}".rstrip(), Row(cell, title, trial))
        if trial and cell in self.rows and not self.rows[cell].total:
            # Its trials stand for it.
            del self.rows[cell]
        elif not trial:
            self.rows = {name: each for name, each in self.rows.items() if each.cell != cell or not each.trial}
            self.rows[row.called] = row
        return row

    def _left(self, seconds: float | None) -> None:
        self.seconds_left, self._told = seconds, time.monotonic()

    def left(self) -> float | None:
        """Seconds that are left of the whole command, as far as anybody can say."""
        return None if self.seconds_left is None else max(0.0, self.seconds_left - (time.monotonic() - self._told))

    # --- in words ----------------------------------------------------------------------------------------------------

    def lines(self, width: int, height: int = 100, bars: bool = True) -> list[str]:
        """A line for each cell and one for all of them, none longer than `width`.

        Args:
            height: So many lines at most.
            bars: The display can show sparklines.
        """
        rows = list(self.rows.values())[: max(1, height - 1)]
        return [*(table(rows, width, bars) if rows else []), *filter(None, [self.together(width)])]

    def together(self, width: int) -> str:
        """The line for all of them: the first form that fits, cut where none does."""
        texts = self._together()
        return next((text for text in texts if len(text) <= width), texts[-1][:width])

    def _together(self) -> list[str]:
        """What is said once for all, in full and in short."""
        left = self.left()
        steps = self.steps
        if not steps:
            gone = f"{self.title} for {show_seconds(time.monotonic() - self.began)}" if self.rows else ""
            full, short = [gone], [gone]
        else:
            speed = f"{sum(step.tokens_per_second for step in steps):,.0f} {self.unit}/s"
            held = [step.memory_bytes for step in steps if step.memory_bytes is not None]
            planned = [step.planned_memory_bytes for step in steps if step.planned_memory_bytes]
            of = f" of {show_bytes(sum(planned))}" if len(planned) == len(held) else ""
            memory = f"{show_bytes(sum(held))}{of}" if len(held) == len(steps) else ""
            full = [f"{speed} in all" if len(self.rows) > 1 else speed, f"memory {memory}{' planned' * bool(of)}"]
            full, short = full if memory else full[:1], [speed, memory]
        if left is not None and left >= 1:
            full, short = [*full, f"{show_seconds(left)} left of all"], [*short, f"{show_seconds(left)} left"]
        return [GAP.join(filter(None, parts)) for parts in (full, short)]

    def summary(self, cells: Sequence[str] = ()) -> str:
        """All of it in one line, for a log.

        Args:
            cells: Only of these, and of those that share their work.
        """
        if not self._steps:
            return self.title
        rows = self.of(cells) if cells else list(self.rows.values())
        steps = {f"step {row.step}/{row.total}" for row in rows if row.total}
        if len(steps) == 1:
            losses = [f"{row.called} {_loss(row)}" for row in rows]
        else:
            losses = [f"{row.called} step {row.step}/{row.total} {_loss(row)}" for row in rows]
        first = [*steps] if len(steps) == 1 else []
        return GAP.join([*first, ", ".join(losses), self._together()[0]])


def table(rows: Sequence[Row], width: int, bars: bool = True) -> list[str]:
    """Rows with a column each for name, stage, steps, sparkline, loss and validation, as many as fit into the width."""
    steps = [f"step {row.step}/{row.total}" if row.total else "" for row in rows]
    losses = [f"loss {row.loss:.4f}" if row.loss is not None else "" for row in rows]
    checks = [f"validation {row.validation:.4f}" if row.validation is not None else "" for row in rows]
    names, titles = [row.called for row in rows], [row.title for row in rows]
    drawn = bars and any(row.losses for row in rows)
    choices = [
        ([names, titles, steps], [losses, checks], 10),
        ([names, titles, steps], [losses], 6),
        ([names, steps], [losses], 6),
        ([names, steps], [losses], 0),
        ([names], [steps], 0),
    ]
    for before, after, least in choices:
        room = (
            width - sum(max(map(cell_len, column)) + len(GAP) for column in (*before, *after) if any(column)) + len(GAP)
        )
        if room >= (least + len(GAP)) * drawn:
            break
    spark = min(LONGEST_SPARK, room - len(GAP)) if drawn and least and room > len(GAP) else 0
    if room < 0:
        most = max(map(cell_len, names)) + room
        names = [name if cell_len(name) <= most else f"{set_cell_size(name, most - 1).rstrip()}…" for name in names]
        before = [names, *before[1:]]
    middle = [[sparkline(row.losses, spark).ljust(spark) for row in rows]] if spark else []
    columns = [column for column in (*before, *middle, *after) if any(column)]
    widths = [max(map(cell_len, column)) for column in columns]
    cells = zip(*columns, strict=True)
    return [
        set_cell_size(line, width) if cell_len(line) > width else line
        for line in (
            GAP.join(flush(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cells
        )
    ]


def finished(rows: Sequence[Row], seconds: float) -> list[Row]:
    """Rows as they are told once their stage is over."""
    return [replace(row, title=f"{row.title} in {show_seconds(seconds)}") for row in rows if row.total]


def _loss(row: Row) -> str:
    checked = "" if row.validation is None else f" (validation {row.validation:.4f})"
    return f"loss {row.loss:.4f}{checked}" if row.loss is not None else row.title
