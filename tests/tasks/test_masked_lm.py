"""Hidden words: which, how often, the same again; perplexity as transformers has it; long texts; whole runs."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GOOD, PLAIN, command, make_lock, make_tokenizer, recipe_fields, write_recipe
from tiny import write_rows as write

from hfadapt.core.errors import RequestError
from hfadapt.evaluate.metrics.rows import compare
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import pieces, token_ids
from hfadapt.models.base import BaseRef
from hfadapt.models.load import check_base, load_base
from hfadapt.run_folder import Cell
from hfadapt.tasks.causal_lm.task import KIND as LM
from hfadapt.tasks.masked_lm.task import AS_MASK, KIND, NO_WORD, SHARE
from hfadapt.train.batches import padded

TOKENIZER = make_tokenizer(mask=True)
HOW = {"resamples": 50, "confidence": 0.95, "seed": 1}
SPELT = "unbelievable gramophone"
CPU = torch.device("cpu")


def cell(folder):
    return Cell(folder / "runs/tiny/one/this-machine")


def record(folder, name):
    return json.loads((cell(folder).folder / name).read_text())


def rows_of(texts):
    return [{"text": text, "source": "s", "row": number} for number, text in enumerate(texts)]


def texts(count, words=40, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices([*PLAIN, *GOOD, "unbelievable"], k=words)) for _ in range(count)]


def encoded(rows, max_length=64):
    return KIND.encode(rows, TOKENIZER, max_length=max_length)


def original(example):
    pairs = zip(token_ids(example), example.labels, strict=True)
    return [token if label == IGNORED else label for token, label in pairs]


def epoch(rows, number, seed=17):
    return KIND.in_epoch(rows, encoded(rows), TOKENIZER, (seed, number))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([*PLAIN, "unbelievable", "gramophone", "!"]), min_size=1, max_size=30), st.integers(0, 3)
)
def test_whole_words_are_hidden_and_nothing_is_lost(words, number):
    rows = rows_of([" ".join(words)])
    (example,) = epoch(rows, number)
    assert original(example) == TOKENIZER(rows[0]["text"])["input_ids"][:64]
    places = [at for at, label in enumerate(example.labels) if label != IGNORED]
    chosen = {example.inputs["words"][at] for at in places}
    assert places
    assert NO_WORD not in chosen
    assert places == [at for at, word in enumerate(example.inputs["words"]) if word in chosen]
    longest = max(Counter(example.inputs["words"]).values())
    assert len(places) <= max(longest, round(SHARE * example.size))


def test_so_many_are_hidden_and_become_the_mask():
    found = epoch(rows_of(texts(200)), 0)
    hidden = [(token, label) for e in found for token, label in zip(token_ids(e), e.labels, strict=True) if label >= 0]
    assert len(hidden) / sum(e.size for e in found) == pytest.approx(SHARE, abs=0.02)
    masks = np.mean([token == TOKENIZER.mask_token_id for token, _ in hidden])
    same = np.mean([token == label for token, label in hidden])
    assert masks == pytest.approx(AS_MASK, abs=0.04)
    assert same == pytest.approx(0.1, abs=0.04)


def test_epochs_differ_and_come_again_whatever_else_is_in_them():
    rows = rows_of(texts(20))
    assert epoch(rows, 0) == epoch(rows, 0)
    assert epoch(rows[::-1], 1)[::-1][3].labels == epoch(rows, 1)[3].labels
    for other in (epoch(rows, 1), epoch(rows, 0, seed=18)):
        assert sum(a.labels != b.labels for a, b in zip(epoch(rows, 0), other, strict=True)) > 15
    assert encoded(rows) == encoded(rows), "what is scored stays the same"


def test_the_loss_is_that_of_transformers(models):
    base = load_base(make_lock(models / "mlm", "masked-lm"), (), CPU)
    examples = KIND.encode(rows_of(texts(9)), base.tokenizer, max_length=48)
    scores = KIND.score(base.model, examples, lambda e: padded(KIND, e, base.pad_token_id, CPU, 4))
    for number, example in enumerate(examples):
        batch = KIND.collate([example], base.pad_token_id)
        with torch.no_grad():
            loss = float(base.model(**batch).loss)
        assert scores.losses[number] / scores.tokens[number] == pytest.approx(loss, rel=1e-4)
    whole = scores.losses.sum() / scores.tokens.sum()
    metric = compare("perplexity", None, scores, **HOW)
    assert metric.adapter == pytest.approx(np.exp(whole))
    assert metric.adapter_low < metric.adapter < metric.adapter_high


@pytest.mark.parametrize("task", [KIND, LM], ids=["masked", "causal"])
@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.sampled_from([*PLAIN, SPELT, "x" * 60, "\n"]), max_size=60), most=st.integers(9, 40))
def test_long_texts_are_pieces_that_fit_and_hold_every_word(task, words, most):
    row = {"text": " ".join(words), "source": "s", "row": 3}
    parts = task.fitted(row, TOKENIZER, most)
    assert "".join("".join(part["text"].split()) for part in parts) == "".join(row["text"].split())
    assert all(not example.truncated for example in task.encode(parts, TOKENIZER, max_length=most))
    assert all((part["source"], part["row"]) == ("s", 3) for part in parts)
    assert [again for part in parts for again in task.fitted(part, TOKENIZER, most)] == parts


def test_pieces_end_between_words():
    parts = pieces(" ".join(["music", "unbelievable"] * 20), TOKENIZER, 16)
    assert len(parts) > 5
    assert {word for part in parts for word in part.split()} == {"music", "unbelievable"}


def test_a_base_without_the_layer_is_refused_with_a_way_out(models):
    ref = BaseRef(str(models / "encoder"), "masked-lm", "none", "float32")
    with pytest.raises(RequestError, match="no output layer of BertForMaskedLM") as caught:
        check_base(ref)
    assert "cls.predictions" in str(caught.value)
    assert "pretrain" in str(caught.value)


def test_end_to_end_with_long_texts(models, tmp_path):
    write(tmp_path / "one.jsonl", [{"text": text} for text in texts(60, words=90)])
    fields = recipe_fields(models / "mlm", "masked-lm", data__max_length=48)
    fields |= {"train": {"batch_rows": 16, "epochs": 3, "learning_rate": 0.01}}
    done = command("run", write_recipe(tmp_path / "tiny.yaml", fields), folder=tmp_path)
    assert done.code == 0, done.err
    data, (metric,) = record(tmp_path, "data.json"), record(tmp_path, "evaluation.json")["metrics"]
    assert data["steps"]["fit"]["parted"] == 60
    assert data["lengths"]["train"]["longest"] <= 48
    documents = [{(row["source"], row["row"]) for row in cell(tmp_path).read_split(split)} for split in data["splits"]]
    assert sum(map(len, documents)) == len(set.union(*documents)) == 60, "documents keep in one split"
    assert metric["name"] == "perplexity"
    assert metric["high"] < 0, "it has learned something"
    assert record(tmp_path, "train.json")["augmented_rows"] == []
    assert "masked-lm" not in done.err
    predicted = command("predict", "runs/tiny", "music <|user|> water", "no mask", "", folder=tmp_path)
    assert predicted.code == 1
    assert "a blank text" in predicted.err
    assert len(predicted.out.splitlines()) == 2
    again = command("run", "tiny.yaml", folder=tmp_path)
    assert "kept" in again.err
