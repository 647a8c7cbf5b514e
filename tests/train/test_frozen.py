"""Kept outputs of frozen layers stand for running these again: to the bit where the batches have the same shapes, to
within rounding where they have others, and never where they cannot."""

from __future__ import annotations

import math
import random
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import labelled, make_lock, make_loop, pairs, same_weights, stop_after, train, uneven

from hfadapt.fast import packed_rows, padded_rows
from hfadapt.train import frozen
from hfadapt.train.frozen import FrozenCache, frozen_layers
from hfadapt.train.trial import Trial

KINDS = {
    "last layer of a language model": ("lm", "causal-lm", "lora", pairs),
    "last layer of an encoder": ("encoder", "text-classification", "lora", labelled),
    "head of an encoder": ("encoder", "text-classification", "head", labelled),
    "head of a language model": ("lm-untied", "causal-lm", "head", pairs),
}


def lock_of(models, kind, keep, **more):
    name, task, method, _ = KINDS[kind]
    fast = {**more.pop("fast", {}), "frozen_cache": keep}
    settings = {"train__max_steps": 12, "train__evaluate_every_steps": 4, "train__micro_batch_rows": 3, **more}
    return make_lock(models / name, task, adapter__method=method, adapter__layers=1, train__fast=fast, **settings)


class Listener:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def __getattr__(self, name):
        return lambda *_, **__: None


ROUNDING = 2 * 128 * 2.0**-24
"""A matrix product of another shape may add up its terms in another order, by the processor and its library. A sum of K
float32 terms then differs by 2 K 2^-24 of their sizes at most; K is 128 in these models. Errors of several layers and
steps have either sign: together they stay far below what one sum could have (seen in losses: 2e-7)."""


def same_but_for_rounding(one, other):
    """Losses of all steps and validations to within `ROUNDING`; weights to what Adam makes of it: it divides a gradient
    by its own size, so that a share d of the values, those below d of the largest, may go any way in a step. On average
    over a tensor that is sqrt(2 d) of a step."""
    step = one.job.settings.learning_rate * one.state.step * math.sqrt(2 * ROUNDING)
    for line, same in zip(one.lines, other.lines, strict=True):
        assert line.keys() == same.keys()
        for name in line.keys() & {"loss", "validation_loss"}:
            assert line[name] == pytest.approx(same[name], rel=ROUNDING)
    for name, weights in one.weights.items():
        assert (weights - other.weights[name]).square().mean().sqrt() <= step, name


def alone(monkeypatch):
    """Every row in a batch of its own, in training as where rows are collected: the same shapes."""
    monkeypatch.setattr("hfadapt.train.passes.micro_batches", lambda rows, *_, **__: [[row] for row in rows])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_outputs_change_no_bit_in_batches_of_the_same_shape(models, tmp_path, monkeypatch, kind, packing):
    alone(monkeypatch)
    rows, held = KINDS[kind][3](30), KINDS[kind][3](7, seed=1)
    found = [
        train(lock_of(models, kind, keep, data__packing=packing), tmp_path / str(keep), rows, held)
        for keep in (False, True)
    ]
    assert [one.loop.frozen_layers for one in found] == [0, 2 if "head" in kind else 1]
    assert found[0].lines == found[1].lines
    assert same_weights(found[0].weights, found[1].weights)
    assert not list((tmp_path / "True").glob("*.bin")), "the file is gone with the training"


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_outputs_change_nothing_but_rounding(models, tmp_path, kind, packing):
    rows, held = KINDS[kind][3](30), KINDS[kind][3](7, seed=1)
    found = [
        train(lock_of(models, kind, keep, data__packing=packing), tmp_path / str(keep), rows, held)
        for keep in (False, True)
    ]
    assert [one.loop.frozen_layers for one in found] == [0, 2 if "head" in kind else 1]
    same_but_for_rounding(*found)


@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_without_the_fast_path_and_with_dropout_and_checkpointing(models, tmp_path, kind):
    rows, held = KINDS[kind][3](20), KINDS[kind][3](7, seed=1)
    for number, more in enumerate(
        (
            {"fast": dict.fromkeys(("low_rank", "attention", "norms", "gates", "rotary", "loss", "bfloat16"), False)},
            {"adapter__dropout": 0.2},
            {"train__checkpointing": True},
            {"quant": "nf4"},
        )
    ):
        found = [
            train(lock_of(models, kind, keep, **more), tmp_path / f"{number}{keep}", rows, held)
            for keep in (False, True)
        ]
        assert found[1].loop.frozen_layers == 1
        same_but_for_rounding(*found)


