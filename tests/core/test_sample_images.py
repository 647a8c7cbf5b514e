"""Pictures of packages: rows with the bytes of a file and its name, as the Hub's Image feature."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from test_samples import offer

from hfadapt.core import samples
from hfadapt.core.errors import RunError
from hfadapt.core.samples.images import png


def wheel(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def rows_of(monkeypatch, cache_folder, files, listed, prepare, **fields):
    archive = {"archive": "wheel", "files": listed, "prepare": prepare}
    offer(monkeypatch, cache_folder, "datasets", "d", wheel(files), **archive, **fields)
    return parquet.read_table(samples.dataset("d").path).to_pylist()


def pixels(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (28, 28), (3, 300), (300, 3)])
def test_png_files_hold_the_pixels(shape):
    drawn = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    opened = Image.open(io.BytesIO(png(drawn)))
    assert (opened.format, opened.mode, opened.size) == ("PNG", "L", shape[::-1])
    assert (np.asarray(opened) == drawn).all()


@pytest.mark.parametrize(("prepare", "side", "most"), [("digits-8x8", 8, 16), ("digits-28x28", 28, 255)])
def test_digits_are_stretched_to_the_whole_range(cache_folder, monkeypatch, prepare, side, most):
    strengths = np.zeros((2, side, side), dtype=int)
    strengths[0, 0, 1], strengths[1, side - 1, 0] = most, most // 2
    lines = [",".join(map(str, [*picture.flatten(), label])) for picture, label in zip(strengths, (7, 0), strict=True)]
    packed = gzip.compress("\n".join(lines).encode())
    first, second = rows_of(monkeypatch, cache_folder, {"p/a.csv.gz": packed}, ["p/a.csv.gz"], prepare)
    assert (first["label"], second["label"]) == ("7", "0")
    assert first["image"]["path"] != second["image"]["path"]
    expected = np.zeros((side, side), dtype=int)
    expected[0, 1] = 255
    assert (pixels(first) == expected).all()
    assert pixels(second)[-1, 0] in (127, 128)
    assert pixels(second).sum() == pixels(second)[-1, 0]


def test_folders_are_labels_and_other_files_are_left_alone(cache_folder, monkeypatch):
    files = {"p/x/bad/1.jpg": b"one", "p/x/good/1.jpg": b"two", "p/x/good/readme.txt": b"no", "p/y/1.jpg": b"no"}
    rows = rows_of(monkeypatch, cache_folder, files, ["p/x/*/*.jpg"], "image-folders")
    assert rows == [
        {"image": {"bytes": b"one", "path": "bad/1.jpg"}, "label": "bad"},
        {"image": {"bytes": b"two", "path": "good/1.jpg"}, "label": "good"},
    ]


def test_solar_cells_of_one_kind_without_those_in_doubt(cache_folder, monkeypatch):
    table = "images/1.png 1.0 mono\nimages/2.png 0.0  mono\nimages/3.png 0.333 mono\nimages/4.png 1.0 poly\n"
    files = {"p/labels.csv": table, **{f"p/images/{i}.png": f"{i}" for i in (1, 2, 3, 4)}}
    listed = ["p/labels.csv", "p/images/*.png"]
    rows = rows_of(monkeypatch, cache_folder, files, listed, "solar-cells", member="mono")
    assert [(row["image"]["path"], row["image"]["bytes"], row["label"]) for row in rows] == [
        ("1.png", b"1", "defective"),
        ("2.png", b"2", "intact"),
    ]


def test_a_pattern_that_matches_nothing_is_said(cache_folder, monkeypatch):
    with pytest.raises(RunError, match="does not hold the expected file") as caught:
        rows_of(monkeypatch, cache_folder, {"p/a.txt": b""}, ["p/*.jpg"], "image-folders")
    assert "p/*.jpg" in str(caught.value)


def test_digits_of_an_installed_package_need_no_download(cache_folder, monkeypatch):
    monkeypatch.setattr(samples, "_archive", lambda sample: pytest.fail("something was fetched"))
    rows = parquet.read_table(samples.dataset("digits/uci").path).to_pylist()
    assert len(rows) == 1797
    assert [row["label"] for row in rows[:3]] == ["0", "1", "2"]
    assert (pixels(rows[0]).shape, pixels(rows[0]).max()) == ((8, 8), 239)


def test_another_file_of_an_installed_package_is_refused(cache_folder, monkeypatch):
    entry = samples.dataset_entry("digits/uci").model_dump(exclude={"name", "path"})
    changed = {**entry, "sha256": hashlib.sha256(b"other").hexdigest()}
    monkeypatch.setattr(samples, "_catalogue", lambda: {"datasets": {"digits/uci": changed}})
    with pytest.raises(RunError, match="is not the one that was expected") as caught:
        samples.dataset("digits/uci")
    assert "another sha256" in str(caught.value)
    assert "pip install --force-reinstall --no-deps scikit-learn" in str(caught.value)
