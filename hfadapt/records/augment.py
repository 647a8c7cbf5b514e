"""augment.json: which changes of training rows were tried, and which was taken."""

from __future__ import annotations

from typing import ClassVar

from hfadapt.core.spec import Record, Spec
from hfadapt.records.stages import Versions


class TriedAugment(Spec):
    """One setting of `data.augment` after the steps of the trial.

    `losses` are the validation losses per label, one for each seed that it was trained with. `delta` is the mean
    difference from no change over these seeds, `low` to `high` its paired-bootstrap interval over the rows.
    """

    shares: dict[str, float]
    losses: tuple[float, ...]
    delta: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        """As a recipe writes it."""
        return named(self.shares)


class AugmentRecord(Record):
    """What the trial of `data.augment: auto` found; nothing in `tried` where there was none, for the `reason`.

    A setting is taken where its loss on the `validation_rows` is lower with every one of the `seeds` and the interval
    of the difference, at a `confidence` that is shared between the settings, lies below 0; of several the lowest.
    Test rows had no part in it.
    """

    FILE: ClassVar[str] = "augment.json"
    domain: str
    target: str
    taken: dict[str, float]
    reason: str
    tried: tuple[TriedAugment, ...] = ()
    rows: int
    validation_rows: int
    steps: int = 0
    seeds: tuple[int, ...] = ()
    confidence: float | None = None
    seconds: float = 0.0
    versions: Versions


def named(shares: dict[str, float]) -> str:
    """Shares of changes as a recipe writes them."""
    return ", ".join(f"{name}: {share:g}" for name, share in shares.items()) or "off"
