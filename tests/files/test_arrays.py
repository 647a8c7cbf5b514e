"""Images and labels in one `.npz`, as MedMNIST and Keras have them; and what is none."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hfadapt.core.errors import DataError
from hfadapt.files import Read, arrays, folders, reading

CHANCE = np.random.default_rng(7)
GREY, COLOURED = (CHANCE.integers(0, 256, shape, dtype=np.uint8) for shape in ((6, 9, 8), (6, 9, 8, 3)))


def rows(path, split=None):
    return [item.values for item in reading.rows(path, split) if isinstance(item, Read)]


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("x_train", "y_train", "x_valid", "y_valid"),
        ("train_data", "train_targets", "dev_img", "dev_class"),
    ],
)
def test_splits_as_they_are_named(tmp_path, names):
    path = tmp_path / "set.npz"
    content = (GREY, np.arange(6)[:, None], COLOURED[:2], np.arange(2))
    np.savez_compressed(path, **dict(zip(names, content, strict=True)))
    assert {*arrays.split_names(path).values()} == {"train", "validation"}
    found = rows(path)
    assert [row["label"] for row in found] == [*range(6)]
    for row, wanted in zip(found, GREY, strict=True):
        np.testing.assert_array_equal(pixels(row), wanted)
    np.testing.assert_array_equal(pixels(rows(path, "validation")[1]), COLOURED[1])
    assert folders.chosen(path, "validation").data == (path,)
    with pytest.raises(DataError, match="no such split"):
        folders.chosen(path, "test")


def test_a_single_split_and_several_classes(tmp_path):
    path = tmp_path / "set.npz"
    flags = np.array([[0, 1, 1], [1, 0, 0]] * 3)
    np.savez(path, images=COLOURED.astype(np.int64), labels=flags, about=np.array("a text"))
    assert arrays.split_names(path) == {}
    assert [row["label"] for row in rows(path)] == flags.tolist()
    assert folders.chosen(path).data == (path,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": GREY}, "no images with labels"),
        ({"images": GREY, "labels": np.arange(5)}, "(6, 9, 8) and labels (5,)"),
        ({"x": GREY.reshape(6, -1), "y": np.arange(6)}, "not of images"),
        ({"images": GREY / 255, "labels": np.arange(6)}, "0 to 255"),
        ({"images": GREY.astype(int) - 4, "labels": np.arange(6)}, "0 to 255"),
        ({"images": GREY, "labels": np.array([{}] * 6, dtype=object)}, "cannot be read"),
        ({}, "no arrays"),
    ],
)
def test_what_is_none_is_said(tmp_path, content, said):
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(DataError) as caught:
        rows(tmp_path / "set.npz")
    assert said in str(caught.value)
    assert "write each image as a PNG" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2_000), st.integers(0, 255))
def test_damage_is_said(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    np.savez(path, images=GREY, labels=np.arange(6))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    with suppress(DataError):
        rows(path)
