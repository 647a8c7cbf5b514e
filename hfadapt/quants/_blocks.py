"""What storages in 4 bits of bitsandbytes have in common."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any

from hfadapt.quants import Access

if TYPE_CHECKING:
    import torch

BLOCK = 64
GIVES = frozenset({Access.READ, Access.REPAIR})


def unpack(layer: Any, dtype: torch.dtype | None) -> tuple[Callable[[], torch.Tensor], torch.dtype]:
    """How a `Linear4bit` is unpacked, and to which dtype."""
    from bitsandbytes.functional import dequantize_4bit

    kind = dtype or layer.compute_dtype

    def make() -> torch.Tensor:
        # Into the dtype that is wanted, not first into that of the weight before it was quantised.
        # The weight of a divided base is another parameter while its layer runs: the layer keeps the state.
        state = copy(getattr(layer.weight, "quant_state", None) or layer.quant_state)
        state.dtype = kind
        return dequantize_4bit(layer.weight.data, state)

    return make, kind
