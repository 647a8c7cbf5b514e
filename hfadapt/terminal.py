"""The run in a terminal: a progress bar with loss, speed and time left, lines of text above it, the matrix at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from typing_extensions import Self

from hfadapt.records import Report, peak_pair, show_gain
from hfadapt.show import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from types import TracebackType


class Terminal:
    """A Progress for people; other processes than the first say nothing."""

    def __init__(self) -> None:
        self.quiet = os.environ.get("RANK", "0") != "0"
        self.console = Console(stderr=True, quiet=self.quiet, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._validation = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def say(self, message: str) -> None:
        """Prints a line, after ending the bar."""
        self._end()
        self.console.print(message, markup=False, soft_wrap=True)

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Moves the bar; without a terminal, prints a line about ten times a run."""
        text = f"loss {loss:.4f}{self._validation}  {tokens_per_second:,.0f} tokens/s  {show_seconds(seconds_left)} left"
        if not self.console.is_terminal:
            if step in (1, total) or step % max(1, total // 10) == 0:
                self.console.print(f"step {step}/{total}  {text}", markup=False)
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            self._task = self._bar.add_task("training", total=total, text=text)
            self._bar.start()
        self._bar.update(self._task, completed=step, text=text)
        if step == total:
            self._end()

    def validation(self, step: int, loss: float) -> None:
        """Shown with the next steps."""
        self._validation = f"  validation {loss:.4f}"

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._validation = ""

    def report(self, report: Report, asked: set[tuple[str, str]]) -> None:
        """The matrix on standard output, then the cards and the next commands."""
        if self.quiet:
            return
        out = Console(highlight=False)
        print_report(out, report)
        del asked


def print_report(out: Console, report: Report) -> None:
    """The matrix as a table that fits the terminal, then cards and next commands on lines of their own."""
    from rich.table import Table

    baseline = next((cell.baseline for cell in report.cells if cell.baseline), "base")
    table = Table(title=f"{report.recipe}: {report.model}, {report.task}", title_justify="left", pad_edge=False)
    for name, right in (
        ("domain", False),
        ("target", False),
        ("status", False),
        ("metric", False),
        (baseline, True),
        ("adapter", True),
        ("gain [95 %]", True),
        ("peak predicted / measured", True),
        ("time", True),
        ("size", True),
    ):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for cell in report.cells:
        metric = cell.metrics[0] if cell.metrics else None
        table.add_row(
            cell.domain,
            cell.target,
            cell.status,
            metric.name if metric else "",
            show_number(metric.base) if metric else "",
            show_number(metric.adapter) if metric else "",
            show_gain(metric) if metric else "",
            peak_pair(cell.memory),
            show_seconds(cell.seconds) if cell.seconds is not None else "",
            show_bytes(cell.adapter_bytes) if cell.adapter_bytes is not None else "",
        )
    out.print(table)
    for cell in report.cells:
        if cell.card:
            out.print(f"card of {cell.domain}: {cell.card}", markup=False, soft_wrap=True)
    for cell in report.cells:
        if cell.error:
            out.print(f"{cell.domain} on {cell.target} {cell.status}: {cell.error}", markup=False, soft_wrap=True)
    for command in report.next_commands:
        out.print(f"next: {command}", markup=False, soft_wrap=True)
