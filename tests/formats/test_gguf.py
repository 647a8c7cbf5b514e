"""GGUF files, as llama.cpp itself runs them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from cells import trained
from gguf import GGUFWriter
from language_models import configured
from tiny import labelled
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.gguf import models
from hfadapt.export.write import export
from hfadapt.formats import _llama_cpp, gguf
from hfadapt.formats._llama_cpp import LlamaCpp
from hfadapt.formats.gguf import write_gguf
from hfadapt.tasks.causal_lm.task import KIND

TEXT = "Lovely day in 2024, isn't it?"


@pytest.fixture(scope="module")
def lm(models):
    return AutoModelForCausalLM.from_pretrained(models / "lm").eval(), AutoTokenizer.from_pretrained(models / "lm")


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory):
    """A cell whose model chooses between two words."""
    template = {"prompt": "{text} :", "completion": " {label}"}
    checks = {"resamples": 200, "drift_limits": {"kl_nats": 100.0, "points": 100.0}}
    return trained(
        tmp_path_factory.mktemp("lm"),
        models / "lm",
        "causal-lm",
        labelled(100),
        evaluate=checks,
        dtype="bfloat16",
        template=template,
    )


def test_llama_cpp_answers_as_transformers_do(lm, tmp_path):
    model, tokenizer = lm
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "float32", "a")
    run = LlamaCpp(tmp_path / "a.gguf", model.config, 128)
    rows = [{"prompt": "lovely day :", "completion": " good film"}, {"prompt": f"{TEXT} :", "completion": " bad"}]
    batch = KIND.collate(KIND.encode(rows, tokenizer, max_length=64), tokenizer.pad_token_id)
    with torch.inference_mode():
        own = KIND.label_logits(model, batch).log_softmax(-1)
        found = KIND.label_logits(run, batch)
    assert found.shape == own.shape == (5, 512)
    assert torch.allclose(found, own, atol=0.01)
    ids = tokenizer(TEXT)["input_ids"]
    assert torch.equal(run.following(TEXT), run.following(ids))
    with torch.inference_mode():
        written = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert run.written(ids, 6) == tokenizer.decode(written, skip_special_tokens=True)


def test_tokens_that_are_not_named_share_the_rest(lm, tmp_path, monkeypatch):
    model, tokenizer = lm
    write_gguf(model, tokenizer, tmp_path / "a.gguf", "float32", "a")
    run = LlamaCpp(tmp_path / "a.gguf", model.config, 128)
    whole = run.following(TEXT)
    monkeypatch.setattr(_llama_cpp, "NAMED", 100)
    part = run.following(TEXT)
    likely = whole.topk(100).indices
    assert torch.allclose(part[likely], whole[likely])
    assert float(part.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert len(part.unique()) <= 101


@pytest.mark.parametrize(
    "variant", [None, "merged-float32", "merged-float16", "merged-q8_0", "merged-q5_1", "merged-q4_k_m", "merged-q4_0"]
)
def test_every_form_is_run_by_llama_cpp(cell, tmp_path, variant):
    done = export(cell, "gguf", tmp_path / "out", variant=variant, force=True)
    record = done.record
    assert record.runtime.startswith("llama.cpp (xllamacpp 20")
    size = (tmp_path / "out/model.gguf").stat().st_size
    if variant in (None, "merged-float32"):
        assert not record.judged, "drift.json has measured it"
        assert record.difference < record.tolerance == 0.02
        return
    (judged,) = record.judged
    assert judged.form == record.variant == variant
    assert judged.bytes == size
    assert judged.kl_nats > 0
    if variant in ("merged-float16", "merged-q8_0"):
        assert record.forced is None, judged.refused
        assert judged.kl_nats < 0.02


def test_fewer_bits_are_smaller_and_worse(cell, tmp_path):
    found = {}
    for name in ("q8_0", "q5_1", "q4_0"):
        (judged,) = export(cell, "gguf", tmp_path / name, variant=f"merged-{name}", force=True).record.judged
        found[name] = (judged.bytes, judged.kl_nats)
    assert found["q8_0"][0] > found["q5_1"][0] > found["q4_0"][0]
    assert found["q8_0"][1] < found["q5_1"][1] < found["q4_0"][1]


def test_without_llama_cpp_the_record_says_so(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(_llama_cpp, "installed", lambda: False)
    record = export(cell, "gguf", tmp_path / "out", variant="merged-q8_0", force=True).record
    assert re.fullmatch(r"transformers [\d.]+; llama.cpp was not run", record.runtime)
    assert record.judged


def test_rows_in_another_order_are_refused(cell, tmp_path, monkeypatch):
    """Rows of q and k as transformers has them: a file that opens, and answers wrongly."""
    monkeypatch.setattr(models, "_rotated", lambda key, config: 0)
    with pytest.raises(RunError, match="does not score as the one that was written"):
        export(cell, "gguf", tmp_path / "out", variant="merged-float32")
    with pytest.raises(RunError, match="merged-q8_0 is refused"):
        export(cell, "gguf", tmp_path / "out", variant="merged-q8_0")
    assert not (tmp_path / "out").exists()


def test_texts_that_llama_cpp_begins_otherwise_are_refused(cell, tmp_path, monkeypatch):
    """The vocabulary is right, but every text would begin with a token that training did not see."""
    add = GGUFWriter.add_add_bos_token
    monkeypatch.setattr(GGUFWriter, "add_add_bos_token", lambda self, value: add(self, True))
    with pytest.raises(RunError, match="cuts texts into other tokens"):
        export(cell, "gguf", tmp_path / "out", variant="merged-float32")


def test_an_unknown_variant_names_all(cell, tmp_path):
    with pytest.raises(RequestError) as caught:
        export(cell, "gguf", tmp_path / "out", variant="q3")
    assert "merged-bfloat16, merged-float32, merged-float16, merged-q8_0" in str(caught.value)


def test_the_readme_asks_llama_cpp_as_training_did(cell, tmp_path):
    export(cell, "gguf", tmp_path / "out", variant="merged-float32")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "llama-server -m model.gguf" in text
    body = json.loads(re.search(r"/v1/completions -H '[^']*' -d '(.*)'\n", text)[1])
    assert body["prompt"] == "TEXT :"
    prompt = body["prompt"].replace("TEXT", "a lovely bright film")
    run = LlamaCpp(
        tmp_path / "out/model.gguf",
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf").config,
        128,
    )
    assert run.written(prompt, 4).split()[0] in ("good", "bad")


def test_rows_beyond_a_window_that_llama_cpp_leaves_out_are_refused(cell, monkeypatch):
    config = configured("mistral", sliding_window=cell.lock.data.max_length - 1)
    monkeypatch.setattr(gguf, "_config", lambda _: config)
    assert "llama.cpp leaves out the model's window of" in (gguf.KIND.refusal(cell) or "")
    config.sliding_window += 1
    assert gguf.KIND.refusal(cell) is None
