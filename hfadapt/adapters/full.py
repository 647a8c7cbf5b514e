"""Every weight is trained and saved: the upper bound in quality and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfadapt.adapters import DEFAULT, AdapterMethod, Context, Trains
from hfadapt.quants import Access

if TYPE_CHECKING:
    from hfadapt.recipe.schema import LockedAdapter


@dataclass(frozen=True)
class Full(AdapterMethod):
    """No adapter: the model itself."""

    def attach(self, model: Any, settings: LockedAdapter, context: Context, name: str = DEFAULT) -> Any:
        """Makes every parameter trainable, in float32 so that small updates are not lost."""
        return model.float().requires_grad_(True)


KIND = Full(
    "full",
    trains=Trains.MODEL,
    low_rank=False,
    convolves=True,
    needs=frozenset({Access.TRAIN}),
    reason="quantised weights take no gradient",
)
