"""Who wants to know how a run goes: the terminal, a notebook, or nobody."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Protocol


class Progress(Protocol):
    """Called on the main process only."""

    def say(self, message: str) -> None:
        """Something the user should read."""

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """After every optimizer step."""

    def validation(self, step: int, loss: float) -> None:
        """After every validation."""


class Silent:
    """A Progress that says nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Nothing."""

    def validation(self, step: int, loss: float) -> None:
        """Nothing."""


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
