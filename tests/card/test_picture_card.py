"""The card of an adapter for pictures: errors are shown where it was made, and named in what is passed on."""

from __future__ import annotations

import io
import re
import shutil

import pytest
from PIL import Image
from tiny import command

from hfadapt.card.build import build_card, is_cut_off, without_pictures
from hfadapt.card.check import check_card
from hfadapt.run_folder import Cell


@pytest.fixture
def cell(picture_run, tmp_path):
    return Cell(shutil.copytree(picture_run / "one" / "this-machine", tmp_path / "cell"))


def problems(cell):
    return [str(each) for each in check_card(cell.folder, license="mit")]


def test_errors_are_pictures_beside_the_card(cell):
    text = (cell.folder / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| !\[([^\]]+)\]\((error-\d\.png)\) \| (bar|pole) \| (bar|pole) \|", text, re.M)
    failures = cell.evaluation.failures[:5]
    assert [name for _, name, _, _ in found] == [f"error-{n + 1}.png" for n in range(len(failures))]
    assert found
    test = cell.read_split("test")
    for (file, name, gold, said), one in zip(found, failures, strict=True):
        row = test[one.split_row]
        assert (file.replace("\\", ""), gold, said) == (row["file"], one.gold, one.adapter)
        seen, kept = (Image.open(each).convert("RGB") for each in (cell.folder / name, io.BytesIO(bytes(row["image"]))))
        assert (
            seen.convert("RGB").resize(kept.size, Image.Resampling.NEAREST).tobytes() == kept.convert("RGB").tobytes()
        )
    assert problems(cell) == []


def test_what_is_passed_on_has_their_names_alone(cell):
    own, beside = ((folder / "README.md").read_text(encoding="utf-8") for folder in (cell.folder, cell.adapter))
    assert beside == without_pictures(own) != own
    assert "error-" not in beside
    assert all(row["file"] in own for row in [cell.read_split("test")[cell.evaluation.failures[0].split_row]])
    assert not list(cell.adapter.glob("error-*"))
    assert not is_cut_off(cell.folder / "README.md", cell.folder)
    (cell.adapter / "README.md").write_text(beside[:9000], encoding="utf-8")
    assert is_cut_off(cell.adapter / "README.md", cell.folder)


def test_names_with_brackets_are_taken_out_whole():
    assert without_pictures(r"| ![a\]\(b\[c\].png](error-12.jpeg) | x ![Loss by step](loss.svg)") == (
        r"| a\]\(b\[c\].png | x ![Loss by step](loss.svg)"
    )


def test_a_missing_picture_is_found_and_an_old_one_goes(cell):
    (cell.folder / "error-1.png").unlink()
    assert any("a picture of the card is missing" in each for each in problems(cell))
    (cell.folder / "error-99.png").write_bytes(b"old")
    build_card(cell, execute=False)
    assert problems(cell) == []
    assert not (cell.folder / "error-99.png").exists()


@pytest.mark.parametrize("pictures", [False, True])
def test_they_are_published_only_if_asked(picture_run, tmp_path, pictures):
    more = ["--pictures"] if pictures else []
    done = command("publish", picture_run / "one" / "this-machine", "--to", tmp_path / "out", "--license", "mit", *more)
    assert done.code == 0, done.err
    sent = sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert sent == sorted(set(re.findall(r"\((error-\d\.png)\)", text)))
    assert bool(sent) is pictures
    said = "with " if pictures else "without the pictures of test rows that the card shows here; --pictures sends them"
    assert said in " ".join(done.out.split())
    assert not any(path.suffix == ".parquet" for path in (tmp_path / "out").rglob("*"))


def test_what_was_done_with_the_pictures_is_said_as_it_was(cell):
    text = (cell.folder / "README.md").read_text(encoding="utf-8")
    brought = cell.data.audit.brought
    enlarged = sum(min(row["width"], row["height"]) > 32 for row in cell.read_split("train"))
    assert f"{enlarged} of {cell.data.splits['train']} scaled down" in brought
    assert text.count(brought) == 2
    assert "were scaled down to" not in text
    assert problems(cell) == []
