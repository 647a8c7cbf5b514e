"""Bytes by part, and what of an answer's arithmetic is products with weights."""

from __future__ import annotations

import pytest
import torch
from families import family

from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_base
from hfadapt.student.parts import parts, shape_of


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # 160 tokens, 64 positions and 2 kinds of text; a pooler and a norm; a head of two classes.
        ("bert", {"embeddings": 226 * 32, "head": 66, "other": 33 * 32 + 64}),
        # The output layer is the embedding.
        ("llama", {"embeddings": 160 * 32, "head": 0, "other": 32}),
        # And here it is one of its own.
        ("qwen2", {"embeddings": 160 * 32, "head": 160 * 32, "other": 32}),
    ],
)
def test_every_parameter_belongs_to_one_part(name, wanted) -> None:
    model = family(name)
    found = {each.name: each.parameters for each in parts(model)}
    assert {part: found[part] for part in wanted} == wanted
    assert sum(found.values()) == sum(each.numel() for each in model.parameters())
    assert sum(each.bytes for each in parts(model.half())) == 2 * sum(found.values())


@pytest.mark.parametrize(("name", "task"), [("encoder", "text-classification"), ("lm-untied", "causal-lm")])
def test_products_with_weights_are_those_of_the_linear_layers(models, name, task) -> None:
    labels = ("bad", "good") if task == "text-classification" else ()
    base = load_base(BaseRef(str(models / name), task, "none", "float32"), labels, torch.device("cpu"))
    length, found = 16, shape_of(base, task, 16)
    layers = {path: each for path, each in base.model.named_modules() if isinstance(each, torch.nn.Linear)}
    once = [each.weight.numel() for path, each in layers.items() if path in ("classifier", "bert.pooler.dense")]
    assert found.multiply_adds["linear"] == (
        sum(each.weight.numel() for each in layers.values()) * length - sum(once) * (length - 1)
    )
    # Queries with keys and weights with values: two layers of 64 features.
    assert found.multiply_adds["attention"] == pytest.approx(2 * 2 * length * length * 64, rel=0.01)
    assert found.integer_share == pytest.approx(
        1 - 2 * 2 * length**2 * 64 / sum(found.multiply_adds.values()), rel=0.01
    )


def test_a_model_that_reads_no_table_has_a_shape(hearing) -> None:
    """wav2vec2 says nothing of its input embeddings."""
    base = load_base(
        BaseRef(str(hearing / "wave"), "audio-classification", "none", "float32"), ("a", "b"), torch.device("cpu")
    )
    found = shape_of(base, "audio-classification", 16_000)
    assert found.tokens is None
    assert found.parameters == sum(each.numel() for each in base.model.parameters())
