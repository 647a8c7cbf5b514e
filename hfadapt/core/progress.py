"""Who wants to know how a run goes: the terminal, a notebook, or nobody."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from hfadapt.core.show import show_seconds


class Progress(Protocol):
    """Called on the main process only; `title` says whose step it is where several adapters are trained together."""

    def say(self, message: str) -> None:
        """Something the user should read."""

    def step(
        self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float, title: str = ""
    ) -> None:
        """After every optimizer step."""

    def validation(self, step: int, loss: float, title: str = "", last: bool = False) -> None:
        """After every validation; `last` when no step follows."""


class Silent:
    """A Progress that says nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def step(
        self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float, title: str = ""
    ) -> None:
        """Nothing."""

    def validation(self, step: int, loss: float, title: str = "", last: bool = False) -> None:
        """Nothing."""


FIRST_STEPS = 5
"""Steps after which measured speed is trusted more than the plan's."""
WORTH_SAYING = 0.2


class Corrected:
    """Hands everything on, and says once, after the first steps, how long training will take where the plan was wrong.

    Args:
        progress: Who is told.
        predicted_seconds: The plan's training time; None when it had none.
        before_seconds: What went by before the steps, and belongs to the training.
    """

    def __init__(
        self, progress: Progress, predicted_seconds: float | None, before_seconds: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.progress = progress
        self.predicted_seconds = predicted_seconds
        self.before_seconds = before_seconds
        self._first: int | None = None

    def say(self, message: str) -> None:
        """Handed on."""
        self.progress.say(message)

    def validation(self, step: int, loss: float, title: str = "", last: bool = False) -> None:
        """Handed on."""
        self.progress.validation(step, loss, title, last)

    def step(
        self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float, title: str = ""
    ) -> None:
        """Handed on, after the correction."""
        first = self._first = self._first or step
        if self.predicted_seconds and step == first + FIRST_STEPS - 1 and step < total:
            found = seconds_left * total / (total - step) + self.before_seconds()
            predicted, self.predicted_seconds = self.predicted_seconds, None
            if abs(found / predicted - 1) > WORTH_SAYING:
                self.progress.say(
                    f"training will take about {show_seconds(found)}, measured over the first steps; the guess "
                    f"before them was {show_seconds(predicted)}"
                )
        self.progress.step(step, total, loss, tokens_per_second, seconds_left, title)


LOUD_LOGGERS = ("accelerate", "bitsandbytes", "torch.distributed")


class _Quiet:
    """How often `quiet_libraries` was entered and not left yet, in all threads, and what gives the libraries their
    voices back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = 0
        self.undo = ExitStack()
        self.hushed: set[str] = set()


_QUIET = _Quiet()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While inside (or as a decorator), libraries show no progress bars and no hints, which would tear the run's own
    display; warnings, bars and log levels of the caller are as they were afterwards."""
    with _QUIET.lock:
        if not _QUIET.entered:
            _hush_all(_QUIET.undo)
        # Imported here or since it was entered first: half a second is too long for whoever does not need it.
        _hush_datasets(_QUIET)
        _QUIET.entered += 1
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.entered -= 1
            if not _QUIET.entered:
                _QUIET.undo.close()
                _QUIET.hushed.clear()


def _hush_all(undo: ExitStack) -> None:
    from transformers.utils import logging as theirs

    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in LOUD_LOGGERS:
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    undo.callback(theirs.set_verbosity, theirs.get_verbosity())
    theirs.set_verbosity_error()
    if theirs.is_progress_bar_enabled():
        undo.callback(theirs.enable_progress_bar)
        theirs.disable_progress_bar()


def _hush_datasets(quiet: _Quiet) -> None:
    datasets = sys.modules.get("datasets")
    if datasets is None or "datasets" in quiet.hushed:
        return
    quiet.hushed.add("datasets")
    if not datasets.are_progress_bars_disabled():
        quiet.undo.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
