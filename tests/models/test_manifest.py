"""The manifest: an adapter is put only on the base it belongs to, with the files that were written."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import LABELS, labelled, make_lock, make_loop

from hfadapt.core.errors import RunError
from hfadapt.models.attach import save_adapter
from hfadapt.models.load import load_base
from hfadapt.models.manifest import check_manifest, write_manifest
from hfadapt.records.stages import Manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    lock = make_lock(models / "encoder", "text-classification")
    trained = make_loop(lock, folder, labelled(8))
    hashes = save_adapter(trained.model, trained.base, lock, folder / "adapter")
    manifest = write_manifest(folder / "adapter", trained.base, lock, LABELS, hashes)
    return lock, folder / "adapter", manifest


def test_it_says_what_the_adapter_is(saved):
    lock, folder, manifest = saved
    assert Manifest.read(folder / "hfadapt.json") == manifest
    assert (manifest.task, manifest.method, manifest.rank) == ("text-classification", "lora", lock.adapter.rank)
    assert manifest.labels == LABELS
    assert manifest.tensors == 2 * (2 * 6 + 1) + 2, "A and B of every linear layer, weight and bias of the head"
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"hfadapt.json"}


def test_its_own_base_is_accepted_also_quantised(saved):
    lock, folder, manifest = saved
    check_manifest(manifest, load_base(lock, LABELS, CPU), folder)
    check_manifest(manifest, load_base(lock.model_copy(update={"quant": "nf4"}), LABELS, CPU), folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_changed_files_are_named(saved, tmp_path, name, harm):
    lock, folder, manifest = saved
    copied = shutil.copytree(folder, tmp_path / "adapter")
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).unlink()
    if harm == "flip":
        (copied / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        check_manifest(manifest, load_base(lock, LABELS, CPU), copied)
    assert f"{name} {'has been changed' if harm == 'flip' else 'is missing'}" in str(caught.value)


def test_another_size_is_refused(saved, models, tmp_path):
    from transformers import BertConfig, BertModel

    lock, folder, manifest = saved
    shutil.copytree(models / "encoder", tmp_path / "wide")
    config = BertConfig.from_pretrained(models / "encoder", intermediate_size=256)
    BertModel(config).save_pretrained(tmp_path / "wide")
    other = load_base(lock.model_copy(update={"model": str(tmp_path / "wide")}), LABELS, CPU)
    with pytest.raises(RunError, match="not the same layers or sizes"):
        check_manifest(manifest, other, folder)


def test_another_tokenizer_and_template_are_refused_together(saved, models, tmp_path):
    from tiny import make_tokenizer

    lock, folder, manifest = saved
    shutil.copytree(models / "encoder", tmp_path / "other")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["newword"])
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "other")
    other = load_base(lock.model_copy(update={"model": str(tmp_path / "other")}), LABELS, CPU)
    with pytest.raises(RunError) as caught:
        check_manifest(manifest, other, folder)
    assert "not the same tokenizer, chat template" in str(caught.value)
