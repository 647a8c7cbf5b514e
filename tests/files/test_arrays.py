"""Images and labels as arrays: `.npz` as MedMNIST and Keras have them, MNIST's own files, MATLAB's; what is none."""

from __future__ import annotations

import gzip
import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

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
@example(864, 1)  # as if a password were needed
def test_damage_is_said(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    np.savez(path, images=GREY, labels=np.arange(6))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    with suppress(DataError):
        rows(path)


def idx(array):
    """An array of whole numbers from 0 to 255 as MNIST keeps one."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    "place",
    [
        "{split}-{kind}-idx{axes}-ubyte",
        "{split}-{kind}.idx{axes}-ubyte",
        "{split}-{kind}-idx{axes}-ubyte.gz",
        "{split}-{kind}-idx{axes}-ubyte/{split}-{kind}-idx{axes}-ubyte",
        "emnist-letters-{split}-{kind}-idx{axes}-ubyte.gz",
    ],
)
def test_files_of_mnist(tmp_path, place):
    splits = {"train": (GREY, np.arange(6)), "test" if "emnist" in place else "t10k": (COLOURED[:2], np.array([7, 8]))}
    for split, (images, labels) in splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            path = tmp_path / "set" / place.format(split=split, kind=kind, axes=array.ndim)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))
    found = folders.chosen(tmp_path / "set")
    assert found.others == ("test",)
    assert found.foreign == found.left == ()
    values = [row for path in found.data for row in rows(path)]
    assert [row["label"] for row in values] == [*range(6)]
    np.testing.assert_array_equal(pixels(values[5]), GREY[5])
    assert "/" not in values[5]["image"]["path"].removesuffix("/5.png")
    test = [row for path in folders.chosen(tmp_path / "set", "test").data for row in rows(path, "test")]
    assert [row["label"] for row in test] == [7, 8]
    np.testing.assert_array_equal(pixels(test[1]), COLOURED[1])
    # One file is read with its labels, which its prepared rows belong to as well.
    single = next(path for path in found.data if "images" in path.name)
    assert {*folders.chosen(single).data} == {*found.data}


def test_arrays_beside_other_files(tmp_path):
    savemat(tmp_path / "set.mat", {"images": GREY, "labels": np.arange(6)})
    (tmp_path / "about.txt").write_text("some images\n")
    (tmp_path / "about.json").write_text('{"images": 6}')
    found = folders.chosen(tmp_path)
    assert [path.name for path in found.data] == ["set.mat"]
    assert {path.name for path in found.left} == {"about.txt", "about.json"}
    (tmp_path / "about.json").unlink()
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    assert [path.name for path in folders.chosen(tmp_path).data] == ["rows.csv"]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (idx(GREY), None, "put train-labels-idx1-ubyte beside it"),
        (idx(GREY)[:-1], idx(np.arange(6)), "cut off"),
        (idx(GREY)[:9], idx(np.arange(6)), "cut off"),
        (b"", idx(np.arange(6)), "no IDX"),
        (b"<html>no such page</html>", idx(np.arange(6)), "web page"),
        (idx(GREY), idx(np.arange(5)), "(6, 9, 8) and"),
        (struct.pack(">HBB3I", 0, 8, 3, *[1 << 31] * 3), idx(np.arange(6)), "takes"),
        (struct.pack(">HBB3I", 0, 13, 3, 1, 2, 3), idx(np.arange(6)), "no IDX"),
    ],
)
def test_files_of_mnist_that_are_none(tmp_path, images, labels, said):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(images)
    if labels is not None:
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DataError) as caught:
        rows(path)
    assert said in str(caught.value)


def test_matlab_counts_images_last(tmp_path):
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": np.moveaxis(COLOURED, 0, -1), "y": np.arange(1.0, 7.0)[:, None]}, do_compression=True)
    found = rows(path)
    assert [row["label"] for row in found] == [*range(1, 7)]
    np.testing.assert_array_equal(pixels(found[4]), COLOURED[4])
    named = tmp_path / "named.mat"
    content = {"train_images": GREY.astype(float), "train_labels": np.array(["cat", "a dog"] * 3, dtype=object)}
    savemat(named, {**content, "test_images": GREY[:2], "test_labels": np.array([[1, 2]])})
    assert arrays.split_names(named) == {"train": "train", "test": "test"}
    found = rows(named)
    assert [row["label"] for row in found] == ["cat", "a dog"] * 3
    np.testing.assert_array_equal(pixels(found[3]), GREY[3])
    assert [row["label"] for row in rows(named, "test")] == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n".ljust(512, b"\0"), "-v7"),
        (b"no such thing", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_matlab_that_is_not_read(tmp_path, content, said):
    path = tmp_path / "set.mat"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows(path)
    assert said in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2_000), st.integers(0, 255), st.booleans())
def test_damage_of_matlab_is_said(tmp_path_factory, at, byte, packed):
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    savemat(path, {"images": GREY, "labels": np.arange(6)[:, None]}, do_compression=packed)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    with suppress(DataError):
        rows(path)
