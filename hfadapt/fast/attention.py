"""Attention inside the rows of a batch, exactly: by matrix products over rows of similar length, without a mask.

The cost grows with the sum of squared row lengths, not with the square of the batch; only queries, keys and values and
the log of the softmax sums are kept, scores are computed again in the backward pass (Dao et al. 2022, arXiv
2205.14135). Grouped queries share their keys without copying them. On CUDA torch's own kernel for rows of different
lengths is used.

Shapes: N tokens, H query heads, J key heads, G = H / J, E features, B rows of a bucket, T its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch

from hfadapt.fast import abi, compiled, kernels
from hfadapt.fast.documents import CURRENT, Bucket, Documents
from hfadapt.fast.limits import QUERY_BLOCK

NAME = "hfadapt"
MOST_FEATURES = 256
"""Of a head, for the kernel on tiles."""


@dataclass(frozen=True)
class _Settings:
    documents: Documents
    scale: float
    causal: bool
    window: int
    dtype: torch.dtype


def _blocks(bucket: Bucket, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, end of keys) of each block."""
    if bucket.longest <= QUERY_BLOCK:
        yield 0, bucket.longest, bucket.longest
        return
    for first in range(0, bucket.longest, QUERY_BLOCK):
        end = min(first + QUERY_BLOCK, bucket.longest)
        yield first, end, end if causal else bucket.longest


