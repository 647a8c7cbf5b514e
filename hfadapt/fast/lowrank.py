"""Low-rank layers as one autograd function for all layers that share an input, and for all adapters of a batch.

y = x Wᵀ + bias + scaling · (drop(x) Aᵀ) Bᵀ. peft's modules stay the container, so saving, loading and evaluating are
standard; only their `forward` is replaced while a `FastPath` is on. Against peft's own forward this saves the float32
copies of the input and the extra passes over the output, keeps only x, x·Aᵀ and which values were dropped for the
backward pass, and multiplies in the dtype the processor multiplies best. The parameters stay float32.

Shapes: N tokens, I inputs, O outputs, R rank, L layers that share an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch

from hfadapt.fast import kernels, products
from hfadapt.fast.documents import CURRENT, Segment
from hfadapt.fast.dropout import Dropout, column_keys, factor, random_keys


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a layer: W (O, I) in the dtype of the products, made when asked for."""

    weight: Callable[[], torch.Tensor]
    bias: torch.Tensor | None
    dtype: torch.dtype

    @cached_property
    def wide_bias(self) -> torch.Tensor | None:
        """The bias in float32."""
        return None if self.bias is None else self.bias.float()


class AdapterWeights(NamedTuple):
    """What an adapter adds to a layer: A (R, I), B (O, R), the factor, and the share of inputs dropped in training."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scaling: float
    dropout: float


@dataclass
class Layer:
    """One low-rank layer: what is frozen, and what every adapter adds by its name."""

    module: Any
    frozen: Frozen
    adapters: dict[str, AdapterWeights]


class Copy(NamedTuple):
    """What `refresh` renews: a parameter, or its transpose times a factor, in the dtype of the products."""

    low: torch.Tensor
    parameter: torch.nn.Parameter
    turned: bool
    factor: float


@torch.no_grad()
def refresh(groups: Sequence[Group]) -> None:
    """Copies the parameters of all groups to the dtype of their products, in a few calls instead of hundreds."""
    copies = [copy for group in groups for copy in group.copies()]
    for dtype in {copy.low.dtype for copy in copies}:
        plain, turned = (
            [copy for copy in copies if copy.low.dtype == dtype and copy.turned == side] for side in (False, True)
        )
        # Apart, as a GPU copies many tensors at once only where the memory of each pair is laid out alike.
        torch._foreach_copy_([copy.low for copy in plain], [copy.parameter.detach() for copy in plain])
        torch._foreach_copy_([copy.low for copy in turned], [copy.parameter.detach().t() for copy in turned])
        torch._foreach_mul_([copy.low for copy in turned], [copy.factor for copy in turned])


@dataclass
class Group:
    """Layers that share an input, such as query, key and value.

    For each adapter, A of all layers one below the other (L·R, I), and scaling · Bᵀ of each (R, O), are kept in the
    dtype of the products, in which results stay when `narrow`; `refresh` copies them from the parameters after every
    optimizer step. Dropout goes by the `path` of the first layer in the model.
    """

    layers: list[Layer]
    narrow: bool = False
    path: str = ""
    _low: dict[str, tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)
    _copies: list[Copy] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return self.layers[0].frozen.dtype

    @property
    def names(self) -> list[str]:
        """The adapters, in a fixed order."""
        return list(self.layers[0].adapters)

    def parameters(self) -> list[torch.nn.Parameter]:
        """A and B of every adapter and layer: all A of an adapter, then all its B."""
        found = []
        for name in self.names:
            found += [layer.adapters[name].a for layer in self.layers]
            found += [layer.adapters[name].b for layer in self.layers]
        return found

    def copies(self) -> list[Copy]:
        """What `refresh` has to copy."""
        if not self._low:
            for name in self.names:
                self._low[name] = self._room(name)
        return self._copies

    @torch.no_grad()
    def _room(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        parts = [layer.adapters[name] for layer in self.layers]
        a_low = torch.cat([part.a.to(self.dtype) for part in parts])
        b_low = [(part.b.to(self.dtype) * part.scaling).t().contiguous() for part in parts]
        rows = a_low.split([len(part.a) for part in parts])
        self._copies += [Copy(low, part.a, False, 1.0) for low, part in zip(rows, parts, strict=True)]
        self._copies += [Copy(low, part.b, True, part.scaling) for low, part in zip(b_low, parts, strict=True)]
        return a_low, b_low

    def low(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A (L·R, I) and scaling · Bᵀ (R, O) of each layer."""
        self.copies()
        return self._low[name]

    def scalings(self, name: str) -> list[float]:
        """The factor of each layer's low-rank part."""
        return [layer.adapters[name].scaling for layer in self.layers]

    def ranks(self, name: str) -> list[int]:
        """R of each layer."""
        return [len(layer.adapters[name].a) for layer in self.layers]

    def dropout(self, name: str) -> float:
        """The share of inputs that an adapter drops in training."""
        return self.layers[0].adapters[name].dropout

    @cached_property
    def column_keys(self) -> torch.Tensor:
        """For dropout, (I,) int32."""
        device = self.layers[0].adapters[self.names[0]].a.device
        return column_keys(self.path, self.layers[0].module.in_features).to(device, non_blocking=True)


