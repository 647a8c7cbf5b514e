"""Operations of tuning: against the published formula, and against what torch counts."""

from __future__ import annotations

import pytest
from tiny import loss_sum, make_lock, make_loop, pairs

from hfadapt.models.facts import model_facts
from hfadapt.plan.compute import base_compute, tuning_compute


def compute(lock, tokens, labels, trained, mean, hub_id=None):
    return tuning_compute(
        model_facts(lock.model, lock.task, 2),
        lock,
        tokens=tokens,
        labelled_tokens=labels,
        trained_parameters=trained,
        mean_tokens=mean,
        hub_id=hub_id,
    )


@pytest.mark.parametrize(
    ("method", "checkpointing", "layers"),
    [
        ("lora", False, 2),
        ("lora", True, 2),
        ("full", False, 2),
        ("lora", False, 1),
        ("lora", True, 1),
        ("head", False, 2),
    ],
)
def test_the_formula_is_what_torch_counts(models, tmp_path, method, checkpointing, layers):
    """One step over rows of one length, with the operations of all matrix products counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    lock = make_lock(
        models / ("lm-untied" if method == "head" else "lm"),
        adapter__method=method,
        adapter__layers=layers,
        train__checkpointing=checkpointing,
        train__fast=False,
    )
    loop = make_loop(lock, tmp_path, pairs(8))
    model, task = loop.model, loop.loop.task
    batch = task.collate(loop.job.train, 0)
    width = int(batch["attention_mask"].sum(1).min())
    # Rows of one length, so that padding is not counted.
    batch = {name: tensor[:, :width] for name, tensor in batch.items()}
    batch["labels"] = batch["input_ids"].clone()
    model.train()
    if layers == 2 and method == "lora":
        # The formula has the gradient of every layer's input.
        model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        loss, labels = loss_sum(task, model, batch)
        loss.backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = compute(lock, batch["input_ids"].numel(), labels, trained, width).tuning_flops
    # The first adapted layer's q, k and v have no gradient of their input, which the formula leaves in: a layer of two.
    assert found == pytest.approx(counter.get_total_flops(), rel=0.08 if layers == 2 else 0.1)


def test_checkpointing_costs_half_as_much_again(models):
    plain, again = (make_lock(models / "lm", train__checkpointing=on) for on in (False, True))
    first, second = (compute(lock, 1000, 1, 0, 0.0).tuning_flops for lock in (plain, again))
    head = 4 * 512 * 64
    assert (second - head) == pytest.approx(1.5 * (first - head))


def test_kept_outputs_of_frozen_layers_are_counted_once(models):
    lock = make_lock(models / "lm", adapter__layers=1)
    facts = model_facts(lock.model, lock.task, 2)
    every, once = (
        tuning_compute(
            facts, lock, tokens=3000, labelled_tokens=1, trained_parameters=0, mean_tokens=0.0, frozen_tokens=passed
        )
        for passed in (None, 1000)
    )
    assert every.tuning_flops - once.tuning_flops == 2 * facts.linear_parameters // 2 * 2000
    assert "1,000 tokens x 2 x" in once.how


def test_a_published_base_and_its_tuned_versions():
    flops, source = base_compute("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert flops == 6 * 134_515_008 * 2e12
    assert "2T tokens" in source
    assert base_compute("HuggingFaceTB/SmolLM2-135M")[0] == flops
    assert base_compute("sentence-transformers/all-MiniLM-L6-v2") is None, "nobody says, so nothing is made up"


def test_every_entry_names_its_source():
    from hfadapt.plan.compute import _bases

    for name, entry in _bases().items():
        assert "https://" in entry["source"], name
        assert 6 * entry["parameters"] * entry["tokens"] > 1e20
