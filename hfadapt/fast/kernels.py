"""The element-wise kernels of csrc/kernels.cpp, compiled once for this processor; plain torch where that cannot be.

A compiler is asked for when the first CPU run starts (about two seconds, three more for the products on tiles, then
kept in the cache folder). Without one, on other devices, and under fake tensors the same functions run as torch
operations, which torch.compile fuses where the plan says so (fusion.py).

Sizes: N tokens, D features, H heads, E features of a head, B documents of at most T tokens, Q queries, K keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from hfadapt.fast.compiled import assumed, is_fake, passes
from hfadapt.fast.fusion import fused

GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715
SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}


def available(tensor: torch.Tensor) -> bool:
    """Whether the kernels can work on this tensor."""
    other = assumed(tensor)
    there = passes() is not None if other is None else other.passes
    return tensor.device.type == "cpu" and tensor.dtype in SUFFIX and there


def _call(name: str, tensor: torch.Tensor, *arguments: Any) -> None:
    """Runs NAME_SUFFIX, the suffix by the tensor's dtype; tensors are given by address."""
    _run(f"{name}_{SUFFIX[tensor.dtype]}", tensor, *arguments)


def _run(name: str, tensor: torch.Tensor, *arguments: Any) -> None:
    if is_fake(tensor):
        return
    found = passes()
    assert found is not None
    plain = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
    getattr(found, name)(*plain, torch.get_num_threads())


# --- normalisation ---------------------------------------------------------------------------------------------------


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y = x / sqrt(mean x² + eps) · (weight + offset) for x (N, D), and the inverse root (N,) in float32."""
    if available(x):
        y, inverse = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float32)
        _call("rms_norm", x, x, weight, y, inverse, len(x), x.shape[1], float(eps), float(offset))
        return y, inverse
    return _rms_norm(x, weight, eps, offset)


@fused
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1) + eps)
    return (wide * inverse[:, None] * (weight.float() + offset)).to(x.dtype), inverse


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, offset: float
) -> torch.Tensor:
    """The gradient of x (N, D); the weight is frozen."""
    if available(x):
        dx = torch.empty_like(x)
        _call("rms_norm_backward", x, dy, x, weight, inverse, dx, len(x), x.shape[1], float(offset))
        return dx
    return _rms_norm_backward(dy, x, weight, inverse, offset)


@fused
def _rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, offset: float
) -> torch.Tensor:
    wide, r = x.float(), inverse[:, None]
    scaled = dy.float() * (weight.float() + offset)
    return (scaled * r - wide * r.pow(3) * (scaled * wide).mean(-1, keepdim=True)).to(x.dtype)


# --- gated activation ------------------------------------------------------------------------------------------------


def gated(g: torch.Tensor, u: torch.Tensor, gelu: bool) -> torch.Tensor:
    """act(g) · u, with SiLU or the tanh form of GELU."""
    if available(g):
        h = torch.empty_like(g)
        _call("gated", g, g, u, h, g.numel(), bool(gelu))
        return h
    return _gated(g, u, gelu)


@fused
def _gated(g: torch.Tensor, u: torch.Tensor, gelu: bool) -> torch.Tensor:
    wide = g.float()
    value = torch.nn.functional.gelu(wide, approximate="tanh") if gelu else torch.nn.functional.silu(wide)
    return (value * u).to(g.dtype)


def gated_backward(
    dh: torch.Tensor, g: torch.Tensor, u: torch.Tensor, gelu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """act(g) · u again, and the gradients of g and u; `dh` is overwritten."""
    if available(g):
        h, du = torch.empty_like(g), torch.empty_like(g)
        _call("gated_backward", g, dh, g, u, h, dh, du, g.numel(), bool(gelu))
        return h, dh, du
    return _gated_backward(dh, g, u, gelu)


@fused
def _gated_backward(
    dh: torch.Tensor, g: torch.Tensor, u: torch.Tensor, gelu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = g.float()
    if gelu:
        # g/2 · (1 + tanh t) with t = √(2/π) (g + 0.044715 g³).
        tanh = torch.tanh(GELU_SCALE * (wide + GELU_CUBE * wide**3))
        share = 0.5 * (1 + tanh)
        slope = share + 0.5 * wide * (1 - tanh * tanh) * GELU_SCALE * (1 + 3 * GELU_CUBE * wide**2)
    else:
        share = torch.sigmoid(wide)
        slope = share * (1 + wide * (1 - share))
    value = wide * share
    wide_dh, wide_u = dh.float(), u.float()
    return (value * wide_u).to(g.dtype), (wide_dh * wide_u * slope).to(g.dtype), (wide_dh * value).to(u.dtype)


# --- rotary positions ------------------------------------------------------------------------------------------------


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    """x (N, H, E) turned by cos and sin (N, E), or turned back; the last dimension of x must be contiguous."""
    if available(x):
        y = x.new_empty(x.shape)
        _call("rotary", x, x, x.stride(0), x.stride(1), cos, sin, y, *x.shape, bool(inverse))
        return y
    return _rotary(x, cos, sin, inverse)


@fused
def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    if inverse:
        turned = x * sin
        return x * cos + torch.cat((turned[..., half:], -turned[..., :half]), -1)
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


# --- attention -------------------------------------------------------------------------------------------------------


def pack(
    x: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, longest: int, dtype: torch.dtype
) -> torch.Tensor:
    """Documents out of x (N, H, E) as (B, H, T, E) in `dtype`, zero after each one's end.

    Args:
        starts, lengths: (B,) int64, the first token and the number of tokens of each document.
    """
    count, heads, size = len(starts), x.shape[1], x.shape[2]
    if available(x) and dtype in SUFFIX:
        y = x.new_empty((count, heads, longest, size), dtype=dtype)
        name = f"pack_{SUFFIX[x.dtype]}_{SUFFIX[dtype]}"
        _run(name, x, x, x.stride(0), x.stride(1), starts, lengths, y, count, heads, longest, size)
        return y
    tokens, inside = _tokens(starts.to(x.device), lengths.to(x.device), longest)
    y = x[tokens.clamp(max=len(x) - 1)].to(dtype) * inside[..., None, None].to(dtype)
    return y.transpose(1, 2).contiguous()


def unpack(x: torch.Tensor, y: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> None:
    """Writes documents (B, H, T, E) back to their tokens in y (N, H, E); other tokens of y are left alone."""
    count, heads, longest, size = x.shape
    if available(y) and x.dtype in SUFFIX:
        name = f"unpack_{SUFFIX[x.dtype]}_{SUFFIX[y.dtype]}"
        _run(name, x, x, y, y.stride(0), y.stride(1), starts, lengths, count, heads, longest, size)
        return
    tokens, inside = _tokens(starts.to(x.device), lengths.to(x.device), longest)
    y[tokens[inside]] = x.transpose(1, 2)[inside].to(y.dtype)


def _tokens(starts: torch.Tensor, lengths: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers (B, T) of documents, and whether each is inside its document."""
    positions = torch.arange(longest, device=starts.device)
    return starts[:, None] + positions, positions < lengths[:, None]