def _segments(group: Group, tokens: int) -> Sequence[Segment]:
    documents = CURRENT.documents
    if documents is not None and documents.tokens == tokens:
        return documents.segments
    if documents is not None and tokens % len(documents.lengths) == 0:
        # As many vectors of each row: one behind the pooling of an encoder, the patches of a picture.
        width = tokens // len(documents.lengths)
        return [
            Segment(s.adapter, s.first_row * width, s.end_row * width, s.first_row, s.end_row)
            for s in documents.segments
        ]
    if len(group.names) > 1:
        raise NotImplementedError("a layer whose input is neither tokens nor rows, with several adapters")
    return (Segment(group.names[0], 0, tokens, 0, 0),)


def _dropout(group: Group, segments: Sequence[Segment], x: torch.Tensor) -> Dropout | None:
    parts = [(segment.first, segment.end, group.dropout(segment.adapter)) for segment in segments]
    if not group.layers[0].module.training or not any(share for _, _, share in parts):
        return None
    documents = CURRENT.documents
    keys = None if documents is None else documents.keys(len(x), x.device)
    return Dropout(random_keys(len(x), x.device) if keys is None else keys, group.column_keys, parts)


def _product(
    group: Group, x: torch.Tensor, segments: Sequence[Segment], dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """y (N, O) of each layer in `dtype` for x (N, I), and for the backward pass which values of x were dropped (None
    without dropout), and x·Aᵀ.

    On tiles x·Aᵀ is one tensor for all segments, and what is dropped are bits, both in the layout of products.py; else
    (n, ΣR) of each segment, and bool (N, I).
    """
    dropout = _dropout(group, segments, x)
    if _on_tiles(group, x):
        ys, low, bits = products.forward(x, _frozen(group), _low_rank(group, segments), dtype, dropout)
        return ys, [bits, low]
    ys = []
    for layer in group.layers:
        weight = layer.frozen.weight().t()
        ys.append(x @ weight if layer.frozen.bias is None else torch.addmm(layer.frozen.bias, x, weight))
    dropped = None if dropout is None else dropout.dropped()
    kept = _kept(x, dropped)
    lows: list[torch.Tensor | None] = []
    for segment in segments:
        a, bs = group.low(segment.adapter)
        low = kept[segment.first : segment.end] @ a.t()
        if dropped is not None:
            low.mul_(factor(group.dropout(segment.adapter)))
        for y, b, part in zip(ys, bs, low.split(group.ranks(segment.adapter), 1), strict=True):
            y[segment.first : segment.end].addmm_(part, b)
        lows.append(low)
    return [y.to(dtype) for y in ys], [dropped, *lows]


def _kept(x: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    return x if dropped is None else x.masked_fill(dropped, 0)


def _backward_input(
    group: Group,
    dys: Sequence[torch.Tensor],
    dropped: torch.Tensor | None,
    segments: Sequence[Segment],
    needs_dx: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """The gradient of x (N, I) in `dtype`, if asked for, and of x·Aᵀ as `_product` gives it."""
    if _on_tiles(group, dys[0]):
        dx, d_low = products.backward_input(dys, _frozen(group), _low_rank(group, segments), dtype, needs_dx, dropped)
        return dx, [d_low]
    dx = None
    if needs_dx:
        for layer, dy in zip(group.layers, dys, strict=True):
            dx = dy @ layer.frozen.weight() if dx is None else dx.addmm_(dy, layer.frozen.weight())
    d_lows = []
    for segment in segments:
        a, bs = group.low(segment.adapter)
        part = slice(segment.first, segment.end)
        d_lows.append(torch.cat([dy[part] @ b.t() for dy, b in zip(dys, bs, strict=True)], 1))
        if dx is None:
            continue
        if dropped is None:
            dx[part].addmm_(d_lows[-1], a)
        else:
            through = (d_lows[-1] @ a).masked_fill_(dropped[part], 0)
            dx[part].add_(through, alpha=factor(group.dropout(segment.adapter)))
    return None if dx is None else dx.to(dtype), d_lows


def _backward_weights(
    group: Group,
    x: torch.Tensor,
    dropped: torch.Tensor | None,
    lows: Sequence[torch.Tensor],
    dys: Sequence[torch.Tensor],
    d_lows: Sequence[torch.Tensor],
    segments: Sequence[Segment],
) -> list[torch.Tensor | None]:
    """The gradient of every parameter, in the order of `Group.parameters`."""
    made: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    if _on_tiles(group, dys[0]):
        made = products.backward_weights(x, dys, _low_rank(group, segments), lows[0], d_lows[0], dropped)
    else:
        kept = _kept(x, dropped)
        for segment, low, d_low in zip(segments, lows, d_lows, strict=True):
            part, ranks = slice(segment.first, segment.end), group.ranks(segment.adapter)
            # This way round the library need not turn the large factor.
            bs = [(each.t() @ dy[part]).float() for dy, each in zip(dys, low.split(ranks, 1), strict=True)]
            for b, scaling in zip(bs, group.scalings(segment.adapter), strict=True):
                b.mul_(scaling)
            d_a = (d_low.t() @ kept[part]).float()
            made.append((d_a if dropped is None else d_a.mul_(factor(group.dropout(segment.adapter))), bs))
    found: dict[str, list[torch.Tensor]] = {}
    for segment, (a, bs) in zip(segments, made, strict=True):
        name = segment.adapter
        gradients = [*a.split(group.ranks(name)), *(b.t() for b in bs)]
        before = found.get(name)
        found[name] = gradients if before is None else [a + b for a, b in zip(before, gradients, strict=True)]
    empty: list[torch.Tensor | None] = [None] * (2 * len(group.layers))
    return [gradient for name in group.names for gradient in found.get(name, empty)]


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(..., D) as (N, D) in `dtype`; values of a row lie side by side, as the products on tiles need them."""
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _on_tiles(group: Group, x: torch.Tensor) -> bool:
    modules = [layer.module for layer in group.layers]
    return products.usable(x, modules[0].in_features, [module.out_features for module in modules])


def _frozen(group: Group) -> list[products.Frozen]:
    return [products.Frozen(layer.frozen.weight().contiguous(), layer.frozen.wide_bias) for layer in group.layers]


def _low_rank(group: Group, segments: Sequence[Segment]) -> list[products.LowRank]:
    found = []
    for segment in segments:
        name = segment.adapter
        options = (*group.low(name), group.scalings(name), group.dropout(name))
        found.append(products.LowRank(segment.first, segment.end, *options))
    return found


class _Shared(torch.autograd.Function):
    """x (..., I) to L outputs (N, O)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = _rows(x, group.dtype)
        segments = _segments(group, len(flat))
        ys, kept = _product(group, flat, segments, flat.dtype if group.narrow else x.dtype)
        ctx.save_for_backward(flat, *kept)
        ctx.group, ctx.segments, ctx.shape, ctx.x_dtype = group, segments, x.shape, x.dtype
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, dropped, *lows = ctx.saved_tensors
        group: Group = ctx.group
        dys = [_rows(dy, group.dtype) for dy in gradients]
        dx, d_lows = _backward_input(group, dys, dropped, ctx.segments, ctx.needs_input_grad[0], ctx.x_dtype)
        found = _backward_weights(group, flat, dropped, lows, dys, d_lows, ctx.segments)
        return (None if dx is None else dx.view(ctx.shape), None, *found)


class _Gated(torch.autograd.Function):
    """act(g) · u through a low-rank layer; the product act(g) · u is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, g: torch.Tensor, u: torch.Tensor, gelu: bool, group: Group, *parameters: torch.Tensor) -> Any:
        flat_g, flat_u = (x.reshape(-1, x.shape[-1]).contiguous() for x in (g, u))
        h = kernels.gated(flat_g, flat_u, gelu).to(group.dtype)
        segments = _segments(group, len(h))
        (y,), kept = _product(group, h, segments, g.dtype)
        ctx.save_for_backward(flat_g, flat_u, *kept)
        ctx.group, ctx.segments, ctx.shape, ctx.gelu = group, segments, g.shape, gelu
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        g, u, dropped, *lows = ctx.saved_tensors
        group: Group = ctx.group
        dys = [_rows(gradients[0], group.dtype)]
        dh, d_lows = _backward_input(group, dys, dropped, ctx.segments, True, g.dtype)
        assert dh is not None
        h, dg, du = kernels.gated_backward(dh, g, u, ctx.gelu)
        found = _backward_weights(group, h.to(group.dtype), dropped, lows, dys, d_lows, ctx.segments)
        return (dg.view(ctx.shape), du.view(ctx.shape), None, None, *found)


def gated_product(g: torch.Tensor, u: torch.Tensor, gelu: bool, group: Group) -> torch.Tensor:
    """act(g) · u (..., I) through the one layer of the group, to (..., O)."""
    y = _Gated.apply(g, u, gelu, group, *group.parameters())
    return y.view(*g.shape[:-1], -1)


def shared_forwards(group: Group) -> list[Callable[..., torch.Tensor]]:
    """A `forward` for each layer. The first one that sees an input works out all; the others find theirs ready."""
    parameters = group.parameters()
    ready: dict[int, torch.Tensor] = {}
    seen: list[torch.Tensor] = []

    def forward(own: int, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if own not in ready or seen[0] is not x:
            ready.clear()
            # Shaped outside the function: models may change a result in place, which autograd forbids of its views.
            found = _Shared.apply(x, group, *parameters)
            ready.update(enumerate(y.view(*x.shape[:-1], -1) for y in found))
            seen[:] = [x]
        result = ready.pop(own)
        if not ready:
            seen.clear()
        return result

    def bound(own: int) -> Callable[..., torch.Tensor]:
        return lambda x, *arguments, **options: forward(own, x, *arguments, **options)

    return [bound(own) for own in range(len(group.layers))]
