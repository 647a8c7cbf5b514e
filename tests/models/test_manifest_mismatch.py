"""Adapters that do not belong where they are put, and folders that are not what was saved: refused before any use."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LABELS, labelled, make_lock, make_loop, pairs

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.models.attach import open_adapter, save_adapter
from hfadapt.models.load import load_base
from hfadapt.models.manifest import check_folder, check_manifest, read_manifest, write_manifest

CPU = torch.device("cpu")


def saved(lock, folder, rows, labels=LABELS):
    """An adapter as the training stage leaves it, without the training."""
    trained = make_loop(lock, folder / "loop", rows, labels=labels)
    hashes = save_adapter(trained.model, trained.base, lock, folder / "adapter", trained.start)
    write_manifest(folder / "adapter", trained.base, lock, labels, hashes)
    return folder / "adapter"


@pytest.fixture(scope="module")
def good(models, tmp_path_factory):
    lock = make_lock(models / "encoder", "text-classification")
    return saved(lock, tmp_path_factory.mktemp("good"), labelled(4))


@pytest.fixture
def adapter(good, tmp_path):
    """A sound adapter for `encoder`, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def base_of(model, task="text-classification", labels=LABELS):
    return load_base(make_lock(model, task), labels, CPU)


def rewrite(adapter, name, content):
    """Replaces a file and its hash in the manifest, as somebody would who wants it to be opened."""
    (adapter / name).write_bytes(content)
    change_manifest(adapter, lambda fields: fields["files"].update({name: hashlib.sha256(content).hexdigest()}))


def change_manifest(adapter, change):
    path = adapter / "hfadapt.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def change_config(adapter, **changes):
    config = json.loads((adapter / "adapter_config.json").read_text())
    rewrite(adapter, "adapter_config.json", json.dumps({**config, **changes}).encode())


def change_tensors(adapter, change):
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "changed.safetensors", metadata={"format": "pt"})
    (adapter / "changed.safetensors").rename(adapter / "adapter_model.safetensors")
    rewrite(adapter, "adapter_model.safetensors", (adapter / "adapter_model.safetensors").read_bytes())


def changed_base(models, folder, change):
    """A copy of `encoder` with other weights, sizes or tokenizer."""
    copy = Path(shutil.copytree(models / "encoder", folder / "encoder"))
    change(copy)
    return copy


def refusal(adapter, base=None, labels=None):
    def look():
        manifest = check_folder(adapter)
        if base is not None:
            check_manifest(manifest, base, adapter, labels)

    with pytest.raises(RunError) as caught:
        look()
    said = str(caught.value)
    assert all(problem.fix or problem.allowed for problem in caught.value.problems), said
    return said


def test_a_sound_adapter_is_accepted(models, adapter):
    base = base_of(models / "encoder")
    check_manifest(check_folder(adapter), base, adapter)
    open_adapter(base, adapter, "lora", CPU)


METHODS = [name for name in registry.names("adapters") if name not in ("eva", "loftq")]


@pytest.mark.parametrize("method", [*METHODS, "eva", "loftq"])
def test_what_every_method_saves_is_accepted(models, tmp_path, method):
    quant = {"loftq": "nf4"}.get(method, "none")
    lock = make_lock(models / "lm", adapter__method=method, quant=quant)
    folder = saved(lock, tmp_path, pairs(16), ())
    base = load_base(lock, (), CPU)
    check_manifest(check_folder(folder), base, folder, ())
    open_adapter(base, folder, method, CPU)


# --- another base ----------------------------------------------------------------------------------------------------


def reseed(folder):
    from transformers import BertConfig, BertModel

    torch.manual_seed(99)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)


def resize(**sizes):
    def change(folder):
        from transformers import BertConfig, BertModel

        BertModel(BertConfig.from_pretrained(folder, **sizes)).save_pretrained(folder)

    return change


def edit_tokenizer(change):
    def edit(folder):
        fields = json.loads((folder / "tokenizer.json").read_text())
        change(fields)
        (folder / "tokenizer.json").write_text(json.dumps(fields))

    return edit


def swap_words(fields):
    vocab = fields["model"]["vocab"]
    one, other = list(vocab)[-2:]
    vocab[one], vocab[other] = vocab[other], vocab[one]


def other_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


