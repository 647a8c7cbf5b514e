"""Several classes, or a number, for images and recordings: from `new` over a table to a card, answers, a file for ONNX
Runtime and its answers, which are the adapter's."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import ImageDraw
from tiny import NO_CHECKS, command, recipe_fields, write_recipe
from tiny_images import make_vision_models, scene
from tiny_sounds import make_hearing_models, tone, wav

from hfadapt import load_adapted
from hfadapt.run_folder import Cell

CLASSES = ("bar", "dot", "pole")
MARKS = {"bar": ((0, 0, 32, 12), "red"), "dot": ((18, 18, 30, 30), "yellow"), "pole": ((0, 0, 12, 32), "blue")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    make_vision_models(folder)
    make_hearing_models(folder)
    return folder


def drawn(number):
    """A picture with any of three marks, and which they are."""
    picture, chance = scene(number, (32, 32)).point(lambda value: value // 4), np.random.default_rng(number)
    marks = [name for name in CLASSES if chance.random() < 0.5]
    for name in marks:
        ImageDraw.Draw(picture).rectangle(MARKS[name][0], fill=MARKS[name][1])
    return picture, marks


def sounded(number):
    """A recording with low tones, high ones or both, and which they are."""
    chance = np.random.default_rng(number)
    marks = [name for name in ("low", "high") if chance.random() < 0.6] or ["low"]
    return sum(tone(name, number) for name in marks) / 2, marks


def write_files(folder, kind, modality):
    """96 files and the table that names them, as people keep it; the column of the values."""
    rows = []
    for number in range(96):
        name = f"{number:03}.{'png' if modality == 'image' else 'wav'}"
        value, marks = (drawn if modality == "image" else sounded)(number)
        if modality == "image":
            value.save(folder / name)
        else:
            (folder / name).write_bytes(wav(value.astype(np.float32)))
        names = CLASSES if modality == "image" else ("low", "high")
        flags = {mark: int(mark in marks) for mark in names}
        rows.append(
            {"file": name, **(flags if kind == "multi-label" else {"score": 10 + 5 * len(marks) + number / 100})}
        )
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def run(folder, base, task):
    recipe = recipe_fields(base, task, {"d": {"source": "table.csv"}}, name="t", dtype="float32")
    recipe["evaluate"] = {**NO_CHECKS, "resamples": 100, "drift": True, "drift_limits": {"kl_nats": 9, "points": 99}}
    recipe["evaluate"] |= {"security": True}
    recipe |= {"data": {"validation": 16, "test": 16, "dedupe": {"near": False, "similarity": 1.0}}}
    recipe |= {
        "train": {"max_steps": 20, "batch_rows": 16, "learning_rate": 5e-3},
        "export": {"limits": {"points": 99}},
    }
    recipe |= {"adapter": {"rank": 4}}
    write_recipe(folder / "r.yaml", recipe)
    done = command("run", "r.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/t/d/this-machine")


@pytest.mark.parametrize(
    ("modality", "kind", "base"),
    [
        ("image", "multi-label", "vit"),
        ("image", "regression", "dino"),
        ("audio", "multi-label", "whisper"),
        ("audio", "regression", "wave"),
    ],
)
def test_from_a_table_to_a_file_for_a_device(bases, tmp_path, modality, kind, base):
    task = f"{modality}-{kind}"
    write_files(tmp_path, kind, modality)
    done = command("new", "table.csv", "--model", bases / base, "-o", "new.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert f"task: {task}" in (tmp_path / "new.yaml").read_text()
    cell = run(tmp_path, bases / base, task)
    assert cell.train.head_start == "linear probe"
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert next(iter(metrics)) == ("micro_f1" if kind == "multi-label" else "rmse")
    card = (cell.folder / "README.md").read_text()
    assert f"`{task}` adapter" in card
    assert ("the farthest off first" in card) == (kind == "regression")
    assert "\\[number\\]" not in card
    files = [str(tmp_path / f"{number:03}.{'png' if modality == 'image' else 'wav'}") for number in (1, 2, 3)]
    answers = load_adapted(cell.folder).predict(files)
    if kind == "regression":
        assert all(0 < answer.number < 40 for answer in answers)
        assert metrics["rmse"].adapter < np.std([row["label"] for row in cell.read_split("test")])
    else:
        known = {*CLASSES, "low", "high"}
        assert all({*answer.label.split(", ")} <= known | {"none of them"} for answer in answers)
        assert metrics["average_precision"].adapter > 0.9
    done = command("export", cell.folder, "--format", "onnx", "--variant", "float32", "--to", "out", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    again = load_adapted(tmp_path / "out").predict(files)
    for one, other in zip(again, answers, strict=True):
        assert one.label == other.label
        assert one.number == (None if other.number is None else pytest.approx(other.number, rel=1e-3))
    done = command("predict", cell.folder, files[0], "--json", folder=tmp_path)
    assert json.loads(done.out)[0]["label"] == answers[0].label
    for format in ("transformers-js", "web"):
        done = command("export", cell.folder, "--format", format, "--to", format, folder=tmp_path)
        assert done.code != 0
        assert "one class" in " ".join(done.err.split())


def test_a_list_in_a_cell_may_be_empty(bases, tmp_path):
    write_files(tmp_path, "multi-label", "image")
    lines = [f"{number:03}.png,{';'.join(drawn(number)[1])}" for number in range(96)]
    assert any(line.endswith(",") for line in lines)
    (tmp_path / "lists.csv").write_text("\n".join(["file,tags", *lines]) + "\n")
    done = command("new", "lists.csv", "--model", bases / "vit", "-o", "new.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "task: image-multi-label" in (tmp_path / "new.yaml").read_text()
    done = command("check", "new.yaml", folder=tmp_path)
    assert done.code == 0, done.err


def test_many_whole_numbers_are_classes(bases, tmp_path):
    """As data sets of a hundred classes have them."""
    write_files(tmp_path, "multi-label", "image")
    for name, label in (("whole", lambda number: number % 32), ("decimals", lambda number: number % 32 / 4)):
        lines = ["image,label", *(f"{number:03}.png,{label(number)}" for number in range(96))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        done = command("new", f"{name}.csv", "--model", bases / "vit", "-o", f"{name}.yaml", folder=tmp_path)
        assert done.code == 0, done.err
    assert "task: image-classification" in (tmp_path / "whole.yaml").read_text()
    assert "task: image-regression" in (tmp_path / "decimals.yaml").read_text()


def test_several_classes_are_told_which_task_learns_them(bases, tmp_path):
    write_files(tmp_path, "multi-label", "image")
    rows = [(f"{number:03}.png", ";".join(drawn(number)[1]) or "dot") for number in range(96)]
    lines = [json.dumps({"file": name, "label": marks.split(";")}) for name, marks in rows]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    recipe = recipe_fields(bases / "vit", "image-classification", {"d": {"source": "table.jsonl"}}, name="t")
    write_recipe(tmp_path / "r.yaml", recipe)
    done = command("check", "r.yaml", folder=tmp_path)
    assert done.code != 0
    assert "image-multi-label" in done.out + done.err
