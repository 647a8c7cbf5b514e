"""search.json: which settings were tried while training, how far, and which of them went on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hfadapt.core.spec import Record, Spec


class Try(Spec):
    """One combination of settings, by their place in the recipe.

    `losses` are the validation losses per label after the steps of each rung that it came to; `steps` are those that it
    was trained for until it was given up (of the one that went on: until it was chosen), in `seconds`; `failed` says
    why it was given up between two comparisons.
    """

    settings: dict[str, float]
    losses: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    failed: str | None = None


class SearchRecord(Record):
    """What a search found: `chosen` is the place of the try that went on.

    All were trained on the same rows in the same order, and compared after the steps of each of the `rungs` on the same
    `validation_rows`; test rows had no part in it. `further_steps` and `further_seconds` are those of the tries that
    were given up, beside the training of `training_steps`; comparing all of them took `compared_seconds`.
    `began_with` is the SHA-256 of the rows and settings before anything was chosen.
    """

    FILE: ClassVar[str] = "search.json"
    domain: str
    target: str
    budget: float
    together: bool
    rungs: tuple[int, ...]
    tries: tuple[Try, ...]
    chosen: int
    validation_rows: int
    training_steps: int
    further_steps: int
    further_seconds: float
    further_tokens: int
    further_labelled_tokens: int
    compared_seconds: float
    began_with: str = ""


def named_try(settings: Mapping[str, float]) -> str:
    """The settings of a try as a recipe writes them, without their sections."""
    return ", ".join(f"{place.rpartition('.')[2]}: {value:g}" for place, value in settings.items())
