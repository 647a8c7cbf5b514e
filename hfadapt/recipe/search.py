"""Settings of which several values are tried at the beginning of training: the recipe's `search`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated

from pydantic import Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import LearningRate, Positive, Share

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What `train.learning_rate: find` tries, times what `auto` would take."""
PLACES = {
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "rank": "adapter.rank",
    "alpha": "adapter.alpha",
    "dropout": "adapter.dropout",
}
"""The setting that each list has values of."""
OF_LAYERS = ("rank", "alpha", "dropout")
"""In these, adapters differ that lie side by side on one base; one adapter cannot be set back to another of them."""


class Search(Section):
    """Values that are tried on the same rows in the same order, every one with every other; the best goes on.

    Those that do worse on the validation rows are given up on the way, half of them at a time. Tries differ in what
    belongs to an adapter alone; what alpha is to the rank stays where ranks are tried, unless alphas are tried too.
    """

    learning_rate: Annotated[tuple[LearningRate, ...], Field(min_length=1)] | None = None
    """Values of `train.learning_rate`.

    Example: [2.0e-4, 1.0e-3]
    """
    weight_decay: Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1)] | None = None
    """Values of `train.weight_decay`.

    Example: [0.0, 0.1]
    """
    rank: Annotated[tuple[Annotated[Positive, Field(le=1024)], ...], Field(min_length=1)] | None = None
    """Values of `adapter.rank`.

    Example: [8, 32]
    """
    alpha: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] | None = None
    """Values of `adapter.alpha`.

    Example: [16, 64]
    """
    dropout: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    """Values of `adapter.dropout`.

    Example: [0.0, 0.1]
    """
    budget: Annotated[float, Field(gt=1.0, le=16.0)] = 2.0
    """The most that training may cost with all tries, as a multiple of one training."""

    @property
    def lists(self) -> dict[str, tuple[float, ...]]:
        """The values of each setting that is tried."""
        return {name: values for name in PLACES if (values := getattr(self, name)) is not None}

    def tries(self) -> Iterator[dict[str, float]]:
        """Every combination, as settings by their place in the recipe."""
        lists = self.lists
        for values in product(*lists.values()):
            yield {PLACES[name]: value for name, value in zip(lists, values, strict=True)}

    def with_rates(self, prior: float) -> Search:
        """The same with the learning rates that are tried around a first guess."""
        rates = tuple(dict.fromkeys(min(1.0, prior * factor) for factor in FACTORS))
        return self.model_copy(update={"learning_rate": rates})
