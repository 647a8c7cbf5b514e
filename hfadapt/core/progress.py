"""Who wants to know how a run goes: the terminal, a notebook, or nobody."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
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
                    f"training will take about {show_seconds(found)}, measured over the first steps; the plan's rough "
                    f"guess was {show_seconds(predicted)}"
                )
        self.progress.step(step, total, loss, tokens_per_second, seconds_left, title)


def quiet_libraries() -> None:
    """Progress bars and hints of the libraries would tear the run's own display."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # Whoever needs `datasets` imports it; half a second is too long for somebody who does not.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in ("accelerate", "bitsandbytes", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
