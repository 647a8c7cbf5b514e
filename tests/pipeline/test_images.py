"""Pictures from a folder to a card: trained alone and with others, opened again, predicted; nets of attention and of
convolutions."""

from __future__ import annotations

import json

import pytest
import torch
from run_files import cell, record, weights
from safetensors.torch import load
from tiny import command, make_lock, recipe_fields, train, write_recipe
from tiny_images import marked, write_folders

from hfadapt.core import registry

TRAIN = {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01}
LABELS = ("bar", "pole")


def fields(model, **more):
    made = recipe_fields(model, "image-classification", {"one": {"source": "one"}}, **more)
    made["data"] |= {"dedupe": {"near": False}}
    return made


@pytest.fixture(scope="module")
def both(vision, tmp_path_factory):
    """Two domains on one transformer, trained together, all the way to their cards."""
    folder = tmp_path_factory.mktemp("both")
    for number, name in enumerate(("one", "two")):
        write_folders(folder / name, 120, seed=number)
    recipe = fields(vision / "dino", train=TRAIN)
    recipe["domains"]["two"] = {"source": "two"}
    recipe["train"]["together"] = True
    write_recipe(folder / "tiny.yaml", recipe)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


def test_what_is_learned_is_measured_and_told(both):
    evaluation = record(both, "evaluation.json")
    accuracy = evaluation["metrics"][0]
    assert (evaluation["baseline"], accuracy["name"], accuracy["rows"]) == ("linear probe", "accuracy", 24)
    assert accuracy["adapter"] > 0.7, "a bar is across and a pole is upright, so it must be learned"
    assert record(both, "train.json")["together"] == ["one", "two"]
    security, drift = record(both, "security.json"), record(both, "drift.json")
    assert security["membership"]["blind"]["name"] == "coarse features"
    assert {each["name"] for each in security["robustness"]} == {*registry.modality("image").perturbations}
    assert {each["name"] for each in drift["variants"]} >= {"merged-bfloat16", "merged-float32", "merged-int8"}
    merged = next(each for each in drift["variants"] if each["name"] == "merged-float32")
    assert merged["kl_nats"] < 1e-6
    text = (cell(both) / "README.md").read_text()
    assert "AutoModelForImageClassification" in text
    assert "differs from its records" not in command("card", "check", cell(both)).err


def test_a_file_is_asked(both, tmp_path):
    paths = []
    for number, label in enumerate(LABELS * 4):
        paths.append(tmp_path / f"{number}.jpg")
        marked(label, 500 + number).save(paths[-1], quality=95)
    done = command("predict", cell(both), *paths, "--json", folder=tmp_path)
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert sum(answer["label"] == label for answer, label in zip(answers, LABELS * 4, strict=True)) >= 6


def test_trained_together_is_trained_alone(both, vision, tmp_path):
    write_folders(tmp_path / "one", 120, seed=0)
    write_folders(tmp_path / "two", 120, seed=1)
    recipe = fields(vision / "dino", train=TRAIN)
    recipe["domains"]["two"] = {"source": "two"}
    recipe["train"]["together"] = False
    write_recipe(tmp_path / "tiny.yaml", recipe)
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    for domain in ("one", "two"):
        together, alone = (load(weights(folder, domain)) for folder in (both, tmp_path))
        assert together.keys() == alone.keys()
        for name, tensor in together.items():
            torch.testing.assert_close(tensor, alone[name], atol=2e-3, rtol=2e-2)


# --- convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dora", "head"))])
def test_a_net_of_convolutions(vision, tmp_path, method):
    write_folders(tmp_path / "one", 80)
    recipe = fields(vision / "conv", adapter={"method": method}, train={**TRAIN, "max_steps": 10})
    write_recipe(tmp_path / "tiny.yaml", recipe)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    drift = record(tmp_path, "drift.json")
    assert all(each["kl_nats"] < 0.02 for each in drift["variants"] if each["storage"] == "float32")
    assert not {each["storage"] for each in drift["variants"]} & {"int8", "nf4"}
    assert "differs from its records" not in command("card", "check", cell(tmp_path)).err


def test_what_convolutions_cannot_do_is_said_before_training(vision, tmp_path):
    write_folders(tmp_path / "one", 40)
    for setting, words in (
        ({"quant": "nf4"}, "no linear layers"),
        ({"adapter": {"method": "pissa"}}, "does not adapt convolutions"),
    ):
        write_recipe(tmp_path / "tiny.yaml", fields(vision / "conv", **setting))
        done = command("run", "tiny.yaml", folder=tmp_path)
        assert done.code != 0
        assert words in done.err
    assert not list(tmp_path.glob("runs/**/adapter"))


def test_statistics_of_batches_are_those_of_the_base(vision, tmp_path):
    lock = make_lock(vision / "conv", "image-classification")
    lock = lock.model_copy(
        update={"adapter": lock.adapter.model_copy(update={"modules": ("expand_conv", "project_conv")})}
    )
    schema = registry.schema("pictured")
    rows = []
    for number in range(16):
        path = tmp_path / f"{number}.png"
        marked(LABELS[number % 2], number).save(path)
        rows.append({**schema.make({"image": path.read_bytes(), "label": LABELS[number % 2]}, str), "row": number})
    done = train(lock, tmp_path / "cell", rows, rows[:4], LABELS)
    norms = {
        name: module
        for name, module in done.model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and "base_layer" not in name
    }
    assert norms
    from transformers import AutoModel

    base = dict(AutoModel.from_pretrained(vision / "conv").named_modules())
    for name, module in norms.items():
        assert not module.training
        own = base[name.split("efficientnet.")[1]]
        assert torch.equal(module.running_mean, own.running_mean)
        assert torch.equal(module.running_var, own.running_var)
    # With statistics of the base a row does not hang on those beside it.
    task = registry.task("image-classification")
    examples = task.encode(rows, done.base.tokenizer, max_length=64, labels=LABELS)
    with torch.no_grad():
        whole = task.label_logits(done.model.train(), task.collate(examples, 0))
        alone = torch.cat([task.label_logits(done.model, task.collate([example], 0)) for example in examples])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)


def test_digits_that_are_mirrored_are_warned_of(vision, tmp_path):
    write_folders(tmp_path / "one", 90)
    recipe = fields(vision / "dino")
    for names, changes, noticed in (
        (("bar", "pole"), {"flip": 0.5}, False),
        (("6", "9"), {"crop": 0.5}, False),
        (("6", "9"), {"crop": 0.5, "flip": 0.5}, True),
    ):
        for old, new in zip(sorted((tmp_path / "one").iterdir()), names, strict=True):
            old.rename(old.with_name(new))
        recipe["data"]["augment"] = changes
        write_recipe(tmp_path / "tiny.yaml", recipe)
        done = command("check", "tiny.yaml", "--json", folder=tmp_path)
        assert done.code == 0, done.err
        findings = {each["code"]: each["message"] for each in json.loads(done.out)[0]["audit"]["findings"]}
        assert ("augmentation-mislabels" in findings) is noticed
    assert "2 of 2 classes look like digits or letters (6, 9)" in findings["augmentation-mislabels"]
