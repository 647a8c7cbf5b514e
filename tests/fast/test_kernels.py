"""The compiled kernels give what plain torch gives, in float32 and in bfloat16, and torch stands in without them."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hfadapt.core.errors import RequestError
from hfadapt.fast import compiled, kernels
from hfadapt.fast.limits import SWITCH

needs_kernels = pytest.mark.skipif(compiled.passes() is None, reason="no C++ compiler here")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
LENGTHS = torch.tensor([10, 7, 12])


def both(function, monkeypatch):
    """The result with the kernels, and with torch alone."""
    compiled = function()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "available", lambda tensor: False)
        plain = function()
    return compiled, plain


def same(compiled, plain, dtype):
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@needs_kernels
@DTYPES
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm(dtype, offset, monkeypatch):
    x, weight, dy = random(37, 70, dtype=dtype), random(70, dtype=dtype, seed=1), random(37, 70, dtype=dtype, seed=2)
    same(*both(lambda: kernels.rms_norm(x, weight, 1e-5, offset), monkeypatch), dtype)
    _, inverse = kernels.rms_norm(x, weight, 1e-5, offset)
    same(*both(lambda: [kernels.rms_norm_backward(dy, x, weight, inverse, offset)], monkeypatch), dtype)


def test_norm_backward_is_the_gradient():
    x = random(5, 16, dtype=torch.float32).requires_grad_()
    weight, dy = random(16, dtype=torch.float32, seed=1), random(5, 16, dtype=torch.float32, seed=2)
    torch.nn.functional.rms_norm(x, (16,), weight, 1e-5).backward(dy)
    _, inverse = kernels.rms_norm(x.detach(), weight, 1e-5, 0.0)
    torch.testing.assert_close(kernels.rms_norm_backward(dy, x.detach(), weight, inverse, 0.0), x.grad)


@needs_kernels
@DTYPES
@pytest.mark.parametrize("gelu", [False, True], ids=["silu", "gelu"])
def test_gate(dtype, gelu, monkeypatch):
    g, u, dh = (random(37, 100, dtype=dtype, seed=seed) * 3 for seed in range(3))
    same(*both(lambda: [kernels.gated(g, u, gelu)], monkeypatch), dtype)
    compiled, plain = both(lambda: kernels.gated_backward(dh.clone(), g, u, gelu), monkeypatch)
    for one, other in zip(compiled, plain, strict=True):
        assert (one - other).float().norm() <= 1e-2 * other.float().norm()


@needs_kernels
@DTYPES
def test_rotary_turns_and_turns_back(dtype, monkeypatch):
    x = random(37, 3, 2, 8, dtype=dtype)[:, 1]
    angle = random(37, 4, dtype=torch.float32, seed=1).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    for inverse in (False, True):
        same(*both(lambda inverse=inverse: [kernels.rotary(x, cos, sin, inverse)], monkeypatch), dtype)
    back = kernels.rotary(kernels.rotary(x, cos, sin, False), cos, sin, True)
    torch.testing.assert_close(back.float(), x.float(), rtol=0, atol=10 * TOLERANCE[dtype])


@needs_kernels
@pytest.mark.parametrize("source", TOLERANCE, ids=str)
@pytest.mark.parametrize("packed", TOLERANCE, ids=str)
def test_rows_are_packed_and_put_back(source, packed, monkeypatch):
    x, starts = random(31, 5, 8, dtype=source), torch.tensor([0, 10, 19])
    same(*both(lambda: [kernels.pack(x, starts, LENGTHS, 12, packed)], monkeypatch), torch.float32)

    def there_and_back():
        y = torch.full_like(x, 7)
        kernels.unpack(kernels.pack(x, starts, LENGTHS, 12, packed), y, starts, LENGTHS)
        return [y]

    (compiled,), (plain,) = both(there_and_back, monkeypatch)
    assert torch.equal(compiled, plain)
    assert (compiled[17:19] == 7).all(), "tokens outside the rows are left alone"
    inside = [*range(17), *range(19, 31)]
    torch.testing.assert_close(compiled[inside].float(), x[inside].to(packed).float())


@needs_kernels
@DTYPES
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("offset", [0, 4])
def test_softmax(dtype, causal, window, offset, monkeypatch):
    scores, d = random(3, 4, 8, 12, dtype=dtype), random(3, 4, 8, 12, dtype=dtype, seed=1)
    options = (LENGTHS, offset, 0.3, causal, window)

    def forward():
        p = scores.clone()
        return p, kernels.softmax(p, *options)

    compiled, plain = both(forward, monkeypatch)
    same(compiled, plain, dtype)
    inside = (torch.arange(8) + offset)[None] < LENGTHS[:, None]
    sums = compiled[0].float().sum(-1).transpose(1, 2)
    torch.testing.assert_close(sums[inside], torch.ones_like(sums[inside]), rtol=2e-2, atol=0)
    assert (sums[~inside] == 0).all()

    def backward():
        p, gradient = scores.clone(), d.clone()
        kernels.softmax_backward(p, gradient, compiled[1], *options)
        return p, gradient

    same(*both(backward, monkeypatch), dtype)


@needs_kernels
@DTYPES
def test_cross_entropy(dtype, monkeypatch):
    logits, targets = random(9, 501, dtype=dtype) * 3, torch.arange(9) * 50

    def work():
        given = logits.clone()
        return kernels.cross_entropy(given, targets, True), given

    compiled, plain = both(work, monkeypatch)
    same(compiled, plain, dtype)
    wanted = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(compiled[0], wanted, rtol=1e-5, atol=1e-5)


@needs_kernels
@settings(max_examples=200, deadline=None)
@given(st.floats(-87, 88, width=32))
def test_the_exponential_is_good_to_five_digits(x):
    """Through the softmax of two scores: p = 1 / (1 + exp(x - 0))."""
    scores = torch.tensor([[[[0.0, x]]]])
    kernels.softmax(scores, torch.tensor([2]), 0, 1.0, False, 0)
    wanted = 1 / (1 + math.exp(-x))
    assert scores[0, 0, 0, 1].item() == pytest.approx(wanted, rel=1e-5, abs=1e-38)


@needs_kernels
def test_what_is_not_a_number_stays_one():
    logits = torch.tensor([[1.0, math.nan, 0.0], [1.0, 2.0, 0.0]])
    losses = kernels.cross_entropy(logits, torch.tensor([0, 1]), True)
    assert losses[0].isnan()
    assert losses[1].isfinite()
    y, _ = kernels.rms_norm(torch.tensor([[math.nan, 1.0]]), torch.ones(2), 1e-5, 0.0)
    assert y.isnan().all()


def test_fake_tensors_pass_through_without_memory():
    with FakeTensorMode():
        x = torch.empty(4, 8)
        y, inverse = kernels.rms_norm(x, torch.empty(8), 1e-5, 0.0)
        assert y.shape == (4, 8)
        assert inverse.shape == (4,)
        assert kernels.pack(torch.empty(4, 2, 8), torch.zeros(1).long(), torch.ones(1).long(), 4, x.dtype).dim() == 4


@pytest.mark.parametrize("without", ["switched off", "no compiler", "a compiler that fails"])
def test_without_a_compiler_there_are_no_kernels_and_no_error(tmp_path, without):
    changes = {"switched off": {"HFADAPT_KERNELS": "off"}, "no compiler": {"PATH": str(tmp_path)}}
    changes["a compiler that fails"] = {"CXX": "/bin/false"}
    done = subprocess.run(
        [sys.executable, "-c", "from hfadapt.fast import compiled; print(compiled.passes())"],
        env={**os.environ, "HFADAPT_CACHE": str(tmp_path), **changes[without]},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_an_unknown_word_for_the_kernels_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "nonsense")
    with pytest.raises(RequestError, match="passes, off"):
        compiled.switch()
