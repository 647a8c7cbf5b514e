"""Who wants to know how a run goes: the terminal, a notebook, another program, or nobody.

What happens is told as facts, one event each. Nobody has to read them out of a text.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import show_seconds


@dataclass(frozen=True)
class Event:
    """Something that has happened. Cells are called `domain/target`, times are in seconds, memory is in bytes."""

    name: ClassVar[str]


@dataclass(frozen=True)
class RunStarted(Event):
    """A command has begun with a run: its cells, and its stages in their order."""

    name = "run_started"
    run: str
    folder: str
    cells: tuple[str, ...]
    stages: tuple[str, ...]
    unit: str = "tokens"


@dataclass(frozen=True)
class CellStarted(Event):
    """A cell has its turn."""

    name = "cell_started"
    cell: str


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage has begun for cells that share its work.

    Args:
        title: What the stage does, as a noun.
        seconds_left: Of the whole command; None where no plan says so yet.
    """

    name = "stage_started"
    stage: str
    title: str
    cells: tuple[str, ...]
    seconds_left: float | None = None


@dataclass(frozen=True)
class Part:
    """One of the adapters that take a step together; `trial` names what is tried with it, '' where it is the result."""

    cell: str
    step: int
    total: int
    loss: float
    trial: str = ""


@dataclass(frozen=True)
class Stepped(Event):
    """An optimizer step of all adapters that are trained together.

    Args:
        tokens_per_second: Of all of them.
        training_seconds_left: Of this training.
        memory_bytes: What the training holds now on its device, above what the process held before.
        planned_memory_bytes: The peak that the plan predicts for it.
        seconds_left: Of the whole command; None where nobody knows it.
    """

    name = "step"
    parts: tuple[Part, ...]
    tokens_per_second: float
    training_seconds_left: float
    memory_bytes: int | None = None
    planned_memory_bytes: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Validated(Event):
    """A validation after a step; `last` when no step follows."""

    name = "validation"
    cell: str
    step: int
    loss: float
    last: bool = False
    trial: str = ""


@dataclass(frozen=True)
class Said(Event):
    """A message for people."""

    name = "said"
    text: str


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage is done for these cells."""

    name = "stage_finished"
    stage: str
    title: str
    cells: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class CellFinished(Event):
    """A cell's turn is over: `done`, `pending` (stages of the whole run are left), `failed`, `interrupted` or
    `does-not-fit`."""

    name = "cell_finished"
    cell: str
    status: str


@dataclass(frozen=True)
class Failed(Event):
    """Something went wrong: in a cell's stage, or, without a cell, for the whole command.

    Args:
        what: The fault in a sentence.
        fix: The next thing to do, where one is known.
        text: All that is said to people about it.
    """

    name = "failed"
    what: str
    fix: str | None
    text: str
    stage: str | None = None
    cell: str | None = None


@dataclass(frozen=True)
class RunFinished(Event):
    """The command is at its end: `done`, `failed` where a cell is, or `interrupted`."""

    name = "run_finished"
    status: str
    seconds: float


def failure(error: BaseException | str, text: str = "", stage: str | None = None, cell: str | None = None) -> Failed:
    """What is told of an error; of a text its first line is what went wrong."""
    known = isinstance(error, HfadaptError)
    fixes = [problem.fix for problem in error.problems if problem.fix] if isinstance(error, HfadaptError) else []
    what = error.what if isinstance(error, HfadaptError) else str(error).partition("\n")[0]
    named = what if known or isinstance(error, str) else f"{type(error).__name__}: {what}"
    return Failed(named, "; ".join(dict.fromkeys(fixes)) or None, text or str(error), stage, cell)


class Progress(Protocol):
    """Told in the main process only."""

    def tell(self, event: Event) -> None:
        """Called after everything that happens; must come back soon."""

    def say(self, message: str) -> None:
        """Something that people should read."""
        self.tell(Said(message))


class Silent(Progress):
    """A Progress that says nothing."""

    def tell(self, event: Event) -> None:
        """Nothing."""


class Several(Progress):
    """Hands everything on to several."""

    def __init__(self, *others: Progress) -> None:
        self.others = others

    def tell(self, event: Event) -> None:
        """To each of them."""
        for other in self.others:
            other.tell(event)


FIRST_STEPS = 5
"""Steps after which measured speed is trusted more than the plan's."""
WORTH_SAYING = 0.2


class Corrected(Progress):
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
        self._steps = 0

    def tell(self, event: Event) -> None:
        """Handed on, after the correction."""
        if isinstance(event, Stepped):
            self._steps += 1
            left = sum(part.total - part.step for part in event.parts)
            if self.predicted_seconds and self._steps == FIRST_STEPS and left:
                found = event.training_seconds_left * sum(part.total for part in event.parts) / left
                self._compare(found + self.before_seconds(), self.predicted_seconds)
        self.progress.tell(event)

    def _compare(self, found: float, predicted: float) -> None:
        if abs(found / predicted - 1) > WORTH_SAYING:
            self.progress.say(
                f"training will take about {show_seconds(found)}, measured over the first steps; the guess before them "
                f"was {show_seconds(predicted)}"
            )


WHEN_IMPORTED = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""Variables that libraries read once, when they are imported; transformers' bars follow the Hub's."""
LOUD_LOGGERS = ("accelerate", "bitsandbytes", "torch.distributed", "torch.utils._pytree", "torchao")


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


@contextmanager
def quiet_program() -> Iterator[None]:
    """`quiet_libraries` for a whole program, which costs nothing where it imports none of them; what the caller's
    environment says of them holds."""
    with ExitStack() as undo:
        for name, value in WHEN_IMPORTED.items():
            if name not in os.environ:
                os.environ[name] = value
                undo.callback(os.environ.pop, name, None)
        _hush_hints(undo)
        if "transformers" in sys.modules:
            undo.enter_context(quiet_libraries())
        yield


def _hush_hints(undo: ExitStack) -> None:
    undo.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in LOUD_LOGGERS:
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)


def _hush_all(undo: ExitStack) -> None:
    from transformers.utils import logging as theirs

    _hush_hints(undo)
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
