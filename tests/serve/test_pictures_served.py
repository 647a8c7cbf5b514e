"""Adapters for pictures at work: asked for files and values in memory, several on one base, exported."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import command
from tiny_images import marked

from hfadapt import load_adapted, load_bank
from hfadapt.core.errors import RequestError
from hfadapt.serve.asked import answered, file_rows


@pytest.fixture(scope="module")
def cell(picture_run):
    return picture_run / "one" / "this-machine"


@pytest.fixture(scope="module")
def adapted(cell):
    return load_adapted(cell)


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        marked("bar", 700 + number).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(3)]


def said(answers):
    return [(answer.label, round(answer.probability, 6)) for answer in answers]


def test_a_picture_is_given_in_every_way(adapted, files):
    path, picture = files[0], Image.open(files[0])
    (wanted,) = said(adapted.predict(str(path)))
    ways = [path, path.read_bytes(), picture, np.asarray(picture), {"path": str(path)}, {"bytes": path.read_bytes()}]
    for way in ways:
        assert said(adapted.predict(way)) == [wanted], type(way)
    assert said(adapted.predict(ways)) == [wanted] * len(ways)
    assert [answer.text for answer in adapted.predict(files)] == list(map(str, files))
    grey = np.asarray(picture.convert("L"))
    assert said(adapted.predict(grey)) == said(adapted.predict([grey[:, :, None]]))
    assert said(adapted.predict(np.stack([np.asarray(picture)] * 2))) == [wanted] * 2


def test_tables_and_open_files_are_pictures_too(adapted, files):
    wanted = said(adapted.predict(files))
    names = list(map(str, files))
    data = datasets.Dataset.from_dict({"image": names}).cast_column("image", datasets.Image())
    for table in (pd.DataFrame({"file": names}), pd.DataFrame({"image": names, "n": 1}), data):
        assert said(adapted.predict(table)) == wanted
    with files[0].open("rb") as one:
        assert said(adapted.predict(one)) == wanted[:1]
    assert "row 1" in adapted.predict([each.read_bytes() for each in files])._repr_html_()


def test_what_is_no_picture_is_named_by_its_row(adapted, files):
    for wrong, words in (
        ({"foo": 1}, "row 0 has no image, only foo"),
        ([files[0], b"abc"], "row 1: this image cannot be read"),
        ("https://x.y/a.png", "an address of the web"),
        (np.zeros((9, 9, 3)), "an array (9, 9, 3) of float64"),
    ):
        with pytest.raises(RequestError) as caught:
            adapted.predict(wrong)
        assert words in str(caught.value)


def test_a_picture_that_a_camera_turned_is_the_same_in_memory(adapted, files, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[0]).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert said(adapted.predict(turned)) == said(adapted.predict(files[0])) == said(adapted.predict(turned.filename))


@pytest.mark.parametrize("value", [3, [None], np.zeros((4, 4)), [["a.png"]]])
def test_what_is_no_picture_is_refused(adapted, value):
    with pytest.raises(RequestError, match="an image is expected") as caught:
        adapted.predict(value)
    assert "a path, bytes, a PIL image" in str(caught.value)


def test_broken_files_are_all_named(adapted, files, tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<!doctype html>")
    with pytest.raises(RequestError) as caught:
        adapted.predict([files[0], tmp_path / "page.jpg", tmp_path / "none.png"])
    text = str(caught.value)
    assert f"{tmp_path / 'page.jpg'}" in text
    assert "a web page and no image" in text
    assert "No such file" in text
    assert str(files[0]) not in text


def test_the_command_goes_on_after_a_broken_file(cell, files, tmp_path):
    files[1].write_bytes(files[1].read_bytes()[:60])
    done = command("predict", cell, "0.png", "1.png", "none.png", "2.png", folder=tmp_path)
    assert done.code == 1
    assert re.fullmatch(r"0\.png: (bar|pole) \(\d+%\)\n2\.png: (bar|pole) \(\d+%\)\n", done.out)
    assert "1.png" in done.err
    assert "60 bytes that are no whole image" in done.err
    assert "none.png" in done.err
    assert "No such file or directory" in done.err
    assert "Traceback" not in done.err
    whole = command("predict", cell, "0.png", "2.png", "--json", folder=tmp_path)
    assert whole.code == 0, whole.err
    assert [answer["file"] for answer in json.loads(whole.out)] == ["0.png", "2.png"]
    assert re.fullmatch(r"(bar|pole) \(\d+%\)\n", command("predict", cell, "0.png", folder=tmp_path).out)
    none = command("predict", cell, "none.png", folder=tmp_path)
    assert (none.code, none.out) == (1, "")


def test_a_bank_answers_as_each_adapter_alone(picture_run, files):
    bank = load_bank(picture_run)
    asked, domains = [files[0], files[1].read_bytes(), Image.open(files[2])], ["one", "two", "one"]
    alone = [
        said(load_adapted(picture_run, domain).predict([value])) for value, domain in zip(asked, domains, strict=True)
    ]
    for (one,), other in zip(alone, said(bank.predict(asked, domains)), strict=True):
        assert (one[0], one[1]) == (other[0], pytest.approx(other[1], abs=1e-5))
    assert said(load_adapted(picture_run, "two").predict(files[0])) != said(
        load_adapted(picture_run, "one").predict(files[0])
    )


@pytest.mark.parametrize("format", ["adapter", "merged"])
def test_an_export_answers_alike(cell, adapted, files, vision, tmp_path, format):
    done = command("export", cell, "--to", tmp_path / "out", "--format", format)
    assert done.code == 0, done.err
    assert "example.png" in done.out
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".png", ".parquet")]
    assert "error-" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.md"))
    base = str(vision / "dino") if format == "adapter" else None
    found = load_adapted(tmp_path / "out", base=base).predict(files)
    for one, other in zip(found, adapted.predict(files), strict=True):
        assert (one.label, one.probability) == (other.label, pytest.approx(other.probability, abs=2e-2))


def test_what_is_published_can_be_opened(cell, adapted, files, vision, tmp_path):
    done = command("publish", cell, "--to", tmp_path / "out", "--license", "mit", "--pictures")
    assert done.code == 0, done.err
    base = shutil.copytree(vision / "dino", tmp_path / "base")
    found = load_adapted(tmp_path / "out", base=str(base)).predict(files)
    assert said(found) == said(adapted.predict(files))
    assert (tmp_path / "out" / "SHA256SUMS").read_text().count("error-") == len(
        list((tmp_path / "out").glob("error-*"))
    )


def test_a_folder_is_asked_about_whatever_the_column_of_names_was_called(adapted, files, tmp_path):
    """A recipe's table names its files in a column; the name of a file in a folder stands in one called `file`, too."""
    named = replace(adapted, columns={**adapted.columns, "image": "file"})
    found = [each.answer for each in answered(named, file_rows(tmp_path), source="folder")]
    assert [each and each.text for each in found] == [file.name for file in files]
    assert [each.label for each in adapted.predict(files)] == [each.label for each in found]


