"""What cannot be a base is refused by name, before rows are read and before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_lock, make_tokenizer, write_recipe

from hfadapt.core.errors import RequestError
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import load_config
from hfadapt.models.load import check_base, load_base, resolve_model
from hfadapt.pipeline.run import run_recipe
from hfadapt.recipe.schema import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def base(models: Path, tmp_path: Path) -> Path:
    """A copy of the tiny language model, to be spoilt."""
    return shutil.copytree(models / "lm-untied", tmp_path / "base")


def change(folder: Path, file: str = "config.json", **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))


def refused(folder: Path, task: str = "causal-lm") -> str:
    """The message of the check, which a run makes before it reads any data."""
    with pytest.raises(RequestError) as error:
        check_base(BaseRef.of(make_lock(folder, task)))
    recipe = {"name": "r", "model": str(folder), "task": task, "domains": {"d": {"source": "nowhere.jsonl"}}}
    with pytest.raises(RequestError) as early:
        run_recipe(Recipe.model_validate(recipe), folder=folder.parent / "run")
    assert str(early.value) == str(error.value)
    return str(error.value)


def tensors(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_sound_base_is_let_pass(models):
    for name, task in (("lm", "causal-lm"), ("lm-untied", "causal-lm"), ("encoder", "text-classification")):
        check_base(BaseRef.of(make_lock(models / name, task)))


# --- files -----------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_whole(base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: the file of the weights is not whole" in refused(base)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_in_place_of_the_content(base, name):
    (base / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99\n")
    said = refused(base)
    assert f"{base / name}: the file is a pointer of Git LFS" in said
    assert "git lfs pull" in said


def test_a_missing_part_of_the_weights(base):
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    change(base, "model.safetensors.index.json", weight_map=weights)
    assert f"{base / 'model-00002-of-00002.safetensors'}: a part of the weights is missing" in refused(base)


def test_no_weights(base):
    (base / "model.safetensors").unlink()
    assert "the folder has no weights" in refused(base)
    (base / "tf_model.h5").touch()
    assert "weights of TensorFlow" in refused(base)


def test_a_broken_torch_file(base):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"nothing of the kind")
    assert "not a file of torch.save" in refused(base)


def test_no_tokenizer(base):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    assert "no tokenizer" in refused(base)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside config.json"])
def test_an_adapter_is_no_base(base, beside):
    change(base, "adapter_config.json", base_model_name_or_path="owner/llama", peft_type="LORA")
    if not beside:
        (base / "config.json").unlink()
    for refuse in (resolve_model, load_config):
        with pytest.raises(RequestError, match="an adapter, not a base") as error:
            refuse(str(base))
        assert "of owner/llama" in str(error.value)


def test_a_model_in_a_folder_below(tmp_path, base):
    for step in (90, 500):
        shutil.copytree(base, tmp_path / "out" / f"checkpoint-{step}")
    with pytest.raises(RequestError, match="has no config") as error:
        load_config(str(tmp_path / "out"))
    assert str(tmp_path / "out" / "checkpoint-500") in str(error.value)


# --- configs ---------------------------------------------------------------------------------------------------------


def test_code_that_comes_with_a_model_is_not_run(base, monkeypatch):
    def asked(*_: Any) -> str:
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    change(base, model_type="xmodel", auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "y.X"})
    said = refused(base)
    assert "needs code that comes with it" in said
    assert "configuration_x.py" in said


def test_code_beside_a_known_architecture_is_left_alone(base):
    change(base, auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"})
    (base / "configuration_x.py").write_text("raise SystemExit('it ran')")
    check_base(BaseRef.of(make_lock(base)))
    load_base(make_lock(base), (), CPU)


def test_code_that_comes_with_a_tokenizer_is_not_run(base, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    change(base, "tokenizer_config.json", tokenizer_class="XTok", auto_map={"AutoTokenizer": ["x.XTok", None]})
    (base / "x.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(RequestError, match="no tokenizer that can be read"):
        check_base(BaseRef.of(make_lock(base)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "4-bit gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "4-bit awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_quantised_weights(base, settings, words):
    change(base, quantization_config=settings)
    (base / "README.md").write_text("---\nbase_model:\n- owner/plain\n---\n")
    said = refused(base)
    assert words in said
    assert "owner/plain" in said


def test_a_config_that_contradicts_itself(base):
    change(base, num_attention_heads=5)
    assert "not a multiple of the number of attention heads" in refused(base)


# --- weights that are another model's --------------------------------------------------------------------------------


def test_fewer_layers_than_the_config(base):
    change(base, num_hidden_layers=3)
    said = refused(base)
    assert "1 of 3 layers of model.layers are not whole" in said


def test_more_layers_than_the_config(base):
    change(base, num_hidden_layers=1)
    said = refused(base)
    assert "more layers than config.json gives" in said
    assert "2 in model.layers" in said


def test_other_sizes(base):
    change(base, intermediate_size=96)
    said = refused(base)
    assert "mlp.down_proj.weight [64, 128] instead of [64, 96]" in said
    with pytest.raises(RequestError, match="do not have the sizes"):
        load_base(make_lock(base), (), CPU)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.embed_tokens.weight"])
def test_embeddings_and_output_layer_must_be_there(base, lost):
    tensors(base, lambda found: {name: tensor for name, tensor in found.items() if name != lost})
    assert f"without {lost}" in refused(base)


def test_a_pooler_may_be_missing(models, tmp_path):
    """As in checkpoints that were trained on masked words alone."""
    folder = shutil.copytree(models / "encoder", tmp_path / "base")
    tensors(folder, lambda found: {name: tensor for name, tensor in found.items() if "pooler" not in name})
    check_base(BaseRef.of(make_lock(folder, "text-classification")))


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lm-untied", "encoder"])
def test_tokens_without_an_embedding(models, tmp_path, name):
    folder = shutil.copytree(models / name, tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<more {number}>" for number in range(600 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    task = "causal-lm" if name == "lm-untied" else "text-classification"
    said = refused(folder, task)
    assert "88 tokens without an embedding" in said
    assert "the model has 512 embeddings" in said
    with pytest.raises(RequestError, match="without an embedding"):
        load_base(make_lock(folder, task), ("a", "b"), CPU)


def test_a_plan_looks_too(base, tmp_path):
    from tiny import command

    change(base, num_hidden_layers=3)
    fields = {"name": "r", "model": "./base", "task": "causal-lm", "domains": {"d": "x.jsonl"}}
    (tmp_path / "x.jsonl").write_text("{}\n")
    write_recipe(tmp_path / "r.yaml", fields)
    done = command("plan", "r.yaml", folder=tmp_path)
    assert done.code == 2
    assert "are not whole" in done.err
