"""Tables that hold images as numbers, and exports of Label Studio that name images: as images with a class."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from tiny import command
from tiny_images import png, scene

from hfadapt import data
from hfadapt.core import registry
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe


def pixels(number, mode="L", side=28):
    return np.asarray(scene(number, (side, side)).convert(mode)).reshape(-1).tolist()


def columns(number, mode="L", name="pixel{}"):
    return {name.format(place): value for place, value in enumerate(pixels(number, mode))}


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepared(folder, **domain):
    recipe = Recipe(name="r", model="none", task="image-classification", domains={"d": {"source": "t.csv", **domain}})
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (lambda n: columns(n), "28 x 28 pixels in grey, a column each"),
        (lambda n: columns(n, name="28x{}"), "28 x 28 pixels in grey, a column each"),
        (lambda n: columns(n, "RGB", "pixel{:04}"), "28 x 28 pixels in colour, a column each"),
        (lambda n: {"pixels": " ".join(map(str, pixels(n)))}, "28 x 28 pixels in grey, as numbers in 'pixels'"),
    ],
)
def test_numbers_of_pixels_are_images(tmp_path, row, words):
    write(tmp_path / "t.csv", [{"label": n % 2, **row(n)} for n in range(30)])
    found = prepared(tmp_path)
    assert words in next(each.message for each in found.record.noticed if each.code == "layout")
    kept = next(each for split in ("train", "validation", "test") for each in found.rows(split) if each["row"] == 3)
    assert (kept["label"], kept["width"], kept["height"]) == ("1", 28, 28)
    (tmp_path / "kept").write_bytes(bytes(kept["image"]))
    mode = "RGB" if "colour" in words else "L"
    assert np.asarray(Image.open(tmp_path / "kept")).reshape(-1).tolist() == pixels(3, mode)


@pytest.mark.parametrize(("value", "words"), [("256", "no number from 0 to 255"), ("", "no number from 0 to 255")])
def test_a_pixel_that_is_none_is_one_row(tmp_path, value, words):
    rows = [{"label": n % 2, **columns(n)} for n in range(30)]
    rows[4]["pixel9"] = value
    write(tmp_path / "t.csv", rows)
    found = prepared(tmp_path)
    assert found.record.dropped == {"not-an-image": 1}
    assert words in (found.folder / "data" / "dropped.jsonl").read_text()


def test_columns_that_are_no_square_are_no_image():
    schema = registry.schema("pictured")
    assert schema.layout([{"label": 1, **{f"pixel{n}": n for n in range(90)}}], {}) is None
    assert schema.layout([{"label": 1, "pixels": "a word"}], {}) is None
    assert schema.held({"pixel0": 1}) is None
    assert schema.held(columns(1)).data.startswith(b"P5 28 28 255\n")


def test_new_takes_pixels_for_images(vision, tmp_path):
    rows = [{"emotion": n % 2, "pixels": " ".join(map(str, pixels(n))), "Usage": "Training"} for n in range(30)]
    write(tmp_path / "t.csv", rows)
    done = command("new", "t.csv", "--model", vision / "vit", "-o", "r.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.task, recipe.domains["t"].columns.label) == ("image-classification", "emotion")
    assert command("check", "r.yaml", folder=tmp_path).code == 0


def test_choices_of_label_studio_for_images(vision, tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    tasks = []
    for n in range(24):
        (tmp_path / "data" / "images" / f"{n}.png").write_bytes(png(n))
        choice = {"type": "choices", "value": {"choices": [("cat", "dog")[n % 2]]}}
        tasks.append({"id": n, "data": {"image": f"/data/upload/1/{n}.png"}, "annotations": [{"result": [choice]}]})
    (tmp_path / "data" / "export.json").write_text(json.dumps(tasks))
    done = command("new", "data", "--model", vision / "vit", "-o", "r.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "# Labels: cat 12, dog 12." in (tmp_path / "r.yaml").read_text()
    assert "24    24" in command("check", "r.yaml", folder=tmp_path).out
