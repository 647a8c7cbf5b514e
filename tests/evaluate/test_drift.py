"""Merge drift: exact where it must be, seen where it is, refused above the limit, and the context stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import command, labelled, make_lock, pairs, recipe_fields, write_recipe, write_rows

from hfadapt.core.progress import Silent
from hfadapt.evaluate.context import open_context
from hfadapt.evaluate.drift import Form, Reference, _too_far, forms, measure
from hfadapt.evaluate.metrics.rows import find
from hfadapt.models.merge import open_merged
from hfadapt.records.evidence import Variant
from hfadapt.records.stages import Metric
from hfadapt.run_folder import Cell

CPU = torch.device("cpu")


def trained(folder, model, task, rows, **fields):
    write_rows(folder / "one.jsonl", rows)
    fields = {"train": {"batch_rows": 8, "max_steps": 12, "learning_rate": 0.01}, **fields}
    write_recipe(folder / "tiny.yaml", recipe_fields(model, task, **fields))
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cls")
    return trained(folder, models / "encoder", "text-classification", labelled(100), dtype="float32")


@pytest.fixture(scope="module")
def chooser(models, tmp_path_factory):
    more = {"quant": "nf4", "dtype": "bfloat16"}
    return trained(tmp_path_factory.mktemp("lm"), models / "lm", "causal-lm", pairs(100), **more)


def bench_of(cell, **changes):
    context = open_context(cell, CPU, Silent())
    limits = context.lock.evaluate.drift_limits.model_copy(update=changes)
    evaluate = context.lock.evaluate.model_copy(update={"drift_limits": limits})
    context.lock = context.lock.model_copy(update={"evaluate": evaluate})
    return context


def by_name(record):
    return {variant.name: variant for variant in record.variants}


def test_a_merge_in_float32_is_the_adapter(classifier):
    context = bench_of(classifier)
    before = context.score(context.test).probabilities
    weights = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    record = measure(context)
    found = by_name(record)
    assert set(found) == {"adapter-bfloat16", "merged-bfloat16", "merged-float32", "merged-nf4", "merged-int8"}
    assert found["merged-float32"].max_logit_difference < 1e-4
    assert found["merged-float32"].kl_nats < 1e-8
    assert found["merged-float32"].delta == 0
    assert 1e-8 < found["merged-bfloat16"].kl_nats < found["merged-nf4"].kl_nats, "4 bits lose more than 16"
    assert found["merged-nf4"].max_logit_difference > 1e-3
    assert (record.rows, record.labels, record.reference) == (
        24,
        24,
        "the adapter on the base in float32, as it was trained",
    )
    assert np.array_equal(context.score(context.test).probabilities, before), "the context is as it was"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in context.model.state_dict().items())
    assert not list(classifier.folder.glob(".drift-*"))


def test_kl_is_that_of_the_formula(classifier):
    """Against the definition, with scipy, on logits made here."""
    from scipy.special import rel_entr, softmax

    context = bench_of(classifier)
    reference = Reference(context, context.test)
    merged = open_merged(context.lock, context.data.labels, classifier.adapter, "float32", CPU).model
    with torch.no_grad():
        merged.classifier.weight.mul_(0.5)
    scores, kl, most = reference.compared(merged, CPU)
    p, q = context.score(context.test).probabilities, scores.probabilities
    assert kl == pytest.approx(float(rel_entr(p, q).sum(-1).mean()), rel=1e-4)
    assert kl > 1e-4
    assert most > 1e-3
    assert np.allclose(softmax(np.log(q), -1), q)


def test_what_is_above_a_limit_is_refused_with_a_sentence(classifier):
    record = measure(bench_of(classifier, kl_nats=0.0))
    assert "merged-nf4" in record.refused
    assert "nats per label, the limit is 0" in record.refused["merged-nf4"]
    assert measure(bench_of(classifier, kl_nats=10.0, points=100.0)).refused == {}


def test_of_few_rows_one_may_change_as_in_exports(classifier):
    """16 rows: the smallest change there is, is 6.25 points."""
    lock, metric = classifier.lock, find("accuracy")
    variant = Variant.model_construct(name="x", kl_nats=0.0, spreads=None, low=-0.1, high=0.0)
    for rows, count in ((1, 0), (2, 1)):
        result = Metric.model_construct(name="accuracy", rows=16, base=1.0)
        why = _too_far(variant.model_copy(update={"delta": -rows / 16}), metric, result, lock)
        assert bool(why) == count
    assert why is not None
    assert why.endswith("16 rows), the limit is 6.25")


def test_an_adapter_of_a_4_bit_base_on_other_weights(chooser):
    context = bench_of(chooser)
    before = context.score(context.test).losses
    record = measure(context)
    found = by_name(record)
    assert list(found) == [
        "adapter-bfloat16",
        "merged-bfloat16",
        "merged-dequantised-bfloat16",
        "merged-nf4",
        "merged-dequantised-float32",
    ]
    assert record.labels == 48, "an answer and its end, of 24 rows"
    original, unpacked = found["merged-bfloat16"], found["merged-dequantised-bfloat16"]
    assert unpacked.kl_nats < original.kl_nats / 3, "the adapter was trained on the weights that 4 bits stand for"
    assert found["merged-nf4"].kl_nats > found["merged-dequantised-float32"].kl_nats
    assert found["merged-nf4"].metric == "label_accuracy"
    assert np.array_equal(context.score(context.test).losses, before)


def test_merging_never_goes_into_4_bit_weights(chooser):
    """The unpacked base is the 4-bit base, weight for weight, before the update is added."""
    context = open_context(chooser, CPU, Silent())
    merged = open_merged(context.lock, (), chooser.adapter, "float32", CPU, dequantised=True).model
    layer = context.model.base_model.model.model.layers[0].self_attn.q_proj
    from bitsandbytes.functional import dequantize_4bit

    stored = layer.base_layer.weight
    expected = dequantize_4bit(stored.data, stored.quant_state).float() + layer.get_delta_weight("default").float()
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("quant", "dtype", "method", "names"),
    [
        ("none", "bfloat16", "lora", ["merged-bfloat16", "merged-float32"]),
        ("none", "float16", "lora", ["merged-float16", "merged-float32"]),
        ("none", "float32", "full", ["merged-bfloat16", "merged-float32"]),
        (
            "int8",
            "float32",
            "lora",
            [
                "adapter-bfloat16",
                "merged-bfloat16",
                "merged-dequantised-bfloat16",
                "merged-int8",
                "merged-dequantised-float32",
            ],
        ),
    ],
)
def test_which_forms_there_are(models, quant, dtype, method, names):
    lock = make_lock(models / "lm", quant=quant, dtype=dtype, adapter__method=method)
    found, skipped = forms(lock, 1000, ())
    assert [form.name for form in found] == names
    if quant == "none":
        assert set(skipped) == {"merged-nf4", "merged-int8"}
    found, skipped = forms(lock, 7_000_000_000, ("nf4", "int8"))
    assert "parameters" in str(skipped) or (quant, dtype) == ("int8", "float32"), "large: only what was asked for"
    assert Form("nf4", True).name == "merged-nf4"


@pytest.mark.parametrize(
    ("quant", "method"),
    [
        ("int8", "lora"),
        ("none", "dora"),
        *(pytest.param("none", method, marks=pytest.mark.slow) for method in ("head", "full")),
    ],
)
def test_every_storage_and_method_merges(models, tmp_path, quant, method):
    more = {"quant": quant, "dtype": "float32", "adapter": {"method": method}}
    cell = trained(tmp_path, models / "encoder", "text-classification", labelled(80), **more)
    found = by_name(measure(bench_of(cell)))
    exact = found["merged-dequantised-float32" if quant == "int8" else "merged-float32"]
    assert exact.max_logit_difference < (0.05 if quant == "int8" else 1e-4)
