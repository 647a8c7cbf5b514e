"""The run in a terminal: a bar with loss, speed and time left, lines of text above it, the matrix at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from typing_extensions import Self

from hfadapt.core.show import Shown, show_seconds

if TYPE_CHECKING:
    from types import TracebackType


class Console(rich.console.Console):
    """Goes on silently when nobody reads any more: a run is not lost because of that."""

    def on_broken_pipe(self) -> None:
        """Rich would end the program."""
        self.quiet = True


PATIENCE = 2.0
"""Seconds after which it is said what a command is doing."""


@contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[None]:
    """While what is inside takes long, one line says what it is; it goes away at the end, and only a terminal has it.

    Args:
        what: What is being done, without a full stop.
        console: Standard error by default.
    """
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    status = console.status(f"{what} …")
    timer = threading.Timer(PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


class Terminal:
    """A Progress for people; other processes than the first say nothing.

    Args:
        unit: What goes through the model, as speed is counted.
    """

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit
        self.quiet = os.environ.get("RANK", "0") != "0"
        self.console = Console(stderr=True, quiet=self.quiet, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._validation: dict[str, str] = {}
        self._step: dict[str, int] = {}

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

    def step(
        self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float, title: str = ""
    ) -> None:
        """Moves the bar; without a terminal, prints a line about ten times a run."""
        if step <= self._step.get(title, 0):
            # Another training, after one that ended early.
            self._end()
            self._validation.pop(title, None)
        self._step[title] = step
        known = self._validation.get(title, "")
        text = f"loss {loss:.4f}{known}  {tokens_per_second:,.0f} {self.unit}/s  {show_seconds(seconds_left)} left"
        text = f"{title}: {text}" if title else text
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

    def validation(self, step: int, loss: float, title: str = "", last: bool = False) -> None:
        """Shown with the next steps; the last one, a line of its own."""
        if not last:
            self._validation[title] = f"  validation {loss:.4f}"
            return
        self._validation.pop(title, None)
        self.say(f"{title}: validation {loss:.4f}" if title else f"validation {loss:.4f}")

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def report(self, report: Shown) -> None:
        """The matrix, the evidence, the cards and the next commands, on standard output."""
        self._end()
        if not self.quiet:
            print(report)  # noqa: T201
