"""The products of low-rank layers on AMX tiles (products.cpp): all of a group's in one parallel region.

Frozen and narrow products of a row of tokens are summed in the same registers and rounded once. Only bfloat16, and
sizes that are multiples of 32. What dropout drops (dropout.py) are bits: one int32 for 32 values, the lowest the first.

Shapes: N tokens, I inputs, O outputs, R rank, P rank rounded up to 32, L layers that share an input.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hfadapt.fast import compiled
from hfadapt.fast.dropout import Dropout, factor, threshold

MULTIPLE = 32
"""Of inputs and outputs."""


@dataclass(frozen=True)
class Frozen:
    """What is frozen of a layer: weight (O, I) in bfloat16, bias (O,) in float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class LowRank:
    """Tokens `first` to `end`, and the adapter that they go through, in bfloat16.

    Args:
        a: A of all layers one below the other (ΣR, I).
        bs: scaling · Bᵀ (R, O) of each layer.
        scalings: Of each layer.
        dropout: Share of values of x that are dropped in training.
    """

    first: int
    end: int
    a: torch.Tensor
    bs: Sequence[torch.Tensor]
    scalings: Sequence[float]
    dropout: float = 0.0


def usable(x: torch.Tensor, inputs: int, outputs: Sequence[int]) -> bool:
    """Whether the processor, the dtype and the sizes allow it."""
    fits = inputs % MULTIPLE == 0 and all(each % MULTIPLE == 0 for each in outputs)
    return fits and x.device.type == "cpu" and x.dtype == torch.bfloat16 and compiled.has_tiles(x, "products")


def forward(
    x: torch.Tensor,
    layers: Sequence[Frozen],
    adapters: Sequence[LowRank],
    dtype: torch.dtype,
    dropout: Dropout | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """y (N, O) of each layer in `dtype` for x (N, I), x·Aᵀ of all layers as (L·P, N and some room), and which values
    of x were dropped, (N, I / 32) int32, None without dropout."""
    ys = [x.new_empty((len(x), layer.weight.shape[0]), dtype=dtype) for layer in layers]
    low, turned = _low(x, len(layers), adapters)
    dropped = None if dropout is None else x.new_empty((len(x), x.shape[1] // 32), dtype=torch.int32)
    options = {"low": low, "low_turned": turned, "dropped": dropped, "wide": dtype == torch.float32}
    _run("lowrank_forward", x, layers, ys, adapters, **options, dropout=dropout)
    return ys, turned, dropped


def backward_input(
    dys: Sequence[torch.Tensor],
    layers: Sequence[Frozen],
    adapters: Sequence[LowRank],
    dtype: torch.dtype,
    needed: bool,
    dropped: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The gradient of x (N, I) in `dtype`, if needed, and of x·Aᵀ as `forward` gives it."""
    low, turned = _low(dys[0], len(layers), adapters)
    dx = dys[0].new_empty((len(dys[0]), layers[0].weight.shape[1]), dtype=dtype) if needed else None
    options = {"d_low": low, "d_low_turned": turned, "dx": dx, "dropped": dropped}
    _run("lowrank_backward_input", None, layers, dys, adapters, **options, wide=dtype == torch.float32)
    return dx, turned


def backward_weights(
    x: torch.Tensor,
    dys: Sequence[torch.Tensor],
    adapters: Sequence[LowRank],
    low_turned: torch.Tensor,
    d_low_turned: torch.Tensor,
    dropped: torch.Tensor | None = None,
) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """For each of `adapters` the gradients in float32 of its A (ΣR, I), and of B as (R, O) of each layer."""
    found = [
        (torch.empty_like(each.a, dtype=torch.float32), [torch.empty_like(b, dtype=torch.float32) for b in each.bs])
        for each in adapters
    ]
    turned = {"low_turned": low_turned, "d_low_turned": d_low_turned, "dropped": dropped}
    _run("lowrank_backward_weights", x, None, dys, adapters, **turned, gradients=found)
    return found


def _low(x: torch.Tensor, layers: int, adapters: Sequence[LowRank]) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for x·Aᵀ as rows of tokens and turned. Tiles read up to 32 tokens more than there are."""
    width = layers * _padded(adapters)
    room = len(x) + 2 * MULTIPLE - len(x) % MULTIPLE
    return x.new_empty((len(x) + MULTIPLE, width)), x.new_empty((width, room))


def _padded(adapters: Sequence[LowRank]) -> int:
    largest = max(b.shape[0] for each in adapters for b in each.bs)
    return -(-largest // MULTIPLE) * MULTIPLE


def _run(
    name: str,
    x: torch.Tensor | None,
    layers: Sequence[Frozen] | None,
    data: Sequence[torch.Tensor],
    adapters: Sequence[LowRank],
    *,
    low: torch.Tensor | None = None,
    low_turned: torch.Tensor | None = None,
    d_low: torch.Tensor | None = None,
    d_low_turned: torch.Tensor | None = None,
    dx: torch.Tensor | None = None,
    wide: bool = False,
    dropped: torch.Tensor | None = None,
    dropout: Dropout | None = None,
    gradients: Sequence[tuple[torch.Tensor, Sequence[torch.Tensor]]] = (),
) -> None:
    if compiled.is_fake(data[0]):
        return
    turned = low_turned if low_turned is not None else d_low_turned
    assert turned is not None
    inputs = adapters[0].a.shape[1]
    numbers = [len(data[0]), inputs, _padded(adapters), turned.stride(0), _at(x), 0 if x is None else x.stride(0)]
    numbers += [_at(low), _at(low_turned), _at(d_low), _at(d_low_turned), _at(dx), wide, _at(dropped)]
    numbers += [0, 0] if dropout is None else [_at(dropout.tokens), _at(dropout.columns)]
    numbers += [len(data), len(adapters)]
    for index, y in enumerate(data):
        weight, bias = (layers[index].weight, layers[index].bias) if layers else (None, None)
        numbers += [_at(weight), y.shape[1], _at(bias), _at(y), y.stride(0)]
    for index, each in enumerate(adapters):
        share = each.dropout if dropped is not None else 0.0
        numbers += [each.first, each.end, threshold(share), _bits(factor(share))]
        row = 0
        for layer_index, (b, scaling) in enumerate(zip(each.bs, each.scalings, strict=True)):
            da, db = gradients[index] if gradients else (None, ())
            numbers += [_at(each.a, row * inputs), _at(b), b.shape[0]]
            numbers += [_at(da, row * inputs), _at(db[layer_index]) if db else 0, _bits(scaling)]
            row += b.shape[0]
    found = compiled.tiles()
    assert found is not None
    compiled.function(found, name)((ctypes.c_int64 * len(numbers))(*numbers), torch.get_num_threads())


def _at(tensor: torch.Tensor | None, offset: int = 0) -> int:
    """The address of an element; 0 without a tensor."""
    return 0 if tensor is None else tensor.data_ptr() + offset * tensor.element_size()


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")
