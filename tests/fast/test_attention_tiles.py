"""Attention on AMX tiles gives what dense attention in float32 gives for each document, and nothing leaks in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hfadapt.fast import attention
from hfadapt.fast.documents import Documents, packed_rows, padded_rows

pytestmark = pytest.mark.usefixtures("tiles")
TOLERANCE = 1.5e-2
"""Relative to the largest entry."""
HEADS = [(1, 1), (4, 4), (9, 3), (8, 1)]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
SHORT, LONG = (1, 2, 15, 16, 17, 31, 33, 64, 100), (300, 700)


def documents(lengths, padded):
    adapters = ["x"] * len(lengths)
    return padded_rows(lengths, max(lengths), adapters) if padded else packed_rows(lengths, adapters)


def inside(found: Documents) -> torch.Tensor:
    """Which tokens belong to a document."""
    tokens = torch.zeros(found.tokens, dtype=torch.bool)
    for start, length in zip(found.starts, found.lengths, strict=True):
        tokens[start : start + length] = True
    return tokens


def inputs(found, heads, key_heads, size, dtype, seed=0):
    """Queries, keys, values and the gradient of the result; NaN where no document is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(found.tokens, h, size) for h in (heads, key_heads, key_heads, heads)]
    made = [torch.randn(shape, generator=generator).to(torch.bfloat16).to(dtype) for shape in shapes]
    for x in made:
        x[~inside(found)] = torch.nan
    return made


def work(found, q, k, v, dout, causal=True, window=0, scale=None):
    """The result and the gradients of queries, keys and values."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    options = attention._Settings(found, scale, causal, window, torch.bfloat16)
    given = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention._Attention.apply(*given, options)
    return [out.detach(), *torch.autograd.grad(out, given, dout)]


def by_products(monkeypatch, *arguments, **options):
    """The same by torch's products of packed rows."""
    with monkeypatch.context() as patch:
        patch.setattr(attention, "_on_tiles", lambda *_: False)
        return work(*arguments, **options)