def test_each_row_goes_through_frozen_layers_once(models, tmp_path):
    """30 rows for training and 7 for validation; the check on both paths before step 1 runs a few more."""
    tokens = []
    trained = make_loop(
        lock_of(models, "last layer of a language model", True, data__packing=False), tmp_path, uneven(30), uneven(7, 1)
    )
    (layer,) = frozen_layers(trained.model)
    layer.mlp.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[:2]))
    loop = trained.loop
    checked = len({id(row.example) for row in Trial(loop.passes, loop.jobs, loop.progress).check_rows()})
    trained.loop.run()
    rows = sum(shape[0] for shape in tokens)
    # One by one on the plain path, together on the fast one, and again beside the kept outputs.
    assert 37 <= rows <= 37 + 3 * checked
    assert trained.job.state.step == 12


@pytest.mark.parametrize("step", [1, 7])
def test_interrupted_and_resumed_equals_uninterrupted(models, tmp_path, step):
    lock = lock_of(models, "last layer of a language model", True, train__checkpoint_every_steps=4, dtype="bfloat16")
    rows, held = uneven(20), uneven(6, seed=1)
    whole = train(lock, tmp_path / "whole", rows, held)
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", rows, held, stop=stop_after(step))
    assert not list((tmp_path / "parts").glob("*.bin"))
    parts = train(lock, tmp_path / "parts", rows, held)
    assert parts.state.resumed_from_step == step
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


def test_the_time_before_step_1_is_not_taken_for_a_steps(models, tmp_path, monkeypatch):
    """Or the time left would be what collecting took, times the steps that are left."""
    write, clock, late = frozen._write, time.perf_counter, [0]

    def slow(*arguments):
        late[0] += 1000
        write(*arguments)

    monkeypatch.setattr("hfadapt.train.trial.time.perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(frozen, "_write", slow)
    trained = train(lock_of(models, "last layer of an encoder", True), tmp_path, labelled(20), labelled(5, 1))
    state = trained.state
    assert late[0] == 25_000, "a write for each row"
    assert 25_000 <= state.frozen_seconds < state.seconds
    assert state.seconds - state.frozen_seconds < 1000
    assert state.frozen_tokens == sum(trained.job.lengths)
    trained.job.total_steps += 1
    assert trained.job.seconds_per_step * state.step == pytest.approx(state.seconds - state.frozen_seconds)


def test_an_interruption_while_rows_are_collected_ends_at_once(models, tmp_path):
    trained = make_loop(lock_of(models, "last layer of an encoder", True), tmp_path, labelled(20))
    trained.loop.interrupted = lambda: True
    with pytest.raises(KeyboardInterrupt):
        trained.loop.run()
    assert trained.job.state.step == 0
    assert not list(tmp_path.glob("*.bin"))
    again = train(lock_of(models, "last layer of an encoder", True), tmp_path, labelled(20))
    assert again.state.step == 12


# --- where they are not kept -----------------------------------------------------------------------------------------


def refused(trained):
    """What the loop says, after it has trained as it would without."""
    listener = Listener()
    trained.loop.progress = listener
    trained.loop.run()
    assert trained.loop.frozen_layers == 0
    assert trained.job.state.step == trained.job.total_steps
    first, said = (text for text in listener.said if "frozen" in text)
    assert "20 rows go through them once" in first
    return said


def test_nothing_is_kept_that_depends_on_what_is_trained(models, tmp_path):
    lock = lock_of(models, "last layer of a language model", True)
    trained = make_loop(lock, tmp_path, pairs(20))
    trained.model.get_input_embeddings().weight.requires_grad_(True)
    assert "something is trained before them" in refused(trained)


def test_outputs_that_give_another_loss_are_not_used(models, tmp_path, monkeypatch):
    lock = lock_of(models, "last layer of an encoder", True)
    plain = train(lock_of(models, "last layer of an encoder", False), tmp_path / "plain", labelled(20))
    monkeypatch.setattr(frozen, "_read", lambda file, tensor: tensor.fill_(3.0))
    trained = make_loop(lock, tmp_path / "kept", labelled(20))
    assert "the loss is another" in refused(trained)
    assert same_weights(trained.weights, plain.weights)


def test_a_full_disk_is_said_and_training_goes_on(models, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1_000)))
    trained = make_loop(lock_of(models, "last layer of an encoder", True), tmp_path, labelled(20))
    assert "of disk are needed, 1000 B are free" in refused(trained)


