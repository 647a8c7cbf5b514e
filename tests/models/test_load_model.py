"""Bases: where they come from, what of them is fresh, and that loading depends on nothing but the lock."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from tiny import LABELS, labelled, make_lock, make_loop, pairs
from transformers import AutoModelForCausalLM

from hfadapt.core.errors import RequestError
from hfadapt.formats.gguf import write_gguf
from hfadapt.models.attach import save_adapter
from hfadapt.models.load import load_base, load_processor, resolve_model

CPU = torch.device("cpu")


def test_a_folder_is_found(models):
    source = resolve_model(str(models / "lm"))
    assert (source.path, source.hub_id, source.revision) == (str((models / "lm").resolve()), None, None)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nothing", "~/nothing-at-all", "model.gguf"])
def test_a_path_that_does_not_exist_is_refused(name):
    with pytest.raises(RequestError, match="does not exist"):
        resolve_model(name)


def test_a_hub_id_with_revision():
    source = resolve_model("user/model@abc123")
    assert (source.path, source.hub_id, source.revision) == ("user/model", "user/model", "abc123")


def test_an_unknown_sample_names_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'minilm-l6'"):
        resolve_model("sample:minilm")


def test_a_missing_pad_token_becomes_the_end(models, tmp_path):
    folder = shutil.copytree(models / "lm", tmp_path / "bare")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["pad_token"] = None
    path.write_text(json.dumps(config))
    tokenizer = load_processor(resolve_model(str(folder)), "text")
    assert tokenizer.pad_token == tokenizer.eos_token


def test_a_fresh_head_is_the_same_every_time(models):
    lock = make_lock(models / "encoder", "text-classification")
    torch.manual_seed(1)
    first = load_base(lock, LABELS, CPU)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = load_base(lock, LABELS, CPU)
    other = load_base(lock, LABELS, CPU, seed=3)
    assert first.fresh_modules == again.fresh_modules == ("classifier",)
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight, other.model.classifier.weight)
    torch.manual_seed(1)
    load_base(lock, LABELS, CPU)
    assert torch.equal(torch.get_rng_state(), state), "loading drew from the caller's random state"


def test_a_language_model_has_nothing_fresh(models):
    base = load_base(make_lock(models / "lm"), (), CPU)
    assert base.fresh_modules == ()
    assert base.head_modules == ("lm_head",)
    assert base.parameters == sum(p.numel() for p in base.model.parameters())


def test_labels_are_in_the_config(models):
    base = load_base(make_lock(models / "encoder", "text-classification"), ("x", "y", "z"), CPU)
    assert base.model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert base.model.classifier.out_features == 3


def test_all_dropout_of_the_base_is_off(models):
    base = load_base(make_lock(models / "encoder", "text-classification"), LABELS, CPU)
    drops = [module for module in base.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert drops
    assert {module.p for module in drops} == {0.0}
    base.model.train()
    batch = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(base.model(input_ids=batch).logits, base.model(input_ids=batch).logits)


def test_a_model_that_cannot_do_the_task_is_refused(models, tmp_path):
    from transformers import ViTConfig

    folder = shutil.copytree(models / "encoder", tmp_path / "vision")
    ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64).save_pretrained(folder)
    with pytest.raises(RequestError, match="cannot do causal-lm"):
        load_base(make_lock(folder), (), CPU)


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_the_identity_tells_bases_apart_and_nothing_else(models, quant):
    one = load_base(make_lock(models / "lm"), (), CPU).identity
    assert load_base(make_lock(models / "lm", quant=quant, dtype="bfloat16"), (), CPU).identity == one
    encoder = load_base(make_lock(models / "encoder", "text-classification"), LABELS, CPU)
    assert encoder.identity["shapes_sha256"] != one["shapes_sha256"]


def test_the_adapter_names_no_path_of_this_machine(models, tmp_path):
    lock = make_lock(models / "lm")
    trained = make_loop(lock, tmp_path, pairs(8))
    hashes = save_adapter(trained.model, trained.base, lock, tmp_path / "adapter")
    for path in (tmp_path / "adapter").glob("*.json"):
        assert str(models) not in path.read_text()
    assert set(hashes) == {path.name for path in (tmp_path / "adapter").iterdir()}
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "lm"
    assert not list(tmp_path.glob(".adapter.tmp-*"))


def test_saving_again_replaces_the_folder_whole(models, tmp_path):
    lock = make_lock(models / "encoder", "text-classification")
    trained = make_loop(lock, tmp_path, labelled(8))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/old.txt").write_text("old")
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter")
    assert not (tmp_path / "adapter/old.txt").exists()


@pytest.mark.parametrize(
    ("features", "wanted"), [(("avx2",), torch.float32), (("avx2", "avx512f", "avx512_bf16"), torch.bfloat16)]
)
def test_a_quantised_weight_is_unpacked_to_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], wanted: torch.dtype
) -> None:
    from hfadapt.models import load

    monkeypatch.setattr(load, "cpu_features", lambda: features)
    assert load.compute_dtype(torch.float32, torch.device("cpu")) == wanted
    assert load.compute_dtype(torch.bfloat16, torch.device("cpu")) == torch.bfloat16


class Writes:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_the_place_of_weights_runs_no_code(models, tmp_path):
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Writes(tmp_path / "run")))
    with pytest.raises(RequestError, match="could run code") as refused:
        load_base(make_lock(folder, "text-classification"), LABELS, CPU)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**8}, {"text_config": {"n_layer": 10**8}}])
def test_more_layers_than_can_be_built_are_refused_before_they_are_built(models, tmp_path, change):
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(RequestError, match="more layers than any has"):
        resolve_model(str(folder))


def test_a_damaged_gguf_file_is_told_wherever_its_reader_stops(models, tmp_path):
    path = tmp_path / "lm.gguf"
    tokenizer = load_processor(resolve_model(str(models / "lm")), "text")
    write_gguf(AutoModelForCausalLM.from_pretrained(models / "lm"), tokenizer, path, "float32", "lm")
    whole = path.read_bytes()
    for at in (30, 300, 3_000, len(whole) // 2):
        path.write_bytes(whole[:at])
        with pytest.raises(RequestError, match="this GGUF file cannot be read"):
            resolve_model(str(path))


@pytest.mark.parametrize("steps", [[10**6], [100, 100, 100], [2] * 20])
def test_a_tokenizer_that_fills_memory_is_refused_before_it_reads_a_text(models, tmp_path, steps):
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    replaced = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * times} for times in steps]
    together = {"type": "Sequence", "normalizers": replaced}
    inside = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, together]}
    for normalizer in (together, inside, *(replaced if len(steps) == 1 else ())):
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": normalizer}))
        with pytest.raises(RequestError, match="longer than memory holds"):
            load_processor(resolve_model(str(folder)), "text")
