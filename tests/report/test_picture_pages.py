"""What a user is shown of a run on pictures: pictures, and nothing that speaks of texts."""

from __future__ import annotations

import io
import random
import re
import shutil

import pytest
from PIL import Image
from tiny_images import pictures_of

from hfadapt.core import registry
from hfadapt.core.show import TILE_WIDTH
from hfadapt.data.pictures import SIDE
from hfadapt.report.page import write_page
from hfadapt.report.pictures import ERROR_SIDE
from hfadapt.report.run_view import Run
from hfadapt.run_folder import read_rows

FOR_TEXTS = re.compile(r"\b(texts?|tokens?|tok|tokenizer|prompts?)\b", re.I)
ABOUT_ALL = re.compile(
    r"Verbatim reproduction, personal data|^#+ .*texts?|adaptation to texts|^\| `|^\| conflicts|```text", re.M
)
"""Headings of every card, settings by their name, and what does not apply."""


@pytest.mark.parametrize("name", ["one/this-machine/README.md", "report.md"])
def test_files_of_a_run_on_pictures_do_not_speak_of_texts(picture_run, name):
    text = (picture_run / name).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if FOR_TEXTS.search(line) and not ABOUT_ALL.search(line)] == []


def test_the_page_and_the_notebook_do_not(picture_run):
    for shown in ((picture_run / "report.html").read_text(encoding="utf-8"), Run(picture_run)._repr_html_()):
        words = re.sub(r"<style.*?</style>|<[^>]+>", " ", shown, flags=re.S)
        assert "images alone" in words
        assert FOR_TEXTS.findall(words) == []


def test_what_is_done_next_is_a_command_with_a_file(picture_run):
    assert "this-machine example.png\n" in (picture_run / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_no_picture_is_wider_than_its_place(modality):
    kind = registry.modality(modality)
    data = kind.take(kind.random(random.Random(3))).data
    for side in (SIDE, ERROR_SIDE):
        assert Image.open(io.BytesIO(kind.preview(data, side)[0])).width <= TILE_WIDTH


def rows(picture_run, domain, split):
    return read_rows(picture_run / domain / "this-machine" / "data" / f"{split}.parquet")


def shown_as(value, side):
    return Image.open(io.BytesIO(registry.modality("image").preview(value, side)[0])).convert("RGB").tobytes()


def test_the_page_and_the_notebook_show_errors_and_training_rows(picture_run):
    """Every wrong answer beside what is right, the surest first; pictures are in the page itself."""
    page = (picture_run / "report.html").read_text(encoding="utf-8")
    assert "http" not in re.sub(r'"data:[^"]*"|xmlns="[^"]*"', "", page)
    for text in (page, Run(picture_run)._repr_html_()):
        seen = pictures_of(text)
        learned = [(picture.tobytes(), said) for picture, said in seen if said in ("bar", "pole")]
        assert len(learned) == 12, "three of each class and domain"
        for picture, label in learned:
            known = [row for name in ("one", "two") for row in rows(picture_run, name, "train")]
            assert picture in {shown_as(bytes(row["image"]), 72) for row in known if row["label"] == label}
        wrong = [(picture.tobytes(), said) for picture, said in seen if said.startswith("right: ")]
        wanted = []
        for name in ("one", "two"):
            test = rows(picture_run, name, "test")
            for one in Run(picture_run).cell(name, "this-machine").evaluation.failures[:12]:
                said = f"right: {one.gold}adapter: {one.adapter} ({one.confidence:.0%})linear probe: {one.base}"
                wanted.append((shown_as(bytes(test[one.split_row]["image"]), 96), said))
        assert wrong == wanted
        assert wrong


def test_rows_that_cannot_be_read_leave_the_page_whole(picture_run, tmp_path):
    run = Run(shutil.copytree(picture_run, tmp_path / "run"))
    (run.folder / "one" / "this-machine" / "data" / "test.parquet").write_bytes(b"PAR1")
    shown = write_page(run, run.report).read_text(encoding="utf-8")
    assert "test.parquet" in shown
    assert any(said.startswith("right: ") for _, said in pictures_of(shown)), "those of the other domain"