def _grouped(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(B, H, Q, E) as (B·J, G·Q, E)."""
    return x.reshape(x.shape[0] * key_heads, -1, x.shape[-1])


class _Attention(torch.autograd.Function):
    """q (N, H, E), k (N, J, E), v (N, J, E) to (N, H, E)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: _Settings) -> torch.Tensor:
        heads, key_heads = q.shape[1], k.shape[1]
        ctx.settings = settings
        ctx.on_tiles = _on_tiles(q, k, v, settings)
        make = q.new_zeros if settings.documents.padded and not ctx.on_tiles else q.new_empty
        out = make((len(q), heads, v.shape[2]))
        if ctx.on_tiles:
            log_sums = q.new_empty(q.shape[:2], dtype=torch.float32)
            _run_on_tiles("row_attention", log_sums, settings, q=q, k=k, v=v, out=out)
            ctx.save_for_backward(q, k, v, log_sums)
            return out
        sums = []
        for bucket in _parts(settings, heads):
            qp, kp, vp = (_packed(x, bucket, settings.dtype) for x in (q, k, v))
            done = []
            for first, end, keys in _blocks(bucket, settings.causal):
                scores = torch.bmm(_grouped(qp[:, :, first:end], key_heads), _keys(kp, keys).transpose(1, 2))
                shaped = scores.view(len(bucket.lengths), heads, end - first, keys)
                sums.append(
                    kernels.softmax(shaped, bucket.lengths, first, settings.scale, settings.causal, settings.window)
                )
                done.append(torch.bmm(scores, _keys(vp, keys)).view(*shaped.shape[:3], -1))
            whole = done[0] if len(done) == 1 else torch.cat(done, 2)
            kernels.unpack(whole, out, bucket.starts, bucket.lengths)
        ctx.save_for_backward(q, k, v, *sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, *sums = ctx.saved_tensors
        settings: _Settings = ctx.settings
        heads, key_heads = q.shape[1], k.shape[1]
        dout = gradients[0] if gradients[0].stride(-1) == 1 else gradients[0].contiguous()
        zeros = settings.documents.padded and not ctx.on_tiles
        results = [(x.new_zeros if zeros else x.new_empty)(x.shape) for x in (q, k, v)]
        if ctx.on_tiles:
            arrays = dict(zip(("q", "k", "v", "out", "dq", "dk", "dv"), (q, k, v, dout, *results), strict=True))
            _run_on_tiles("row_attention_backward", sums[0], settings, **arrays)
            return (*results, None)
        log_sums = iter(sums)
        for bucket in _parts(settings, heads):
            qp, kp, vp, dp = (_packed(x, bucket, settings.dtype) for x in (q, k, v, dout))
            dqs: list[torch.Tensor] = []
            dks: torch.Tensor | None = None
            dvs: torch.Tensor | None = None
            for first, end, keys in _blocks(bucket, settings.causal):
                queries, douts = _grouped(qp[:, :, first:end], key_heads), _grouped(dp[:, :, first:end], key_heads)
                some_keys, some_values = _keys(kp, keys), _keys(vp, keys)
                p = torch.bmm(queries, some_keys.transpose(1, 2))
                d = torch.bmm(douts, some_values.transpose(1, 2))
                shape = (len(bucket.lengths), heads, end - first, keys)
                options = (bucket.lengths, first, settings.scale, settings.causal, settings.window)
                kernels.softmax_backward(p.view(shape), d.view(shape), next(log_sums), *options)
                dvs = _added(dvs, torch.bmm(p.transpose(1, 2), douts), vp)
                dks = _added(dks, torch.bmm(d.transpose(1, 2), queries), kp)
                dqs.append(torch.bmm(d, some_keys).view(*shape[:3], -1))
            whole = dqs[0] if len(dqs) == 1 else torch.cat(dqs, 2)
            assert dks is not None
            assert dvs is not None
            for packed, result in zip((whole, dks, dvs), results, strict=True):
                kernels.unpack(packed, result, bucket.starts, bucket.lengths)
        return (*results, None)


def _on_tiles(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, settings: _Settings) -> bool:
    """Whether the kernel of row_attention.cpp does this: products in bfloat16, whole tiles of features."""
    size = q.shape[2]
    return (
        settings.dtype == torch.bfloat16
        and all(x.device.type == "cpu" and x.dtype in kernels.SUFFIX and x.stride(2) == 1 for x in (q, k, v))
        and k.shape == v.shape
        and size % 16 == 0
        and size <= MOST_FEATURES
        and settings.scale > 0
        and compiled.has_tiles(q, "attention")
    )


def _run_on_tiles(name: str, log_sums: torch.Tensor, settings: _Settings, **arrays: torch.Tensor) -> None:
    """`arrays` by their names in abi.Problem.

    Raises:
        MemoryError: There is none to work in.
    """
    q, k = arrays["q"], arrays["k"]
    if compiled.is_fake(q):
        return
    library = compiled.tiles()
    assert library is not None
    starts, lengths = settings.documents.rows
    problem = abi.Problem(
        **{
            key: abi.Array(x.data_ptr(), x.stride(0), x.stride(1), x.dtype == torch.float32)
            for key, x in arrays.items()
        },
        lse=log_sums.data_ptr(),
        starts=starts.data_ptr(),
        lengths=lengths.data_ptr(),
        N=len(q),
        B=len(starts),
        H=q.shape[1],
        J=k.shape[1],
        E=q.shape[2],
        scale=settings.scale,
        causal=settings.causal,
        window=settings.window,
    )
    if getattr(library, name)(problem, torch.get_num_threads()):
        raise MemoryError("attention inside rows found no memory to work in")


def _parts(settings: _Settings, heads: int) -> Iterator[Bucket]:
    for bucket in settings.documents.buckets:
        yield from settings.documents.share(bucket, heads)


def _packed(x: torch.Tensor, bucket: Bucket, dtype: torch.dtype) -> torch.Tensor:
    return kernels.pack(x, bucket.starts, bucket.lengths, bucket.longest, dtype)


def _keys(x: torch.Tensor, end: int) -> torch.Tensor:
    """The first `end` keys of (B, J, T, E), as (B·J, end, E)."""
    flat = x.view(-1, x.shape[2], x.shape[3])
    return flat if end == x.shape[2] else flat[:, :end]


def _added(total: torch.Tensor | None, part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The sum of gradients (B·J, end, E) of the first keys, as (B, J, T, E)."""
    if total is None and part.shape[1] == like.shape[2]:
        return part.view(like.shape)
    total = torch.zeros_like(like) if total is None else total
    total.view(-1, *like.shape[2:])[:, : part.shape[1]] += part
    return total


def attention(  # noqa: PLR0913 - as the kernel takes them
    documents: Documents,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int = 0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Attention of heads as transformers has them: query (B, H, T, E), key and value (B, J, T, E) to (B, T, H, E).

    Args:
        window: Keys further away than this are not seen; 0 sees all.
        dtype: Of the products; the query's by default.
    """
    rows, heads, width = query.shape[:3]
    flat = [_flat(x) for x in (query, key, value)]
    if query.device.type == "cuda":
        out = _on_cuda(documents, *flat, scale=scale, causal=causal, window=window, dtype=dtype)
    else:
        settings = _Settings(documents, float(scale), causal, window, dtype or query.dtype)
        out = _Attention.apply(*flat, settings)
    return out.view(rows, width, heads, -1)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """(B, H, T, E) as (B·T, H, E), without a copy where the tokens lie one after the other."""
    x = x.transpose(1, 2)
    x = x.reshape(-1, *x.shape[2:])
    return x if x.stride(-1) == 1 else x.contiguous()


def _on_cuda(  # noqa: PLR0913 - as the kernel takes them
    documents: Documents,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """torch's attention over rows of different lengths, which knows 16 bits only; the result has the dtype of v."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest = documents.offsets(q.device)
    left = window - 1 if window else -1
    options: dict[str, Any] = {"scale": scale, "window_size": (left, 0) if causal else (left, left)}
    if q.shape[1] > k.shape[1]:
        options["enable_gqa"] = True
    # Rotary positions of a float32 model widen queries and keys again.
    narrow, wide = dtype or v.dtype, v.dtype
    q, k, v = q.to(narrow), k.to(narrow), v.to(narrow)
    # A pair would come only with further outputs asked for.
    out = cast(torch.Tensor, varlen_attn(q, k, v, offsets, offsets, longest, longest, **options))
    return out.to(wide)


@cache
def register() -> None:
    """Makes this attention known to transformers under NAME; without documents it is torch's own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(  # noqa: PLR0913 - as the kernel takes them
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        documents = CURRENT.documents
        if documents is None:
            options |= {"scaling": scaling, "dropout": dropout, "is_causal": is_causal}
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
            return out, None
        if dropout or softcap or options.get("s_aux") is not None:
            raise NotImplementedError("dropout, soft caps and sinks in attention")
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        found = attention(
            documents, query, key, value, scale=scale, causal=causal, window=sliding_window or 0, dtype=CURRENT.dtype
        )
        return found, None

    def mask(*arguments: Any, **options: Any) -> Any:
        return sdpa_mask(*arguments, **options) if CURRENT.documents is None else None

    ALL_ATTENTION_FUNCTIONS.register(NAME, forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask)
