"""Sentence encoders whose vectors go through linear layers after the pooling, and those that are half of a model: the
vectors are those of sentence-transformers, before and after training, in every form that comes out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny import NO_CHECKS, command, make_tokenizer, questions, recipe_fields, write_recipe, write_rows
from tokenizers.processors import TemplateProcessing

from hfadapt import load_adapted
from hfadapt.core.errors import RequestError
from hfadapt.modalities.text import KIND as TEXT
from hfadapt.run_folder import Cell
from hfadapt.tasks.embedding.sentence import Sentence

TEXTS = ["a lovely bright film", "bright film", "dull stone " * 60]
library = pytest.importorskip("sentence_transformers", reason="extra dev")


@pytest.fixture(scope="module")
def layered(models, tmp_path_factory):
    """A base as sentence-transformers saves it, with two linear layers."""
    from sentence_transformers import models as parts

    torch.manual_seed(0)
    plain = shutil.copytree(models / "encoder", tmp_path_factory.mktemp("plain") / "encoder")
    (plain / "chat_template.jinja").unlink()  # sentence-transformers would put every text into it.
    read = parts.Transformer(str(plain), max_seq_length=64)
    first = parts.Dense(64, 96, activation_function=torch.nn.Tanh())
    second = parts.Dense(96, 48, bias=False, activation_function=torch.nn.Identity())
    whole = library.SentenceTransformer(
        modules=[read, parts.Pooling(64, "cls"), first, second, parts.Normalize()],
        prompts={"query": "the meal: ", "document": ""},
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("layered") / "base"
    whole.save_pretrained(str(folder))
    return folder


def trained(folder, model, **more):
    """A cell of a few steps."""
    pairs = [{"query": row["anchor"], "passage": row["positive"]} for row in questions(120)]
    write_rows(folder / "one.jsonl", pairs)
    checks = {**NO_CHECKS, "drift": True, "drift_limits": {"kl_nats": 1e3, "points": 1e3}, "resamples": 100}
    fields = recipe_fields(model, "embedding", dtype="float32", evaluate=checks, **more)
    fields["train"] |= {"max_steps": 12, "batch_rows": 16, "learning_rate": 0.002}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.fixture(scope="module")
def cell(layered, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"), layered)


def vectors(folder, texts=TEXTS):
    """Each text by itself, as one that is looked for."""
    adapted = load_adapted(folder)
    return np.array([adapted.predict(text)[0].vector for text in texts])


def test_before_training_they_are_those_of_the_base(layered):
    from transformers import AutoModel

    from hfadapt.tasks.embedding.task import KIND

    tokenizer = TEXT.load_processor(str(layered), None)
    sentence = Sentence.of(tokenizer)
    assert [(each.inputs, each.outputs, each.bias, each.activation) for each in sentence.dense] == [
        (64, 96, True, "Tanh"),
        (96, 48, False, "Identity"),
    ]
    (example,) = KIND.encode([{"anchor": TEXTS[0], "positive": TEXTS[1]}], tokenizer, max_length=64)
    model = AutoModel.from_pretrained(layered).eval()
    with torch.no_grad():
        ours = torch.nn.functional.normalize(KIND.label_logits(model, KIND.collate([example], 0)), dim=-1)
    theirs = library.SentenceTransformer(str(layered), device="cpu")
    expected = [theirs.encode_query(TEXTS[0]), theirs.encode_document(TEXTS[1])]
    torch.testing.assert_close(ours, torch.tensor(np.stack(expected)), rtol=1e-4, atol=1e-5)


def test_a_run_learns_through_them_and_says_so(cell):
    assert cell.train.final_loss < cell.train.first_loss
    card = (cell.folder / "README.md").read_text()
    assert "2_Dense" in card
    assert vectors(cell.folder).shape == (3, 48)


@pytest.mark.parametrize("form", ["merged", "onnx"])
def test_what_is_exported_has_them(cell, tmp_path, form):
    variant = {"merged": "merged-float32", "onnx": "float32"}[form]
    done = command("export", cell.folder, "--format", form, "--variant", variant, "--to", "out", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(cell.folder), rtol=1e-3, atol=1e-4)
    if form == "merged":
        opened = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
        np.testing.assert_allclose(opened.encode_query(TEXTS), vectors(cell.folder), rtol=1e-3, atol=1e-4)


def test_a_student_pools_as_its_teacher(layered, tmp_path):
    cell = trained(tmp_path, layered, student={"layers": 1, "limit": 100})
    base = Cell(cell.folder / "student/one/this-machine").lock.base
    assert base is not None
    made = Sentence.of(TEXT.load_processor(base.folder, None))
    asked = Sentence.of(TEXT.load_processor(str(layered), None))
    assert made == asked
    assert made.pooling == "cls"


def _without_weights(folder):
    (folder / "2_Dense/model.safetensors").unlink()


def _of_another_size(folder):
    shutil.copy(folder / "3_Dense/model.safetensors", folder / "2_Dense/model.safetensors")


def _with(key, value):
    def change(folder):
        path = folder / "2_Dense/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def _damaged(folder):
    (folder / "2_Dense/model.safetensors").write_bytes(b"of a disk that was full")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_without_weights, "save it anew"),
        (_of_another_size, "(48, 96)"),
        (_damaged, "cannot be read"),
        (_with("activation_function", "own.module.Swish"), "Swish"),
        (_with("module_input_name", "token_embeddings"), "token_embeddings"),
    ],
)
def test_layers_that_cannot_be_used_are_refused(layered, tmp_path, change, found):
    folder = shutil.copytree(layered, tmp_path / "base")
    change(folder)
    with pytest.raises(RequestError) as caught:
        Sentence.of(TEXT.load_processor(str(folder), None))
    assert found in str(caught.value)


def test_of_a_model_that_reads_and_writes_the_half_that_reads_is_adapted(tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    size = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    transformers.T5Model(transformers.T5Config(**size, **ids)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    cell = trained(tmp_path, "./base")
    card = (cell.folder / "README.md").read_text()
    assert "AutoModelForTextEncoding" in card
    done = command(
        "export", cell.folder, "--format", "merged", "--variant", "merged-float32", "--to", "out", folder=tmp_path
    )
    assert done.code == 0, done.out + done.err
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(cell.folder), rtol=1e-3, atol=1e-4)
    opened = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(opened.encode(TEXTS), vectors(cell.folder), rtol=1e-3, atol=1e-4)
