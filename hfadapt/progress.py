"""Who wants to know how a run goes: the terminal, a notebook, or nobody."""

from __future__ import annotations

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
