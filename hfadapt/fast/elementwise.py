"""The element-wise parts of the fast path: norms, gated activations and positions, each one pass by kernels.py.

A module's own forward is replaced by one that gives the same; classes are known by name and tried out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from hfadapt.fast import compiled, kernels
from hfadapt.fast.documents import batch, padded_rows
from hfadapt.fast.lowrank import Group, gated_product


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y, inverse = kernels.rms_norm(flat, weight, eps, offset)
        ctx.save_for_backward(flat, weight, inverse)
        ctx.offset = offset
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, weight, inverse = ctx.saved_tensors
        dy = gradients[0].reshape(flat.shape).contiguous()
        return kernels.rms_norm_backward(dy, flat, weight, inverse, ctx.offset).view(gradients[0].shape), *(None,) * 3


def norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The fast forward of a root-mean-square norm with a frozen weight; classes are known by name and tried out."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.nn.Parameter) or eps is None:
        return None
    if weight.requires_grad or weight.dim() != 1:
        return None
    offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
    own = type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != weight.dtype or x.shape[-1] != len(weight):
            return own(module, x)
        return _Norm.apply(x, weight, float(eps), offset)

    return forward if _same(forward, lambda x: own(module, x), module, len(weight)) else None


def _same(fast: Callable[..., torch.Tensor], own: Callable[..., torch.Tensor], module: Any, width: int) -> bool:
    """Whether two functions of (1, 2, D) agree; fake tensors are taken on trust."""
    weight = module.weight
    if compiled.is_fake(weight):
        return True
    dtype = weight.dtype if weight.is_floating_point() else getattr(module, "compute_dtype", None) or torch.bfloat16
    with torch.no_grad():
        x = torch.linspace(-2, 3, 2 * width, device=weight.device).view(1, 2, width).to(dtype)
        wanted, found = own(x).float(), fast(x).float()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return bool((wanted - found).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-6))


GATES = {"SiLU": False, "SiLUActivation": False, "GELUTanh": True, "PytorchGELUTanh": True}


def gate(module: Any, groups: Mapping[int, Group]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The fast forward of down(act(gate(x)) · up(x)), where `down` is a fast low-rank layer."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    gate, up, down, act = parts
    group = groups.get(id(down))
    kind = GATES.get(type(act).__name__)
    if gate is None or up is None or group is None or kind is None:
        return None
    gelu = kind

    def forward(x: torch.Tensor) -> torch.Tensor:
        return gated_product(gate(x), up(x), gelu, group)

    own = type(module).forward
    # The module's own forward is tried with the low-rank layers that are fast already, all through the first adapter,
    # which with a seed drop the same values both times.
    with batch(padded_rows([2], 2, [group.names[0]], [0])):
        base = gate.get_base_layer() if hasattr(gate, "get_base_layer") else gate
        same = _same(forward, lambda x: own(module, x), base, gate.in_features)
    return forward if same else None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, False)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, True), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    """x (B, H, T, E), which lies in memory as (B, T, H, E); so does the result."""
    rows, heads, width, size = x.shape
    flat = x.transpose(1, 2).reshape(rows * width, heads, size)
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    return kernels.rotary(flat, cos, sin, inverse).view(rows, width, heads, size).transpose(1, 2)


@contextmanager
def fast_rotary(model: Any) -> Iterator[bool]:
    """Replaces `apply_rotary_pos_emb` in the module of the model's attention; yields whether there is one."""
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    with _disable_current_modes():
        found = [home for home in homes if _usual_rotary(home)]
    kept = [(home, home.apply_rotary_pos_emb) for home in found]

    def replacement(own: Callable[..., Any]) -> Callable[..., Any]:
        def apply(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
            fits = cos.dtype == sin.dtype == q.dtype == k.dtype and cos.shape == sin.shape
            fits = fits and cos.shape[-2:] == q.shape[-2:] == (k.shape[-2], k.shape[-1])
            if not fits or unsqueeze_dim != 1 or cos.dim() != 3 or q.dim() != 4:
                return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
            cos, sin = (x.expand(q.shape[0], -1, -1).reshape(-1, x.shape[-1]).contiguous() for x in (cos, sin))
            return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)

        return apply

    for home, own in kept:
        home.apply_rotary_pos_emb = replacement(own)  # type: ignore[attr-defined]
    try:
        yield bool(kept)
    finally:
        for home, own in kept:
            home.apply_rotary_pos_emb = own  # type: ignore[attr-defined]


@cache
def _usual_rotary(home: Any) -> bool:
    """Whether the module turns positions as Llama does: halves of the features are the pairs. Tried out."""
    own = getattr(home, "apply_rotary_pos_emb", None)
    if own is None or not home.__name__.startswith("transformers.models."):
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.rand(1, 2, 3, 8, generator=generator) for _ in range(2))
    cos, sin = (torch.rand(1, 3, 8, generator=generator) for _ in range(2))
    try:
        wanted = own(q, k, cos, sin)
    except Exception:
        # A function of the same name with other arguments.
        return False
    flat_cos, flat_sin = (x.reshape(-1, 8) for x in (cos, sin))
    found = [_turned(x.transpose(1, 2).contiguous().transpose(1, 2), flat_cos, flat_sin, False) for x in (q, k)]
    return len(wanted) == 2 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found, strict=True))