def softmax(
    scores: torch.Tensor, lengths: torch.Tensor, offset: int, scale: float, causal: bool, window: int
) -> torch.Tensor:
    """Probabilities in place of scores (B, H, Q, K); returns the log of the sums (B, H, Q).

    Query q of the block stands at position `offset` + q of its document. With `causal` it sees keys up to itself, with
    a `window` above 0 none further away than that. Queries after the document's end get zeros.
    """
    if available(scores):
        log_sum = scores.new_empty(scores.shape[:3], dtype=torch.float32)
        sizes = (*scores.shape, offset)
        _call("softmax", scores, scores, log_sum, lengths, *sizes, float(scale), bool(causal), window)
        return log_sum
    hidden = _hidden(scores, lengths, offset, causal, window)
    wide = (scores.float() * scale).masked_fill(hidden, -math.inf)
    log_sum = torch.logsumexp(wide, -1)
    log_sum = torch.where(torch.isfinite(log_sum), log_sum, torch.zeros_like(log_sum))
    scores.copy_(torch.exp(wide - log_sum[..., None]))
    return log_sum


def softmax_backward(  # noqa: PLR0913 - as the kernel takes them
    scores: torch.Tensor,
    gradients: torch.Tensor,
    log_sum: torch.Tensor,
    lengths: torch.Tensor,
    offset: int,
    scale: float,
    causal: bool,
    window: int,
) -> None:
    """In place: scores become probabilities again, gradients of probabilities become those of scores."""
    if available(scores):
        sizes = (*scores.shape, offset)
        arguments = (scores, gradients, log_sum, lengths, *sizes, float(scale), bool(causal), window)
        _call("softmax_backward", scores, *arguments)
        return
    hidden = _hidden(scores, lengths, offset, causal, window)
    p = torch.exp((scores.float() * scale).masked_fill(hidden, -math.inf) - log_sum[..., None])
    d = gradients.float()
    gradients.copy_(scale * p * (d - (p * d).sum(-1, keepdim=True)))
    scores.copy_(p)


def _hidden(scores: torch.Tensor, lengths: torch.Tensor, offset: int, causal: bool, window: int) -> torch.Tensor:
    queries = torch.arange(scores.shape[2], device=scores.device)[:, None] + offset
    keys = torch.arange(scores.shape[3], device=scores.device)[None]
    seen = keys <= queries if causal else torch.ones_like(keys <= queries)
    if window > 0:
        seen = seen & (queries - keys < window) & (keys - queries < window)
    ends = lengths.to(scores.device)[:, None, None]
    return ~(seen & (keys < ends) & (queries < ends))[:, None]


# --- loss ------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, gradient: bool) -> torch.Tensor:
    """Losses (N,) in float32 of logits (N, V); with `gradient`, the logits become the gradient of the summed loss."""
    if available(logits):
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        _call("cross_entropy", logits, logits, targets, losses, *logits.shape, bool(gradient))
        return losses
    return _cross_entropy(logits, targets, gradient)


@fused
def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, gradient: bool) -> torch.Tensor:
    wide = logits.float()
    log_sum = torch.logsumexp(wide, -1)
    losses = log_sum - wide.gather(1, targets[:, None])[:, 0]
    if gradient:
        p = torch.exp(wide - log_sum[:, None])
        if torch.compiler.is_compiling():
            columns = torch.arange(logits.shape[1], device=logits.device)
            p = torch.where(columns == targets[:, None], p - 1, p)
        else:
            p[torch.arange(len(targets), device=targets.device), targets] -= 1
        logits.copy_(p)
    return losses