def test_a_folder_in_the_place_of_a_picture_is_said(cell, files, tmp_path):
    done = command("predict", cell, tmp_path.name, folder=tmp_path.parent)
    assert done.code == 1
    assert "this is a folder, and no image" in done.err
    assert command("predict", cell, "--file", tmp_path.name, folder=tmp_path.parent).code == 0


def test_a_table_may_name_files_without_ending_or_hold_their_pixels(adapted, files, tmp_path):
    (tmp_path / "test").mkdir()
    for path in files:
        path.rename(tmp_path / "test" / path.name)
    (tmp_path / "rows.csv").write_text("file\n0\n2\n7\n")
    found = [*answered(adapted, file_rows(tmp_path / "rows.csv"), source="rows.csv", folder=tmp_path)]
    assert [bool(each.answer) for each in found] == [True, True, False]
    assert found[2].fault == "line 4 of rows.csv: this image cannot be read, 7, No such file or directory"
    grey = np.asarray(Image.open(tmp_path / "test" / "0.png").convert("L")).reshape(-1)
    (tmp_path / "pixels.csv").write_text(
        ",".join(f"pixel{place}" for place in range(len(grey))) + "\n" + ",".join(map(str, grey)) + "\n"
    )
    (held,) = answered(adapted, file_rows(tmp_path / "pixels.csv"), source="pixels.csv", folder=tmp_path)
    assert said([held.answer]) == said(adapted.predict(grey.reshape(32, 32)))
