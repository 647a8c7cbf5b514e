"""The products of low-rank layers on AMX tiles (csrc/products.cpp): all of a group's in one parallel region.

Frozen and narrow products of a row of tokens are summed in the same registers and rounded once. Only bfloat16, and
sizes that are multiples of 32. What dropout drops (dropout.py) are bits: one int32 for 32 values, the lowest the first.

Shapes: N tokens, I inputs, O outputs, R rank, P rank rounded up to 32, L layers that share an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from hfadapt.fast import abi, compiled
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
    tensors: dict[str, torch.Tensor | None] = {"x": x, "low": low, "low_turned": turned, "dropped": dropped}
    if dropout is not None:
        tensors |= {"token_keys": dropout.tokens, "column_keys": dropout.columns}
    _run("lowrank_forward", ys, layers, adapters, tensors, wide=dtype == torch.float32)
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
    tensors = {"d_low": low, "d_low_turned": turned, "dx": dx, "dropped": dropped}
    _run("lowrank_backward_input", dys, layers, adapters, tensors, wide=dtype == torch.float32)
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
    tensors = {"x": x, "low_turned": low_turned, "d_low_turned": d_low_turned, "dropped": dropped}
    _run("lowrank_backward_weights", dys, None, adapters, tensors, found)
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
    data: Sequence[torch.Tensor],
    layers: Sequence[Frozen] | None,
    adapters: Sequence[LowRank],
    tensors: Mapping[str, torch.Tensor | None],
    gradients: Sequence[tuple[torch.Tensor, Sequence[torch.Tensor]]] = (),
    *,
    wide: bool = False,
) -> None:
    """`data` are results of the layers or their gradients, `tensors` go by their names in abi.Products.

    Raises:
        MemoryError: There is none to work in.
    """
    if compiled.is_fake(data[0]):
        return
    library = compiled.tiles()
    assert library is not None
    x, turned = tensors.get("x"), tensors.get("low_turned")
    turned = tensors["d_low_turned"] if turned is None else turned
    assert turned is not None
    # These arrays live until the call is over: C++ has their addresses.
    frozen = (abi.Layer * len(data))(*_layers(data, layers))
    parts = [(abi.Part * len(data))(*_parts(each, pair)) for each, pair in zip_longest(adapters, gradients)]
    shares = [each.dropout if tensors["dropped"] is not None else 0.0 for each in adapters]
    segments = (abi.Segment * len(adapters))(
        *(
            abi.Segment(each.first, each.end, threshold(share), factor(share), abi.Items.of(part))
            for each, share, part in zip(adapters, shares, parts, strict=True)
        )
    )
    problem = abi.Products(
        **{key: _at(tensor) for key, tensor in tensors.items()},
        tokens=len(data[0]),
        inputs=adapters[0].a.shape[1],
        padded=_padded(adapters),
        room=turned.stride(0),
        x_stride=0 if x is None else x.stride(0),
        layers=abi.Items.of(frozen),
        segments=abi.Items.of(segments),
        wide=wide,
    )
    if getattr(library, name)(problem, torch.get_num_threads()):
        raise MemoryError("the matmuls of LoRA layers found no memory to work in")


def _layers(data: Sequence[torch.Tensor], layers: Sequence[Frozen] | None) -> Iterator[abi.Layer]:
    for index, y in enumerate(data):
        weight, bias = (layers[index].weight, layers[index].bias) if layers else (None, None)
        yield abi.Layer(_at(weight), y.shape[1], _at(bias), y.data_ptr(), y.stride(0))


def _parts(adapter: LowRank, gradients: tuple[torch.Tensor, Sequence[torch.Tensor]] | None) -> Iterator[abi.Part]:
    """Of an adapter in each layer; their A, and its gradients, lie one below the other."""
    da: torch.Tensor | None = None
    dbs: Sequence[torch.Tensor | None] = [None] * len(adapter.bs)
    if gradients:
        da, dbs = gradients
    row, inputs = 0, adapter.a.shape[1]
    for b, scaling, db in zip(adapter.bs, adapter.scalings, dbs, strict=True):
        yield abi.Part(_at(adapter.a, row * inputs), _at(b), b.shape[0], _at(da, row * inputs), _at(db), scaling)
        row += b.shape[0]


def _at(tensor: torch.Tensor | None, offset: int = 0) -> int:
    """The address of an element; 0 without a tensor."""
    return 0 if tensor is None else tensor.data_ptr() + offset * tensor.element_size()