BASES = {
    "other weights of the same sizes": (reseed, "weights"),
    "more layers": (resize(num_hidden_layers=3), "3 layers, the adapter has 2"),
    "fewer layers": (resize(num_hidden_layers=1), "1 layers, the adapter has 2"),
    "other sizes": (resize(intermediate_size=96), "layers or sizes"),
    "other vocabulary": (edit_tokenizer(swap_words), "tokenizer"),
    "other rules, same vocabulary": (edit_tokenizer(lambda f: f.update(normalizer={"type": "Lowercase"})), "tokenizer"),
    "other chat template": (other_template, "chat template"),
}


@pytest.mark.parametrize("name", BASES)
def test_another_base_is_refused(models, adapter, tmp_path, name):
    change, word = BASES[name]
    said = refusal(adapter, base_of(changed_base(models, tmp_path, change)))
    assert "another base: not the same" in said
    assert word in said.splitlines()[0]
    assert "load the base that the adapter was trained on" in said


def test_another_architecture_is_refused(models, adapter):
    said = refusal(adapter, base_of(models / "lm"))
    assert "architecture" in said


def test_another_revision_is_refused(models, adapter):
    change_manifest(adapter, lambda fields: fields.update(model_revision="0" * 40))
    assert "not the same revision" in refusal(adapter, base_of(models / "encoder"))


@pytest.mark.parametrize("labels", [("good", "bad"), ("bad", "good", "so-so"), ("bad", "fine")])
def test_another_label_set_is_refused(models, adapter, labels):
    assert "another label set" in refusal(adapter, base_of(models / "encoder", labels=labels))
    assert "another label set" in refusal(adapter, base_of(models / "encoder"), labels)


# --- another folder --------------------------------------------------------------------------------------------------


def drop(count):
    def change(tensors):
        for name in sorted(name for name in tensors if "lora" in name)[:count]:
            del tensors[name]

    return change


def halve_rank(tensors):
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:2].contiguous()
        elif "lora_B" in name:
            tensors[name] = tensors[name][:, :2].contiguous()


def write(name, content):
    return lambda adapter: (adapter / name).write_bytes(content)


def flip_a_byte(adapter):
    path = adapter / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


