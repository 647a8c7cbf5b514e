"""LLM.int8(): row-wise int8 weights (Dettmers et al. 2022, arXiv 2208.07339)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hfadapt.quants import Quant

if TYPE_CHECKING:
    import torch


def _unpack(layer: Any, dtype: torch.dtype | None) -> tuple[Callable[[], torch.Tensor], torch.dtype] | None:
    """As bitsandbytes does on CPUs when training; on CUDA its forward pass multiplies in integers."""
    import torch

    if layer.weight.device.type != "cpu":
        return None
    kind = dtype or torch.bfloat16

    def make() -> torch.Tensor:
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        weight: torch.Tensor = layer.weight.data.to(kind).mul_((scales / 127.0).to(kind)[:, None])
        return weight

    return make, kind


KIND = Quant(
    "int8",
    8,
    "Linear8bitLt",
    {"load_in_8bit": True},
    integer_products=True,
    automatic=True,
    divides=False,
    unpack=_unpack,
)
