"""A model that changes while it learns: other activations come in, and it is rounded at the end."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from cells import trained
from safetensors.torch import load_file
from tiny import After, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.models.activation import swap
from hfadapt.objectives.distill import KIND, RAMPED
from hfadapt.run_folder import Cell, read_steps
from hfadapt.tasks.text_classification.task import TextClassification

OPTIONS = {"ramp": "gelu", "rounded": 0.25}


@pytest.fixture(scope="module")
def teacher(models, tmp_path_factory) -> Cell:
    return trained(tmp_path_factory.mktemp("teacher"), models / "encoder", "text-classification", labelled(160))


@pytest.fixture(scope="module")
def changed(models, tmp_path_factory):
    """The encoder with another activation in its config."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("changed")
    model = AutoModelForSequenceClassification.from_pretrained(models / "encoder")
    assert swap(model, "relu6") == "gelu"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(models / "encoder").save_pretrained(folder)
    return folder


def distil(folder, model, teacher, *words, options=OPTIONS, **train):
    folder.mkdir(exist_ok=True)
    write_rows(folder / "one.jsonl", labelled(160))
    train = {"batch_rows": 8, "max_steps": 16, "learning_rate": 3e-3, "checkpoint_every_steps": 100, **train}
    train |= {"objective": "distill", "objective_options": {"teacher": str(teacher.folder), **options}}
    write_recipe(folder / "tiny.yaml", recipe_fields(model, train=train, adapter={"method": "full"}))
    return command("train", "tiny.yaml", *words, folder=folder)


def losses(cell: Cell) -> list[float]:
    return [step["loss"] for step in read_steps(cell.folder / "metrics.jsonl") if "loss" in step]


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return load_file(cell.adapter / "model.safetensors")


@pytest.mark.parametrize("steps", [4, 13])
def test_resumed_equals_uninterrupted(changed, tmp_path, monkeypatch, teacher, steps) -> None:
    assert distil(tmp_path, changed, teacher).code == 0

    @contextmanager
    def interrupted():
        yield After(steps)

    with monkeypatch.context() as patch:
        patch.setattr("hfadapt.train.cells.interruptible", interrupted)
        assert distil(tmp_path, changed, teacher, "--runs", "parts").code == 130
    done = distil(tmp_path, changed, teacher, "--runs", "parts")
    assert done.code == 0, done.err
    assert "going on from step" in done.err
    whole, parts = (Run(tmp_path / name / "tiny").cell("one", "this-machine") for name in ("runs", "parts"))
    assert losses(whole) == losses(parts)
    one, other = weights(whole), weights(parts)
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_it_begins_with_the_old_activation_and_ends_with_the_new_one(
    models, changed, tmp_path, teacher, monkeypatch
) -> None:
    # The heads of students are their bases' own; here it is new, and would be trained on the new activation.
    monkeypatch.setattr(TextClassification, "head_start", lambda *_: 0.0)
    same = {"weight": 0.5}
    told = {}
    for name, model, options in (
        ("old", models / "encoder", same),
        ("new", changed, same),
        ("ramp", changed, {"ramp": "gelu", **same}),
        ("rounded", changed, {"rounded": 1.0, **same}),
    ):
        done = distil(tmp_path / name, model, teacher, options=options)
        assert done.code == 0, done.err
        told[name] = losses(Run(tmp_path / name / "runs/tiny").cell("one", "this-machine"))
    assert told["ramp"][0] == pytest.approx(told["old"][0], rel=1e-5)
    assert told["new"][0] != pytest.approx(told["old"][0], rel=1e-5)
    assert told["ramp"][1] != pytest.approx(told["old"][1], rel=1e-5)
    assert told["rounded"][0] != pytest.approx(told["new"][0], rel=1e-6)
    assert told["rounded"][0] == pytest.approx(told["new"][0], rel=0.1)
    # What is saved are plain weights, and the config's activation.
    cell = Run(tmp_path / "ramp/runs/tiny").cell("one", "this-machine")
    assert not [name for name in weights(cell) if "blend" in name or ".old" in name]


def test_how_far_it_is_hangs_on_the_steps_alone(changed) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(changed)
    options = KIND.Options(teacher="any", ramp="gelu", rounded=0.25)
    assert KIND.moves(options)
    assert not KIND.moves(KIND.Options(teacher="any"))
    started = KIND.begin(model, None, options)
    blends = [each for each in model.modules() if type(each).__name__ == "Blend"]
    assert len(blends) == 2
    for done in (0.0, RAMPED / 2, 0.74):
        KIND.at(started, done)
        assert {each.share for each in blends} == {min(1.0, done / RAMPED)}
        assert started.rounding is None
    KIND.at(started, 0.75)
    linear = model.bert.encoder.layer[0].intermediate.dense
    assert "forward" in vars(linear)
    KIND.end(started)
    assert "forward" not in vars(linear)
    assert not [each for each in model.modules() if type(each).__name__ == "Blend"]


def test_no_earlier_state_can_be_the_result(changed, tmp_path, teacher) -> None:
    done = distil(tmp_path, changed, teacher, patience=1)
    assert done.code != 0
    assert "no earlier state" in done.err
    assert "leave train.patience out" in done.err
