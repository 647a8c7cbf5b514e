"""The run in a terminal: a line for each cell, what is left of all, messages above them, the matrix at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Self

import rich.console
from rich.live import Live
from rich.text import Text

from hfadapt.core.commands import visible
from hfadapt.core.progress import Event, Failed, Progress, RunFinished, Said, StageFinished, StageStarted, Stepped
from hfadapt.core.show import Shown, wrapped
from hfadapt.core.standing import Standing, finished, table

if TYPE_CHECKING:
    from types import TracebackType


class Console(rich.console.Console):
    """Goes on silently when nobody reads any more: a run is not lost because of that."""

    def on_broken_pipe(self) -> None:
        """Rich would end the program."""
        self.quiet = True


KERNEL = "JPY_PARENT_PID"
"""Set in a notebook's kernel: what a cell starts with `!` has a terminal in which nothing can be typed or renewed."""


def is_live(*streams: IO[str]) -> bool:
    """Whether all of these are a terminal in which somebody can type and lines can be renewed."""
    return KERNEL not in os.environ and all(stream.isatty() for stream in streams)


PATIENCE = 2.0
"""Seconds after which it is said what a command is doing."""


@contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """While what is inside takes long, one line says what it is; it goes away at the end, and only a terminal has it.

    Yields what is told each new step: it prints it above the line, which then says that this is being done.

    Args:
        what: What is being done, without a full stop.
        console: Standard error by default.
    """
    console = console or Console(stderr=True, highlight=False)

    def told(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal or KERNEL in os.environ:
        yield told
        return
    status = console.status(Text(f"{what} …"))

    def begun(text: str) -> None:
        told(text)
        status.update(Text(f"{text} …"))

    timer = threading.Timer(PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield begun
    finally:
        timer.cancel()
        timer.join()
        status.stop()


MINUTE = 60.0
"""Seconds between two lines about steps where there is no terminal, at least."""


class Terminal(Progress):
    """A Progress for people: lines that are renewed in their place below the messages or, without a terminal, one line
    a minute. Other processes than the first say nothing.

    Args:
        quiet: Only faults are shown.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=not is_first(), highlight=False)
        self.standing = Standing()
        console = self.console
        self._lives = not quiet and console.is_terminal and not console.is_dumb_terminal and KERNEL not in os.environ
        self._live: Live | None = None
        self._said = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def tell(self, event: Event) -> None:
        """Shows it."""
        if isinstance(event, Failed):
            self._print(event.text)
        elif self.quiet:
            return
        elif isinstance(event, Said):
            # Words stay whole; what fails is left as it is, as its fix may be a command that is copied.
            self._print("\n".join(wrapped(event.text, self.console.width)) if self._lives else event.text)
        elif isinstance(event, StageFinished):
            self._finished(event)
        self.standing.tell(event)
        if isinstance(event, StageStarted):
            self._begun(event)
        elif isinstance(event, RunFinished):
            self._end()
        elif isinstance(event, Stepped) and not self._lives and time.monotonic() - self._said >= MINUTE:
            self._said = time.monotonic()
            self._print(self.standing.summary())

    def report(self, report: Shown) -> None:
        """The matrix, the evidence, the cards and the next commands, on standard output."""
        self._end()
        if is_first():
            print(report)  # noqa: T201

    def _begun(self, event: StageStarted) -> None:
        self._said = float("-inf")
        if not self._lives:
            self._print(f"{', '.join(event.cells)}: {event.title}")
        elif self._live is None:
            self._live = Live(
                console=self.console,
                get_renderable=self._now,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start(refresh=True)

    def _finished(self, event: StageFinished) -> None:
        """The last state of what was trained stays."""
        rows = finished(self.standing.of(event.cells), event.seconds)
        if not self._lives:
            if rows:
                self._print(self.standing.summary(event.cells))
        elif rows:
            bars = not self.console.options.ascii_only
            self._print("\n".join(table(rows, self.console.width, bars)))

    def _now(self) -> Text:
        options = self.console.options
        lines = self.standing.lines(options.max_width, max(2, options.size.height - 1), not options.ascii_only)
        return Text("\n".join(lines), no_wrap=True, overflow="crop")

    def _print(self, text: str) -> None:
        self.console.print(visible(text), markup=False, soft_wrap=True)

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def is_first() -> bool:
    """Whether this is the first of the processes of a run, as far as its launcher says."""
    return os.environ.get("RANK", "0") == "0"