FOLDERS = {
    "tensors missing": (lambda a: change_tensors(a, drop(2)), "tensors are missing"),
    "half of a layer missing": (lambda a: change_tensors(a, drop(1)), "not complete"),
    "tensor of nothing": (lambda a: change_tensors(a, lambda t: t.update(extra=torch.zeros(2))), "does not explain"),
    "tensors of another rank": (lambda a: change_tensors(a, halve_rank), "does not fit the rank"),
    "another rank in the config": (lambda a: change_config(a, r=8), "rank differs"),
    "another rank in both": (
        lambda a: [change_config(a, r=8), change_manifest(a, lambda f: f.update(rank=8))], "fit the rank",
    ),
    "cut weights": (lambda a: rewrite(a, "adapter_model.safetensors", b"\x08" + bytes(20)), "cannot be read"),
    "one byte changed": (flip_a_byte, "adapter_model.safetensors has been changed"),
    "weights missing": (lambda a: (a / "adapter_model.safetensors").unlink(), "is missing"),
    "foreign file": (write("run.py", b"print()"), "does not know"),
    "hidden file": (write(".env", b"A=1"), "does not know"),
    "foreign folder": (lambda a: (a / "code").mkdir(), "foreign folder"),
    "pickle": (write("adapter_model.bin", pickle.dumps({})), "run code"),
    "pickle under another name": (write("README.md", pickle.dumps({})), "run code"),
    "pipe in the place of weights": (
        lambda a: [(a / "adapter_model.safetensors").unlink(), os.mkfifo(a / "adapter_model.safetensors")], "a pipe",
    ),
    "pipe in the place of the manifest": (
        lambda a: [(a / "hfadapt.json").unlink(), os.mkfifo(a / "hfadapt.json")], "a pipe",
    ),
    "device": (lambda a: (a / "notes.txt").symlink_to("/dev/zero"), "a device"),
    "path out of the folder": (
        lambda a: change_manifest(a, lambda f: f["files"].update({"../base.json": "0"})), "no adapter has",
    ),
    "config not listed": (
        lambda a: change_manifest(a, lambda f: f["files"].pop("adapter_config.json")), "does not list",
    ),
    "manifest missing": (lambda a: (a / "hfadapt.json").unlink(), "PeftModel.from_pretrained"),
    "manifest of another kind": (write("hfadapt.json", b'{"record": "Plan", "version": 1}'), "another kind"),
    "manifest damaged": (write("hfadapt.json", b"{"), "not readable"),
    "unknown method": (lambda a: change_manifest(a, lambda f: f.update(method="magic")), "method"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_changed_folder_is_refused(adapter, name):
    spoil, word = FOLDERS[name]
    spoil(adapter)
    assert word in refusal(adapter)


CONFIGS = {
    "parent library": {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
    "megatron core": {"megatron_core": "evil"},
    "unknown key": {"tokenizer_kwargs": {"trust_remote_code": True}},
    "another type": {"peft_type": "PROMPT_TUNING"},
    "pattern that runs for hours": {"target_modules": "(a+)+$" * 20},
    "pattern among the names": {"target_modules": ["(.*)*x"]},
    "too many names": {"target_modules": ["x"] * 20_000},
    "pattern for ranks": {"rank_pattern": {"(a+)+": 4}},
    "pattern for the list of layers": {"layers_to_transform": [0], "layers_pattern": "(a+)+"},
    "lists of layers": {"layers_to_transform": [0], "layers_pattern": ["layer", ".*"]},
    "layers that are no numbers": {"layers_to_transform": [0, True]},
    "all layers there could be": {"layers_to_transform": [10**9]},
    "huge rank": {"r": 10**9},
    "huge rank in a pattern": {"rank_pattern": {"query": 10**9}},
    "rank that is no number": {"r": "4"},
    "layers repeated": {"layer_replication": [[0, 100000]]},
    "start that changes the base": {"init_lora_weights": "pissa"},
    "start that reads data": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "infinite alpha": {"lora_alpha": 1e300},
    "trained tokens": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_refused(adapter, name):
    change_config(adapter, **CONFIGS[name])
    said = refusal(adapter)
    assert "adapter_config.json" in said
    assert len(said) < 2000


def test_an_oversized_config_is_refused(adapter):
    rewrite(adapter, "adapter_config.json", b'{"x": "' + b"a" * (2 << 20) + b'"}')
    assert "too large" in refusal(adapter)


def test_a_full_model_that_brings_code_is_refused(models, tmp_path):
    lock = make_lock(models / "encoder", "text-classification", adapter__method="full")
    adapter = saved(lock, tmp_path, labelled(4))
    check_folder(adapter)
    config = json.loads((adapter / "config.json").read_text())
    rewrite(adapter, "config.json", json.dumps({**config, "auto_map": {"AutoModel": "evil--x.Y"}}).encode())
    assert "load code" in refusal(adapter)


# --- nothing runs ----------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_model_is_loaded_and_no_code_runs_before_the_folder_was_looked_at(adapter, tmp_path, monkeypatch):
    """Through `load_adapted`, with a pickle that would leave a mark and a module that would be imported."""
    from hfadapt.records.stages import CellState
    from hfadapt.serve.adapted import load_adapted

    mark = tmp_path / "code-ran"
    cell = tmp_path / "run" / "one" / "this-machine"
    shutil.copytree(adapter, cell / "adapter")
    (cell / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "evil_module.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    change_config(cell / "adapter", auto_mapping={"parent_library": "evil_module", "base_model_class": "X"})
    monkeypatch.setattr(
        "hfadapt.models.manifest.load_base", lambda *arguments, **options: pytest.fail("a model was loaded")
    )
    fake_cell(cell, monkeypatch)
    CellState(status="done").write(cell / "cell.json")
    with pytest.raises(RunError, match="run code"):
        load_adapted(cell)
    (cell / "adapter" / "adapter_model.bin").unlink()
    with pytest.raises(RunError, match="never makes"):
        load_adapted(cell)
    assert not mark.exists()


def fake_cell(cell, monkeypatch):
    """What `load_adapted` reads before it looks at the adapter."""
    from types import SimpleNamespace

    from hfadapt.run_folder import Cell

    for name in ("lock.yaml", "train.json"):
        (cell / name).write_text("{}")
    monkeypatch.setattr(Cell, "lock", property(lambda self: SimpleNamespace(task="text-classification")))
    monkeypatch.setattr(Cell, "data", property(lambda self: SimpleNamespace(labels=LABELS)))


def test_a_base_on_this_machine_is_named_without_its_folder(models, adapter):
    assert read_manifest(adapter).model == "encoder"
    assert str(models) not in (adapter / "hfadapt.json").read_text()
