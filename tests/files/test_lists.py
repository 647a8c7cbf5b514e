"""Texts that list images with what is known of each, in the ways that published sets have them."""

from __future__ import annotations

import json

import pytest
from tiny_images import png

from hfadapt.files import Read, Unread, folders, lists, reading

NAMES = [f"im{number}.png" for number in range(12)]


def rows(path):
    return [item.values for item in reading.rows(path) if isinstance(item, Read)]


def written(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "above", "known"),
    [
        ("{} 3", [], {"label": "3"}),
        ("{}\tgreat dog", [], {"label": "great dog"}),
        ("{},cat", [], {"label": "cat"}),
        ("{} , 4.5", ["12"], {"label": "4.5"}),
        ("{} great dog", ["image_name label"], {"label": "great dog"}),
        ("{} -1  1", ["12", "Bald Young"], {"Bald": "-1", "Young": "1"}),
        ("{} 0.5 7", ["file score age"], {"score": "0.5", "age": "7"}),
        ('"{}";"cat"', [], {"label": "cat"}),
        ("a b/{} 3", [], {"label": "3"}),
    ],
)
def test_every_way_to_write_one(tmp_path, line, above, known):
    path = written(tmp_path / "list.txt", [*above, *(line.format(name) for name in NAMES)])
    folder = "a b/" if line.startswith("a b/") else ""
    assert rows(path) == [{"file_name": folder + name, **known} for name in NAMES]
    assert reading.column_names(path) == ("file_name", *known)


def test_classes_of_several_words_are_one_value(tmp_path):
    path = written(tmp_path / "list.txt", [f"{name} {'cat' if n % 2 else 'great dog'}" for n, name in enumerate(NAMES)])
    assert {row["label"] for row in rows(path)} == {"cat", "great dog"}


def test_lines_that_are_not_as_the_others_are_said(tmp_path):
    path = written(tmp_path / "list.txt", [*(f"{name} 1 2" for name in NAMES), "im12.png 1", "", "# the end"])
    bad = [item for item in reading.rows(path) if isinstance(item, Unread)]
    assert [(item.reason, item.line) for item in bad] == [("wrong-fields", 13), ("wrong-fields", 15)]


@pytest.mark.parametrize(
    "lines",
    [
        NAMES,
        ["a text about im1.png and what it shows"] * 12,
        ["the first line", "and another", "im1.png 3"],
        ["x" * 9_000 + ".png 3"] * 3,
        [],
    ],
)
def test_other_texts_are_none(tmp_path, lines):
    assert lists.layout_of(written(tmp_path / "list.txt", lines)) is None


def test_it_names_files_in_the_place_of_a_table(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(png(number))
    for split, own in (("train", NAMES[:8]), ("test", NAMES[8:])):
        written(tmp_path / f"{split}.txt", [f"{name} {number % 2}" for number, name in enumerate(own)])
    found = folders.chosen(tmp_path)
    assert [each.name for each in found.data] == ["train.txt"]
    assert found.others == ("test",)
    assert [each.name for each in folders.chosen(tmp_path, "test").data] == ["test.txt"]
    # A table says it better.
    written(tmp_path / "table.jsonl", [json.dumps({"image": name, "label": "a"}) for name in NAMES])
    assert [each.name for each in folders.find(tmp_path).data] == ["table.jsonl"]


def test_folders_of_classes_say_more_than_numbers(tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / ("cat", "dog")[number % 2] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    written(tmp_path / "test.txt", [f"{('cat', 'dog')[n % 2]}/{name} {n % 2}" for n, name in enumerate(NAMES[:4])])
    found = folders.find(tmp_path)
    assert len(found.data) == len(NAMES)
    assert [each.name for each in found.lists] == ["test.txt"]
    assert {*found.listed.values()} == {"test"}
