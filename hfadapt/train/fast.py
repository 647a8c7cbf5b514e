"""The fast path of training: low-rank layers as one autograd function, in the dtype the processor multiplies best.

peft's modules stay the container, so saving, loading and evaluating are standard; only their `forward` is replaced
while training. Compared with peft's own forward this saves the float32 copies of the input and the extra additions over
the whole output, keeps only x and x·Aᵀ for the backward pass, and multiplies in bfloat16. The parameters stay float32.

Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfadapt import hardware
from hfadapt.adapters import DEFAULT

SHORT_TOKENS = 256
"""Up to this length plain matrix products beat the fused attention kernel of CPUs, whose bfloat16 backward is slow."""


@dataclass(frozen=True)
class _Layer:
    """The frozen part of a low-rank layer: W (O, I) in the dtype of the products, made when asked for."""

    weight: Callable[[], torch.Tensor]
    bias: torch.Tensor | None
    scaling: float
    dtype: torch.dtype


class _LowRankProduct(torch.autograd.Function):
    """y = x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ for x (..., I), A (R, I), B (O, R)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, layer: _Layer) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(layer.dtype)
        a_low, b_low = a.to(layer.dtype), b.to(layer.dtype)
        weight = layer.weight()
        low = flat @ a_low.t()
        y = flat @ weight.t() if layer.bias is None else torch.addmm(layer.bias, flat, weight.t())
        y.addmm_(low, b_low.t(), alpha=layer.scaling)
        ctx.save_for_backward(flat, low, a_low, b_low)
        ctx.layer, ctx.shape, ctx.x_dtype = layer, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, low, a_low, b_low = ctx.saved_tensors
        layer: _Layer = ctx.layer
        dy = gradients[0].reshape(-1, gradients[0].shape[-1]).to(layer.dtype)
        d_low = (dy @ b_low).mul_(layer.scaling)
        d_a = (d_low.t() @ flat).float()
        d_b = (dy.t() @ low).float().mul_(layer.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ layer.weight()).addmm_(d_low, a_low).view(ctx.shape).to(ctx.x_dtype)
        return dx, d_a, d_b, None


@contextmanager
def fast_layers(model: Any, dtype: torch.dtype | None) -> Iterator[int]:
    """While inside, every plain low-rank layer of a peft model uses the fast path; yields how many do.

    Layers with dropout, DoRA or a bias of their own, and 8-bit layers, keep peft's forward.

    Args:
        dtype: Of the products; None keeps that of each layer's weight. Frozen float32 weights are copied to it once.
    """
    changed = []
    for module in model.modules():
        layer = _frozen_part(module, dtype)
        if layer is not None:
            module.forward = _forward(module, layer)
            changed.append(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _forward(module: Any, layer: _Layer) -> Callable[..., torch.Tensor]:
    a, b = module.lora_A[DEFAULT], module.lora_B[DEFAULT]

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return _LowRankProduct.apply(x, a.weight, b.weight, layer)  # type: ignore[no-any-return]

    return forward


def _frozen_part(module: Any, dtype: torch.dtype | None) -> _Layer | None:
    """The layer's frozen part, or None when peft's forward does more than this function."""
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer) or list(getattr(module, "active_adapters", [])) != [DEFAULT]:
        return None
    base = module.get_base_layer()
    plain = (
        DEFAULT in module.lora_A
        and not module.lora_variant
        and not module.merged
        and not module.lora_bias[DEFAULT]
        and isinstance(module.lora_dropout[DEFAULT], torch.nn.Identity)
        and not getattr(module, "fan_in_fan_out", False)
    )
    if not plain:
        return None
    scaling = float(module.scaling[DEFAULT])
    if type(base) is torch.nn.Linear:
        kind = dtype or base.weight.dtype
        weight = base.weight.detach().to(kind)
        return _Layer(lambda: weight, _to(base.bias, kind), scaling, kind)
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        kind = dtype or base.compute_dtype
        return _Layer(
            lambda: dequantize_4bit(base.weight.data, base.weight.quant_state).to(kind),
            _to(base.bias, kind),
            scaling,
            kind,
        )
    return None


def _to(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


def product_dtype(storage: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 for a base in float32, where the device multiplies it several times faster; else None."""
    if storage != "float32":
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        return torch.bfloat16 if {"amx_bf16", "avx512_bf16"} & set(hardware.cpu_features()) else None
    return None


@contextmanager
def short_attention(device: torch.device, longest_tokens: float) -> Iterator[None]:
    """Attention by plain matrix products, where that is faster: short rows in 16 bits on a CPU."""
    if device.type == "cpu" and longest_tokens <= SHORT_TOKENS:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
