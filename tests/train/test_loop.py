"""The training loop: what must not change the result, and what must stop it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import chats, labelled, make_lock, make_loop, pairs, questions, same_weights, stop_after, train, uneven
from transformers import AutoTokenizer

from hfadapt.core.errors import DataError, RunError
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import text_example, token_ids
from hfadapt.models.attach import trainable
from hfadapt.recipe.fast import FAST_PARTS
from hfadapt.tasks.embedding.sentence import Sentence

MODULES = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
STORES = ("none", "int8", "nf4", "fp4")


# --- float16 ---------------------------------------------------------------------------------------------------------


def test_float16_learns_what_float32_learns(models, tmp_path, monkeypatch):
    """Gradients are scaled so that they do not vanish; with a loss that is weighted by 1e-7 they would."""
    settings = {"train__max_steps": 4, "train__learning_rate": 1e-3, "train__max_grad_norm": 1e9}

    def small(*arguments, **options):
        trained = make_loop(*arguments, **options)
        # As if a batch had ten million labels more.
        plain = trained.loop.passes.loss
        monkeypatch.setattr(
            *(trained.loop.passes, "loss"),
            lambda micro, weights: plain(micro, {k: w * 1e-7 for k, w in weights.items()}),
        )
        return trained

    def norms(name, scaled=True, **more):
        trained = small(make_lock(models / "lm", **settings, **more), tmp_path / name, pairs(48))
        if not scaled:
            monkeypatch.setattr(type(trained.loop.passes), "products", lambda passes: torch.float32)
        trained.loop.run()
        return [line["grad_norm"] for line in trained.lines if "loss" in line]

    wide, half = norms("wide"), norms("half", dtype="float16")
    assert half == pytest.approx(wide, rel=0.1)
    with pytest.raises(RunError, match="zero gradient"):
        norms("unscaled", scaled=False, dtype="float16")


def test_gradients_that_overflow_are_worked_out_again_with_a_smaller_scale(models, tmp_path):
    settings = {"dtype": "float16", "train__max_steps": 4}
    plain = train(make_lock(models / "lm", **settings), tmp_path / "plain", pairs(32))
    high = make_loop(make_lock(models / "lm", **settings), tmp_path / "high", pairs(32))
    high.job.state.loss_scale = 2.0**40
    high.loop.run()
    assert 1 < high.job.state.loss_scale < 2.0**30
    losses = [line["loss"] for line in high.lines if "loss" in line]
    assert losses == pytest.approx(plain.losses, rel=2e-3)
    assert len(losses) == 4, "no step is left out"


def test_a_gradient_that_is_never_finite_ends_the_training(models, tmp_path, monkeypatch):
    trained = make_loop(make_lock(models / "lm", dtype="float16", train__max_steps=2), tmp_path, pairs(32))
    next(iter(trained.job.parameters.values())).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(RunError, match="gradient of step 1 is not finite"):
        trained.loop.run()
    assert trained.job.state.loss_scale == 1


# --- evaluation changes nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", [pytest.param(q, marks=pytest.mark.slow) if q == "fp4" else q for q in STORES])
@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_evaluating_between_steps_changes_no_bit(models, tmp_path, task, quant, fast):
    name, rows, held = {
        "causal-lm": ("lm", pairs(48), pairs(9, seed=1)),
        "text-classification": ("encoder", labelled(48), labelled(9, seed=1)),
    }[task]
    dtype = "bfloat16" if quant != "none" else "float32"
    settings = {"quant": quant, "dtype": dtype, "train__max_steps": 6, "train__fast": fast}
    never = train(make_lock(models / name, task, **settings), tmp_path / "never", rows)
    always = train(
        make_lock(models / name, task, **settings, train__evaluate_every_steps=1), tmp_path / "always", rows, held
    )
    assert always.losses == never.losses
    assert same_weights(always.weights, never.weights)
    assert len(set(never.losses)) == 6, "nothing was learned, so the comparison says nothing"
    assert sum("validation_loss" in line for line in always.lines) == 6


@pytest.mark.parametrize("part", FAST_PARTS)
def test_training_without_one_fast_part_is_the_same_training(models, tmp_path, part):
    of_encoder = (models / "encoder", "text-classification"), labelled(32)
    model, rows = of_encoder if part == "first_token" else ((models / "lm",), pairs(32))
    whole = train(make_lock(*model), tmp_path / "whole", rows)
    fewer = train(make_lock(*model, train__fast={part: False}), tmp_path / "fewer", rows)
    assert fewer.losses == pytest.approx(whole.losses, rel=1e-4)
    words = {
        "low_rank": "LoRA layers",
        "attention": "attention inside rows",
        "norms": "norms",
        "gates": "gated activations",
        "rotary": "rotary positions",
        "first_token": "last layer for the first token",
        "loss": "loss on labelled positions",
    }
    gone = {word for word in words.values() if word in whole.loop.path and word not in fewer.loop.path}
    assert words[part] in gone
    assert gone <= {words[part], *({"gated activations"} if part == "low_rank" else {"packed sequences"})}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_last_layer_leaves_out_only_tokens_that_are_not_read(models, tmp_path, pooling):
    encoder = tmp_path / "encoder"
    shutil.copytree(models / "encoder", encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    Sentence(pooling=pooling).write(encoder, 64, 32)
    assert Sentence.of(tokenizer).pooling == pooling
    found = {}
    for first in (True, False):
        lock = make_lock(encoder, "embedding", adapter__modules=MODULES, train__fast={"first_token": first})
        found[first] = train(lock, tmp_path / str(first), questions(24), labels=())
    assert ("last layer for the first token" in found[True].loop.path) == (pooling == "cls")
    assert found[True].losses == pytest.approx(found[False].losses, rel=1e-4)


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_evaluation_leaves_the_four_bit_weights_as_they_are(models, tmp_path, quant):
    trained = make_loop(make_lock(models / "lm", quant=quant), tmp_path, pairs(16), pairs(4, seed=1))
    layers = [module for module in trained.base.model.modules() if type(module).__name__ == "Linear4bit"]
    stored = [layer.weight.detach().clone() for layer in layers]
    assert layers
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers)
    trained.loop.validation_loss(trained.job)
    assert all(torch.equal(layer.weight, before) for layer, before in zip(layers, stored, strict=True))
    assert trained.model.training, "validation left the model in evaluation mode"


def test_dropout_is_the_same_with_and_without_evaluation(models, tmp_path):
    settings = {"adapter__dropout": 0.3}
    torch.manual_seed(1)
    never = train(make_lock(models / "lm", **settings), tmp_path / "never", pairs(32))
    torch.manual_seed(2)
    always = train(
        make_lock(models / "lm", **settings, train__evaluate_every_steps=1), tmp_path / "always", pairs(32), pairs(8, 1)
    )
    plain = train(make_lock(models / "lm"), tmp_path / "plain", pairs(32))
    assert always.losses == never.losses
    assert same_weights(always.weights, never.weights)
    assert plain.losses != never.losses, "no dropout took place"


@pytest.mark.parametrize("task", ["causal-lm", "text-classification"])
def test_dropout_belongs_to_rows_and_not_to_batches(models, tmp_path, task):
    """In one line, padded, and in other micro-batches a row loses the same values."""
    name, rows = ("lm", pairs(32)) if task == "causal-lm" else ("encoder", labelled(32))
    settings = {"adapter__dropout": 0.3, "train__max_steps": 3}
    found = [
        train(make_lock(models / name, task, **settings, **way), tmp_path / str(i), rows)
        for i, way in enumerate([{}, {"data__packing": False}, {"train__micro_batch_rows": 3}])
    ]
    without = train(make_lock(models / name, task, train__max_steps=3), tmp_path / "without", rows)
    for other in found[1:]:
        assert other.losses == pytest.approx(found[0].losses, rel=1e-5)
        for key, tensor in found[0].weights.items():
            torch.testing.assert_close(other.weights[key], tensor, rtol=1e-3, atol=1e-5)
    assert without.losses != pytest.approx(found[0].losses, rel=1e-4), "no dropout took place"


def test_training_draws_nothing_from_the_callers_random_state(models, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(make_lock(models / "lm", adapter__dropout=0.3), tmp_path, pairs(16))
    assert torch.equal(torch.rand(3), expected)


# --- accumulation and normalisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [uneven, pairs], ids=["uneven labels", "even labels"])
@pytest.mark.parametrize("micro", [1, 3, 5])
def test_accumulated_equals_at_once(models, tmp_path, rows, micro):
    settings = {"train__max_steps": 5, "train__batch_rows": 8}
    data, held = rows(24), rows(6, seed=1)
    at_once = train(make_lock(models / "lm", **settings), tmp_path / "one", data, held)
    parts = train(make_lock(models / "lm", **settings, train__micro_batch_rows=micro), tmp_path / "parts", data, held)
    assert parts.losses == pytest.approx(at_once.losses, rel=2e-6)
    norms = [[line["grad_norm"] for line in trained.lines if "loss" in line] for trained in (parts, at_once)]
    assert norms[0] == pytest.approx(norms[1], rel=2e-5)
    assert parts.state.best_loss == pytest.approx(at_once.state.best_loss, rel=2e-6)


def test_the_loss_is_the_mean_over_all_labelled_tokens(models, tmp_path):
    """Against a reference that knows nothing of micro-batches: one row at a time, summed, divided once."""
    lock = make_lock(models / "lm", train__max_steps=1, train__micro_batch_rows=2)
    trained = make_loop(lock, tmp_path, uneven(8))
    total, labels = 0.0, 0
    with torch.no_grad():
        for example in trained.job.train:
            logits = trained.model(input_ids=torch.tensor([token_ids(example)])).logits[0, :-1].double()
            targets = torch.tensor(example.labels[1:])
            total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
            labels += int((targets != IGNORED).sum())
    trained.loop.run()
    assert trained.losses[0] == pytest.approx(total / labels, rel=1e-6)
    assert trained.lines[0]["labelled_tokens"] == labels


def test_messages_train_on_assistant_turns(models, tmp_path):
    trained = train(make_lock(models / "lm", data__max_length=96), tmp_path, chats(16))
    assert all(math.isfinite(loss) for loss in trained.losses)
    assert trained.state.labelled_tokens < trained.state.tokens


def test_gradient_checkpointing_changes_nothing(models, tmp_path):
    plain = train(make_lock(models / "lm"), tmp_path / "plain", pairs(20))
    again = train(make_lock(models / "lm", train__checkpointing=True), tmp_path / "again", pairs(20))
    assert again.losses == plain.losses
    assert same_weights(again.weights, plain.weights)


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_the_fast_path_learns_the_same(models, tmp_path, quant):
    plain = train(make_lock(models / "lm", quant=quant, train__fast=False), tmp_path / "plain", pairs(20))
    fast = train(make_lock(models / "lm", quant=quant), tmp_path / "fast", pairs(20))
    assert fast.losses == pytest.approx(plain.losses, rel=1e-4 if quant == "none" else 2e-3)


def test_products_in_bfloat16_change_nothing_between_evaluations_and_resumes(models, tmp_path):
    options = {"products": torch.bfloat16}
    never = train(make_lock(models / "lm"), tmp_path / "never", pairs(20), **options)
    lock = make_lock(models / "lm", train__evaluate_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "always", pairs(20), pairs(5, seed=1), stop=stop_after(2), **options)
    always = train(lock, tmp_path / "always", pairs(20), pairs(5, seed=1), **options)
    assert always.losses == never.losses
    assert same_weights(always.weights, never.weights)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_eight_bit_optimizers_train_and_resume(models, tmp_path, optimizer):
    lock = make_lock(models / "lm", train__optimizer=optimizer, train__max_steps=5, adapter__rank=64)
    whole = train(lock, tmp_path / "whole", pairs(20))
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", pairs(20), stop=stop_after(3))
    parts = train(lock, tmp_path / "parts", pairs(20))
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_and_comes_down(models, tmp_path, schedule):
    lock = make_lock(
        models / "lm", train__max_steps=20, train__warmup_ratio=0.2, train__schedule=schedule, train__learning_rate=1e-2
    )
    job = make_loop(lock, tmp_path, pairs(8)).job
    rates = [job.learning_rate(step) for step in range(1, 21)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert max(rates) == pytest.approx(1e-2)
    assert min(rates) > 0
    later = rates[4:]
    if schedule == "constant":
        assert later == [1e-2] * 16
    else:
        assert later == sorted(later, reverse=True)
        assert later[-1] < 1e-3


def test_without_warm_up_the_first_step_is_at_the_full_rate(models, tmp_path):
    job = make_loop(make_lock(models / "lm", train__warmup_ratio=0.0), tmp_path, pairs(8)).job
    assert job.learning_rate(1) == 3e-3


def test_steps_follow_from_epochs_unless_they_are_given(models, tmp_path):
    by_epochs = make_loop(make_lock(models / "lm", train__max_steps=None, train__epochs=1.5), tmp_path, pairs(20)).job
    assert (by_epochs.steps_per_epoch, by_epochs.total_steps) == (3, 5)
    assert make_loop(make_lock(models / "lm", train__max_steps=11), tmp_path, pairs(20)).job.total_steps == 11


# --- guards ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_the_last_good_state_is_kept(models, tmp_path):
    lock = make_lock(models / "lm", train__max_steps=6)
    trained = make_loop(lock, tmp_path, pairs(20))
    good = {}

    def poison():
        if trained.job.state.step == 2:
            good.update(trained.weights)
            trained.base.model.model.layers[1].mlp.down_proj.base_layer.weight.data[0, 0] = float("nan")
        return False

    trained.loop.stop = poison
    with pytest.raises(RunError, match="loss of step 3 is not finite") as caught:
        trained.loop.run()
    assert "train.learning_rate" in str(caught.value)
    assert same_weights(trained.weights, good)
    again = make_loop(lock, tmp_path, pairs(20))
    again.loop.stop = stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        again.loop.run()
    assert again.job.state.resumed_from_step == 2
    uninterrupted = train(make_lock(models / "lm", train__max_steps=6), tmp_path / "whole", pairs(20))
    assert again.losses == uninterrupted.losses[:3]


def test_a_gradient_that_is_not_finite_stops(models, tmp_path):
    trained = make_loop(make_lock(models / "lm"), tmp_path, pairs(20))
    next(iter(trained.job.parameters.values())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match="gradient of step 1 is not finite"):
        trained.loop.run()


def test_a_frozen_adapter_is_refused(models, tmp_path):
    trained = make_loop(make_lock(models / "lm"), tmp_path, pairs(20))
    trained.model.requires_grad_(False)
    with pytest.raises(RunError, match="nothing is trainable"):
        replace(trained.job, parameters=trainable(trained.model))


def test_an_adapter_outside_the_graph_is_an_error_in_the_first_step(models, tmp_path):
    trained = make_loop(make_lock(models / "lm"), tmp_path, pairs(20))
    trained.job.parameters["stray.lora_A"] = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(RunError, match=r"1 of \d+ trained tensors got no gradient in step 1") as caught:
        trained.loop.run()
    assert "stray.lora_A" in str(caught.value)


@pytest.mark.parametrize(("share", "step"), [(1.0, 1), (0.7, 2)])
def test_gradients_of_zero_are_an_error_within_two_steps(models, tmp_path, share, step):
    trained = make_loop(make_lock(models / "lm"), tmp_path, pairs(20))
    parameters = list(trained.job.parameters.values())
    for parameter in parameters[: int(len(parameters) * share)]:
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(RunError, match=rf"zero gradient in step {step}"):
        trained.loop.run()


def test_a_batch_without_labels_is_refused(models, tmp_path):
    trained = make_loop(make_lock(models / "lm", train__batch_rows=4), tmp_path, pairs(8))
    trained.job.train = [
        text_example(token_ids(e), (IGNORED,) * len(e.labels), length=e.length, row=e.row) for e in trained.job.train
    ]
    trained.job.__post_init__()
    with pytest.raises(DataError, match="step 1 has no label to learn from"):
        trained.loop.run()


def test_no_rows_are_refused(models, tmp_path):
    with pytest.raises(DataError, match="no training rows"):
        make_loop(make_lock(models / "lm"), tmp_path, [])


def test_the_log_has_a_line_for_every_step(models, tmp_path):
    trained = train(make_lock(models / "lm", train__evaluate_every_steps=2), tmp_path, pairs(20), pairs(4, seed=1))
    assert [line["step"] for line in trained.lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in trained.lines if "validation_loss" in line] == [2, 4]
    assert sum(line["tokens"] for line in trained.lines if "loss" in line) == trained.state.tokens
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["seconds"] > 0


def test_a_base_with_values_that_are_no_numbers_is_told_from_a_rate_that_is_too_high(models, tmp_path):
    made = make_loop(make_lock(models / "lm"), tmp_path, pairs(16))
    with torch.no_grad():
        next(p for p in made.model.parameters() if not p.requires_grad).fill_(float("nan"))
    with pytest.raises(RunError, match="loss of step 1 is not finite") as caught:
        made.loop.run()
    assert "copy it again" in str(caught.value)