def dense(found, q, k, v, dout, causal=True, window=0, scale=None):
    """The same in float32, document by document; zero outside."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    results = [torch.zeros(x.shape) for x in (q, q, k, v)]
    for start, length in zip(found.starts, found.lengths, strict=True):
        span = slice(start, start + length)
        given = [x[span].float().detach().requires_grad_() for x in (q, k, v)]
        group = q.shape[1] // k.shape[1]
        qs, ks, vs = given[0], *(x.repeat_interleave(group, 1) for x in given[1:])
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window:
            seen = seen & (distance.abs() < window)
        scores = (torch.einsum("qhe,khe->hqk", qs, ks) * scale).masked_fill(~seen, -torch.inf)
        out = torch.einsum("hqk,khe->qhe", scores.softmax(-1), vs)
        gradients = torch.autograd.grad(out, given, dout[span].float())
        for result, part in zip(results, (out.detach(), *gradients), strict=True):
            result[span] = part
    return results


def error(found, one, other):
    """The largest difference in a document, relative to the largest entry."""
    where = inside(found)
    return ((one[where].float() - other[where].float()).abs().max() / other[where].abs().max()).item()


def check(found, given, **options):
    wanted = dense(found, *given, **options)
    for name, one, other in zip(("out", "dq", "dk", "dv"), work(found, *given, **options), wanted, strict=True):
        assert one.dtype == given[0].dtype
        assert error(found, one, other) < TOLERANCE, name
        if found.padded:
            assert (one[~inside(found)] == 0).all(), f"{name} is zero where no document is"


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *((size, torch.bfloat16) for size in (16, 32, 64, 80, 128)),
        *((size, torch.float32) for size in (32, 128)),
        *(pytest.param(size, torch.float32, marks=pytest.mark.slow) for size in (16, 64, 80)),
    ],
    ids=str,
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_short_documents(size, causal, padded, dtype):
    found = documents(SHORT, padded)
    for (heads, key_heads), window in itertools.product(HEADS, (0, 20)):
        check(found, inputs(found, heads, key_heads, size, dtype), causal=causal, window=window)


@pytest.mark.parametrize("window", [0, 50, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
def test_long_documents(heads, key_heads, causal, window):
    found = documents(LONG, False)
    check(found, inputs(found, heads, key_heads, 64, torch.bfloat16), causal=causal, window=window)


@pytest.mark.parametrize("window", [0, 50, 300])
@pytest.mark.parametrize("causal", [False, True])
def test_one_long_document_is_sliced_among_threads(causal, window):
    found, threads = documents([700], False), torch.get_num_threads()
    given = inputs(found, 3, 1, 32, torch.bfloat16)
    alone = work(found, *given, causal=causal, window=window)
    try:
        torch.set_num_threads(2)
        check(found, given, causal=causal, window=window)
        together = [work(found, *given, causal=causal, window=window) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for one, first, second in zip(alone, *together, strict=True):
        assert torch.equal(first, second)
        assert error(found, first, one.float()) < 1e-2


@DTYPES
def test_not_worse_than_products_of_packed_rows(dtype, monkeypatch):
    for lengths, size in ((SHORT, 64), (SHORT, 32), (LONG, 64)):
        found = documents(lengths, True)
        given = inputs(found, 9, 3, size, dtype)
        given = [torch.where(inside(found)[:, None, None], x, 0) for x in given]
        wanted = dense(found, *given)
        for one, other, right in zip(work(found, *given), by_products(monkeypatch, found, *given), wanted, strict=True):
            assert (one.float() - right).norm() <= 1.5 * (other.float() - right).norm()


def test_strides():
    found = documents(SHORT, False)
    q, k, v, dout = inputs(found, 9, 3, 64, torch.bfloat16)
    wanted = work(found, q, k, v, dout)
    joined = torch.cat([q, k, v], 1)
    views = joined.split([9, 3, 3], 1)
    by_heads = dout.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(x.is_contiguous() for x in (*views, by_heads))
    for one, other in zip(work(found, *views, by_heads), wanted, strict=True):
        assert torch.equal(one[inside(found)], other[inside(found)])


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_outside_a_document_matters(causal):
    found = documents((17, 40, 33), False)
    given = inputs(found, 4, 2, 32, torch.bfloat16)
    wanted = work(found, *given, causal=causal)
    for x in given:
        x[found.starts[1] : found.starts[2]] = torch.nan
    others = [*range(17), *range(57, 90)]
    for one, other in zip(work(found, *given, causal=causal), wanted, strict=True):
        assert torch.isfinite(one[others]).all()
        assert torch.equal(one[others], other[others])


def test_mixed_dtypes():
    """Rotary positions of a float32 model widen queries and keys, not values."""
    found = documents(SHORT, True)
    q, k, v, dout = inputs(found, 4, 4, 32, torch.float32)
    results = work(found, q, k, v.to(torch.bfloat16), dout)
    assert [x.dtype for x in results] == [torch.float32] * 3 + [torch.bfloat16]
    for one, other in zip(results, dense(found, q, k, v, dout), strict=True):
        assert error(found, one, other) < TOLERANCE


def test_large_scores_do_not_overflow():
    found = documents((50, 300), False)
    q, k, v, dout = inputs(found, 3, 1, 64, torch.bfloat16)
    results = work(found, q * 100, k * 100, v, dout, scale=1.0)
    assert all(torch.isfinite(x[inside(found)]).all() for x in results)
    where = inside(found)
    right = dense(found, q * 100, k * 100, v, dout, scale=1.0)[0]
    assert ((results[0] - right)[where].abs().amax(-1) > 0.1).float().mean() < 1e-2


def test_other_sizes_and_dtypes_fall_back():
    found = documents((5, 20), False)
    for size, dtype in ((24, torch.bfloat16), (32, torch.float32)):
        q, k, v, _ = inputs(found, 2, 2, size, torch.float32)
        options = attention._Settings(found, 1.0, True, 0, dtype)
        assert not attention._on_tiles(q, k, v, options)


def test_fake_tensors_have_the_same_sizes():
    found = documents(SHORT, True)
    with FakeTensorMode():
        q, k = torch.empty(found.tokens, 9, 64, dtype=torch.bfloat16), torch.empty(found.tokens, 3, 64).bfloat16()
        results = work(found, q, k, k, q)
    assert [x.shape for x in results] == [q.shape, q.shape, k.shape, k.shape]
