"""Smaller models: what is left opens with plain transformers and answers as in memory, and texts are cut as before."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import PLAIN, labelled

from hfadapt.core.errors import RequestError
from hfadapt.models.smaller import narrowed, width_of
from hfadapt.student.shape import cut_ffn, drop_layers, layers_of
from hfadapt.student.vocabulary import cut_otherwise, kept_tokens, trim

TEXTS = [row["text"] for row in labelled(40)]


def opened(models, name: str, task: str):
    from hfadapt.models.base import BaseRef
    from hfadapt.models.load import load_base

    labels = () if task in ("causal-lm", "masked-lm") else ("bad", "good")
    return load_base(BaseRef(str(models / name), task, "none", "float32"), labels, torch.device("cpu"))


def batch(tokenizer, texts=TEXTS[:6]):
    found = tokenizer(list(texts), return_tensors="pt", padding=True)
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def again(base, folder):
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return type(base.model).from_pretrained(folder).eval()


CASES = [("encoder", "text-classification"), ("lm", "causal-lm"), ("lm-untied", "causal-lm"), ("mlm", "masked-lm")]


@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_is_cut_opens_with_plain_transformers(models, tmp_path, name, task) -> None:
    base = opened(models, name, task)
    base.model.eval()
    cut_ffn(base.model, narrowed(128, 0.5), [batch(base.tokenizer)])
    drop_layers(base.model, 1, [batch(base.tokenizer)])
    ids = {token for text in TEXTS for token in base.tokenizer(text)["input_ids"]}
    before, after = trim(base, ids)
    assert after < before
    assert (layers_of(base.model), width_of(base.model.config)) == (1, 64)
    inputs = batch(base.tokenizer)
    with torch.no_grad():
        here = base.model(**inputs).logits
        there = again(base, tmp_path)(**inputs).logits
    torch.testing.assert_close(here, there)


def test_units_that_do_nothing_are_the_first_to_go(models) -> None:
    base = opened(models, "encoder", "text-classification")
    base.model.eval()
    inputs = batch(base.tokenizer)
    with torch.no_grad():
        for layer in base.model.bert.encoder.layer:
            layer.output.dense.weight[:, 1::2] = 0
        before = base.model(**inputs).logits
        cut_ffn(base.model, 64, [inputs])
        torch.testing.assert_close(base.model(**inputs).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_smaller_vocabulary_changes_no_answer(models, name, task) -> None:
    base = opened(models, name, task)
    base.model.eval()
    old, before = base.tokenizer, batch(base.tokenizer)
    ids = {token for text in TEXTS for token in old(text)["input_ids"]}
    kept = kept_tokens(old, ids)
    with torch.no_grad():
        wanted = base.model(**before).logits
        trim(base, ids)
        found = base.model(**batch(base.tokenizer)).logits
    torch.testing.assert_close(found, wanted if task == "text-classification" else wanted[..., kept])
    assert cut_otherwise(old, base.tokenizer, old(TEXTS)["input_ids"], base.tokenizer(TEXTS)["input_ids"]) == 0
    for special in ("pad_token", "eos_token", "mask_token", "unk_token"):
        assert getattr(old, special) == getattr(base.tokenizer, special)


def test_texts_of_kept_tokens_are_always_cut_as_before(models) -> None:
    draw = random.Random(3)
    for name, task in (("lm", "causal-lm"), ("encoder", "text-classification")):
        base = opened(models, name, task)
        old = base.tokenizer
        words = draw.sample(PLAIN, 12)
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(200)]
        trim(base, {token for text in texts for token in old(text)["input_ids"]})
        assert cut_otherwise(old, base.tokenizer, old(texts)["input_ids"], base.tokenizer(texts)["input_ids"]) == 0
        # Anything else can still be said.
        assert base.tokenizer.decode(base.tokenizer("zq").input_ids, skip_special_tokens=True).strip() or name != "lm"


def test_what_cannot_be_cut_is_refused(models) -> None:
    base = opened(models, "encoder", "text-classification")
    with pytest.raises(RequestError, match="so many layers"):
        drop_layers(base.model, 3, [])
    from transformers import EfficientNetConfig, EfficientNetModel

    net = EfficientNetModel(EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=64))
    with pytest.raises(RequestError, match="layers"):
        drop_layers(net, 1, [])
