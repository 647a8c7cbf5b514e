"""LoRA on the direction of W, with a learned magnitude (Liu et al. 2024, arXiv 2402.09353)."""

from __future__ import annotations

from dataclasses import dataclass

from hfadapt.adapters import AdapterMethod
from hfadapt.quants import Access


@dataclass(frozen=True)
class Dora(AdapterMethod):
    """LoRA and a magnitude for each output."""

    def layer_parameters(self, in_features: int, out_features: int, rank: int) -> int:
        """A, B and the magnitudes."""
        return super().layer_parameters(in_features, out_features, rank) + out_features


KIND = Dora(
    "dora",
    additive=False,
    needs=frozenset({Access.READ}),
    reason="DoRA needs the norm of W, which peft cannot read from an int8 layer",
    options={"use_dora": True},
    convolves=True,
)
