"""torch.compile in the fast path: fused passes give what the plain path gives."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny import make_lock, pairs, same_weights, stop_after, train

from hfadapt.fast import FastPath, compiled, fusion, kernels

from .test_path import GROUPED, alone, close, make, packed, rows

pytestmark = pytest.mark.skipif(compiled.passes() is None, reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    for function in fusion.FUSED:
        function.compiled = None
    yield
    for function in fusion.FUSED:
        function.compiled = None


@pytest.fixture
def no_kernels(monkeypatch):
    """As on a GPU, where the passes have no kernels of hfadapt's own."""
    monkeypatch.setattr(kernels, "passes", lambda: None)


def compiled_names():
    return {function.plain.__name__ for function in fusion.FUSED if function.is_compiled}


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma", marks=pytest.mark.slow)])
def test_fused_passes_give_the_plain_loss_and_gradients(kind, no_kernels):
    model = make(kind, {**GROUPED, "head_dim": 8}, "AutoModelForCausalLM")
    examples = rows()
    loss, reference = alone(model, examples)
    path = FastPath(model, compile=True)
    with path.on():
        assert (path.norms, path.gates) == (5, 2)
        assert not compiled_names()
        fast_loss, fast = packed(model, examples, path)
        wanted = {"_rms_norm", "_rms_norm_backward", "_gated", "_gated_backward", "_cross_entropy"}
        assert wanted | ({"_rotary"} if path.rotary else set()) == compiled_names()
        assert "elementwise kernels by torch.compile" in path.summary(packed=True, in_pieces=True)
        # Another number of tokens: nothing is compiled again.
        once = fusion.compile_seconds()
        packed(model, rows((30, 9)), path)
        assert fusion.compile_seconds() == once
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    close(fast, reference, 2e-5)


def test_kernels_are_not_compiled_again():
    path = FastPath(make("llama", GROUPED, "AutoModelForCausalLM"), compile=True)
    with path.on():
        packed(path.model, rows(), path)
        assert not compiled_names()
        assert "torch.compile" not in path.summary(packed=True, in_pieces=True)


@pytest.mark.slow
def test_training_with_fused_passes_goes_on_as_it_was(models, tmp_path, no_kernels):
    """What is resumed equals what was not interrupted."""
    settings = {"train__fast": {"compile": True}, "train__checkpoint_every_steps": 2, "train__max_steps": 5}
    whole = train(make_lock(models / "lm", **settings), tmp_path / "whole", pairs(40), pairs(6, seed=1))
    assert "elementwise kernels by torch.compile" in whole.loop.path
    plain = train(make_lock(models / "lm", train__max_steps=5), tmp_path / "plain", pairs(40))
    assert whole.losses == pytest.approx(plain.losses, rel=1e-4)
    with pytest.raises(KeyboardInterrupt):
        train(make_lock(models / "lm", **settings), tmp_path / "part", pairs(40), pairs(6, seed=1), stop=stop_after(3))
    resumed = train(make_lock(models / "lm", **settings), tmp_path / "part", pairs(40), pairs(6, seed=1))
    assert resumed.losses == whole.losses
    assert same_weights(resumed.weights, whole.weights)


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_what_cannot_be_compiled_runs_as_it_is_written(monkeypatch, in_a_thread):
    """Also in the threads in which a GPU's backward pass runs."""

    def refuse(*arguments, **options):
        raise RuntimeError("no compiler here")

    # Two functions: torch.compile remembers which code it could not compile.
    function = fusion.Fused((lambda x: x * 2) if in_a_thread else (lambda x: x + x))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    found = []

    def work():
        found.append(function(torch.ones(3)).tolist())

    with fusion.fusing():
        if in_a_thread:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        else:
            work()
    assert found == [[2.0, 2.0, 2.0]]
    assert not function.is_compiled
