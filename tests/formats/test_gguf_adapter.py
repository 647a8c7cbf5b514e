"""LoRA adapters as GGUF files, as llama.cpp itself puts them on a base."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from language_models import CASES, TEXT, byte_level, configured, made
from peft import LoraConfig, get_peft_model
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import formats
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.gguf import models
from hfadapt.export.write import export
from hfadapt.formats import gguf_adapter
from hfadapt.formats._llama_cpp import LlamaCpp
from hfadapt.formats.gguf import write_gguf
from hfadapt.models.load import load_base
from hfadapt.run_folder import Cell

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory):
    """A cell whose model chooses between two words."""
    folder = tmp_path_factory.mktemp("lm")
    write_rows(folder / "one.jsonl", labelled(100))
    fields = {"dtype": "float32", "template": {"prompt": "{text} :", "completion": " {label}"}}
    fields |= {"adapter": {"method": "rslora", "rank": 4}}
    fields |= {"train": {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01}}
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", **fields))
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.fixture(scope="module")
def done(cell, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "a"
    return export(cell, "gguf-adapter", folder, variant="adapter-on-float32")


def test_llama_cpp_answers_as_the_adapter_does(cell, done):
    (judged,) = done.record.judged
    assert done.record.runtime.startswith("llama.cpp (xllamacpp 20")
    assert done.record.difference < done.record.tolerance == 0.02
    assert judged.decisive > 0
    assert judged.decisive_agreement >= 0.99
    assert judged.kl_nats < 1e-3
    # And not as the base alone does.
    base = gguf_adapter.base_file(cell, "float32")
    config = load_base(gguf_adapter.BaseRef.of(cell.lock), (), torch.device("cpu")).model.config
    with_it = LlamaCpp(base, config, 128, done.folder / "adapter.gguf").following("a lovely day :")
    assert float((with_it - LlamaCpp(base, config, 128).following("a lovely day :")).abs().max()) > 0.1


def test_the_file_has_the_layout_of_llama_cpp(cell, done):
    """As convert_lora_to_gguf.py writes it; rsLoRA's other scale is in B."""
    file = GGUFReader(done.folder / "adapter.gguf")
    said = {name: field.contents() for name, field in file.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["general.architecture"]) == ("adapter", "lora", "llama")
    config = json.loads((done.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert said["adapter.lora.alpha"] == config["lora_alpha"]
    assert config["use_rslora"]
    tensors = {each.name: each.data for each in file.tensors}
    assert len(tensors) == cell.manifest.tensors
    from safetensors.numpy import load_file

    own = load_file(done.folder / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.mlp.gate_proj"
    assert np.allclose(tensors["blk.0.ffn_gate.weight.lora_a"], own[f"{prefix}.lora_A.weight"])
    assert np.allclose(tensors["blk.0.ffn_gate.weight.lora_b"], own[f"{prefix}.lora_B.weight"] * config["r"] ** 0.5)


def test_peft_and_hfadapt_open_the_same_folder(done, models, tmp_path):
    answers = command("predict", str(done.folder), "a lovely film", "--base", str(models / "lm"), folder=tmp_path)
    assert answers.code == 0, answers.err


def test_bases_of_fewer_bits_are_judged_too(cell, tmp_path):
    record = export(cell, "gguf-adapter", tmp_path / "out", force=True).record
    forms = {each.form: each for each in record.judged}
    assert [*forms] == ["adapter-on-float32", "adapter-on-q8_0", "adapter-on-q4_k_m"]
    assert record.variant == "adapter-on-float32"
    assert forms["adapter-on-float32"].kl_nats < forms["adapter-on-q8_0"].kl_nats < forms["adapter-on-q4_k_m"].kl_nats


def test_rows_of_b_in_another_order_are_refused(cell, tmp_path, monkeypatch):
    gguf_adapter.base_file(cell, "float32")
    monkeypatch.setattr(models, "_rotated", lambda key, config: 0)
    with pytest.raises(RunError, match="adapter-on-float32 is refused"):
        export(cell, "gguf-adapter", tmp_path / "out", variant="adapter-on-float32")


def test_without_scale_it_is_refused(cell, tmp_path, monkeypatch):
    layers = gguf_adapter._layers
    monkeypatch.setattr(gguf_adapter, "_layers", lambda model: ((key, a, b, 1.0) for key, a, b, _ in layers(model)))
    with pytest.raises(RunError, match="does not score as the one that was written"):
        export(cell, "gguf-adapter", tmp_path / "out", variant="adapter-on-float32")


def test_the_readme_and_the_terminal_say_how_it_is_served(cell, done):
    text = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m BASE.gguf --lora adapter.gguf" in text
    body = json.loads(re.search(r"/v1/completions -H '[^']*' -d '(.*)'\n", text)[1])
    assert body["prompt"] == "TEXT :"
    assert "PeftModel.from_pretrained" in text
    (served,) = done.commands
    base, adapter = re.search(r"-m (\S+) --lora (\S+)", served).groups()
    assert base.endswith("/base.gguf")
    assert adapter == str(done.folder.resolve() / "adapter.gguf")


@pytest.mark.parametrize(
    ("method", "why"), [("dora", "the method is dora"), ("full", "the method is full"), ("head", "the method is head")]
)
def test_other_methods_are_refused(cell, method, why):
    lock = cell.lock.model_copy(update={"adapter": cell.lock.adapter.model_copy(update={"method": method})})
    assert why in gguf_adapter.KIND.refusal(SimpleNamespace(lock=lock, adapter=cell.adapter))


def test_without_llama_cpp_the_extra_is_named(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs packages") as caught:
        export(cell, "gguf-adapter", tmp_path / "out")
    assert "hfadapt[gguf-run]" in str(caught.value)


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma3_text", "phi3", "granite", "smollm3"])
def test_adapters_of_every_order_of_rows(kind, tmp_path):
    case = next(case for case, (name, _) in CASES.items() if name == kind)
    config = configured(kind, **CASES[case][1])
    base, tokenizer = made(config), byte_level()
    write_gguf(base, tokenizer, tmp_path / "base.gguf", "float32", "base")
    asked = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(2)
    model = get_peft_model(base, asked).eval()
    gguf_adapter.write_adapter(model, tmp_path / "adapter.gguf", "adapter", "float32")
    ids = tokenizer(TEXT)["input_ids"][:30]
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with model.disable_adapter():
            before = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    found = LlamaCpp(tmp_path / "base.gguf", config, 64, tmp_path / "adapter.gguf").following(ids)
    assert torch.allclose(found, own, atol=5e-3)
    assert float((own - before).abs().max()) > 0.5