def test_no_layer_is_frozen_where_all_are_adapted_or_lists_are_two(models, tmp_path):
    trained = make_loop(make_lock(models / "lm"), tmp_path, pairs(8))
    assert frozen_layers(trained.model) == []
    block = torch.nn.Linear(2, 2).requires_grad_(False)
    both = torch.nn.ModuleDict({name: torch.nn.ModuleList([block, block]) for name in ("encoder", "decoder")})
    assert frozen_layers(both) == []


# --- the file --------------------------------------------------------------------------------------------------------


class Double(torch.nn.Module):
    def forward(self, x):
        return (2 * x,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_rows_come_back_as_they_went_in_whatever_they_stand_beside(tmp_path, seed, dtype):
    """Rows of any length, written in some batches and read in others: in one line, or side by side with padding."""
    draw = random.Random(seed)
    rows = {100 + i: torch.randn(draw.randint(1, 9), 5).to(dtype) for i in range(draw.randint(1, 12))}
    layers = [Double(), Double()]
    model = torch.nn.Sequential(*layers)

    def placed(keys, line):
        lengths = [len(rows[key]) for key in keys]
        documents = (
            packed_rows(lengths, ["a"] * len(keys)) if line else padded_rows(lengths, max(lengths), ["a"] * len(keys))
        )
        flat = torch.full((documents.tokens, 5), 7.0, dtype=dtype)
        for key, start, length in zip(keys, documents.starts, documents.lengths, strict=True):
            flat[start : start + length] = rows[key]
        return documents, flat.view(1 if line else len(keys), -1, 5)

    def batches():
        order = draw.sample(list(rows), len(rows))
        while order:
            count = draw.randint(1, len(order))
            yield order[:count], draw.random() < 0.5
            order = order[count:]

    def run(x):
        for layer in model:
            (x,) = layer(x) if not isinstance(x, tuple) else layer(x[0])
        return x

    cache = FrozenCache(layers, {key: len(row) for key, row in rows.items()}, tmp_path)
    with cache.on(first=True, wait=lambda: None):
        for keys, line in batches():
            documents, x = placed(keys, line)
            cache.collect(keys, documents, lambda x=x: run(x))
        for keys, line in batches():
            documents, x = placed(keys, line)
            with cache.given(keys, documents, torch.device("cpu")):
                found = run(torch.zeros_like(x)).view(-1, 5)
            for key, start, length in zip(keys, documents.starts, documents.lengths, strict=True):
                assert torch.equal(found[start : start + length], 4 * rows[key])
            if line:
                assert not found[sum(documents.lengths) :].any(), "padding"
        assert torch.equal(run(x), 4 * x), "without rows being given the layers run as always"
    assert not list(tmp_path.iterdir())
    assert torch.equal(run(x), 4 * x)


def test_layers_that_give_on_more_than_a_vector_for_each_token(tmp_path):
    documents = SimpleNamespace(tokens=3, starts=(0,), lengths=(3,))

    class Two(torch.nn.Module):
        def forward(self, x):
            return x, x

    class Shorter(torch.nn.Module):
        def forward(self, x):
            return x[:, ::2]

    for layer, words in ((Two(), "more than one tensor"), (Shorter(), "one vector for each token")):
        cache = FrozenCache([layer], {1: 3}, tmp_path)
        with cache.on(first=True, wait=lambda: None), pytest.raises(NotImplementedError, match=words):
            cache.collect([1], documents, lambda layer=layer: layer(torch.ones(1, 3, 4)))
    cache = FrozenCache([Two()], {1: 3}, tmp_path)
    with cache.on(first=True, wait=lambda: None), pytest.raises(NotImplementedError, match="one after the other"):
        cache.collect([1], documents, lambda: None)
