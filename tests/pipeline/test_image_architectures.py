"""Nets that see, of many makers, from a plan to a card and to a merged model that plain transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tiny import NO_CHECKS, command, recipe_fields, write_recipe
from tiny_images import make_processor, write_folders

from hfadapt.models.facts import model_facts
from hfadapt.plan.modules import adaptable

STAGES = {"hidden_sizes": [16, 24, 32, 64], "depths": [1, 1, 1, 1]}
SEEING = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SEEING |= {"image_size": 32, "patch_size": 8}
READING = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
NETS: dict[str, tuple[dict[str, Any], set[str]]] = {
    # Their own code reads the sizes of convolutions, to pad as TensorFlow does.
    "mobilenet_v1": ({"depth_multiplier": 0.25}, set()),
    "mobilenet_v2": ({"depth_multiplier": 0.35}, set()),
    "mobilenet_v1 that pads as torch": (
        {"depth_multiplier": 0.25, "tf_padding": False},
        {f"layer.{number}.convolution" for number in range(1, 26, 2)},
    ),
    "mobilenet_v2 that pads as torch": (
        {"depth_multiplier": 0.35, "tf_padding": False},
        {"expand_1x1.convolution", "reduce_1x1.convolution", "conv_1x1.convolution"},
    ),
    "resnet": (
        {"embedding_size": 16, **STAGES},
        {"layer.0.convolution", "layer.2.convolution", "shortcut.convolution"},
    ),
    "regnet": (
        {"embedding_size": 16, "groups_width": 8, **STAGES},
        {"layer.0.convolution", "layer.3.convolution", "shortcut.convolution"},
    ),
    "convnextv2": (STAGES, {"all-linear"}),
    "swin": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4},
        {"all-linear"},
    ),
    "poolformer": (STAGES, {"conv1", "conv2"}),
    "swiftformer": ({"embed_dims": [16, 24, 32, 64], "depths": [1, 1, 1, 1]}, {"all-linear"}),
    "siglip": ({"vision_config": SEEING, "text_config": READING}, {"self_attn.out_proj", "layers.*.mlp.fc1"}),
}
"""Fields, and names of layers that are adapted."""
USUAL = ("mobilenet_v1", "mobilenet_v2 that pads as torch", "siglip")


def make_base(folder: Path, name: str, fields: dict[str, Any]) -> str:
    """A checkpoint as people have it, with a head for other classes."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name.split()[0], **fields)
    config.num_labels = 5
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NETS)
def test_only_layers_that_can_be_adapted_are_named(name, tmp_path):
    """Depthwise convolutions and gates may be called as those that see each pixel alone."""
    fields, names = NETS[name]
    found = adaptable(model_facts(make_base(tmp_path, name, fields), "image-classification", 2))
    assert names <= {*found.names}
    if "convolution" in "".join(names) or not names:
        assert names == {*found.names}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in NETS])
def test_to_a_card_and_a_merged_model(name, tmp_path):
    make_base(tmp_path / "base", name, NETS[name][0])
    write_folders(tmp_path / "one", 60)
    cell = trained(tmp_path)
    assert (cell / "README.md").is_file()
    method = yaml.safe_load((cell / "lock.yaml").read_text())["adapter"]["method"]
    assert method == ("lora" if NETS[name][1] else "full")
    done = command("export", str(cell), "--format", "merged", "--to", "merged", "--force", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["id2label"] == {"0": "bar", "1": "pole"}
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


def trained(folder):
    """The cell of a run on the base and the pictures that are there."""
    domains, checks = {"one": {"source": "one", "license": "mit"}}, {**NO_CHECKS, "resamples": 100}
    recipe = recipe_fields("./base", "image-classification", domains, evaluate=checks, name="t", dtype="float32")
    recipe |= {"data": {"validation": 12, "test": 12, "dedupe": {"near": False, "similarity": 1.0}}}
    recipe |= {"train": {"max_steps": 3, "batch_rows": 8}}
    write_recipe(folder / "r.yaml", recipe)
    done = command("run", "r.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return folder / "runs/t/one/this-machine"


def test_a_net_of_the_same_classes_is_trained_further(tmp_path):
    """Its head is the base's, and no part of the adapter."""
    make_base(tmp_path / "base", "vit", SEEING)
    write_folders(tmp_path / "one", 60)
    model = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=2, ignore_mismatched_sizes=True
    )
    model.config.id2label, model.config.label2id = {0: "bar", 1: "pole"}, {"bar": 0, "pole": 1}
    model.save_pretrained(tmp_path / "base")
    cell = trained(tmp_path)
    record = json.loads((cell / "train.json").read_text())
    assert record["base_head"] is None
    assert json.loads((cell / "adapter/adapter_config.json").read_text())["modules_to_save"] is None


def test_a_form_that_a_library_cannot_write_leaves_the_others(tmp_path):
    """ONNX Runtime does not round what PoolFormer takes from its pool."""
    make_base(tmp_path / "base", "poolformer", NETS["poolformer"][0])
    write_folders(tmp_path / "one", 60)
    cell = trained(tmp_path)
    done = command("export", cell, "--format", "onnx", "--to", "out", "--force", folder=tmp_path)
    printed = done.out + done.err
    assert done.code == 0, printed
    assert "bug in hfadapt" not in printed
    assert "the form cannot be written: ValueError: Quantization parameter shared mode" in " ".join(printed.split())
    done = command("export", cell, "--format", "onnx", "--variant", "int8-static", "--to", "two", folder=tmp_path)
    assert done.code == 1
    assert "the form cannot be written" in done.err
