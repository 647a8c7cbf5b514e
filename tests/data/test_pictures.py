"""What check shows of rows that are pictures: a sheet of each class, dropped pairs, and files that are doubtful."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from tiny import recipe_fields, write_recipe
from tiny_images import pictures_of, scene, write_folders
from tiny_sounds import tone, wav, write_sounds

from hfadapt.core.errors import DataError
from hfadapt.data import prepare
from hfadapt.pipeline.run import check_recipe
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe

FEW = {"validation": 8, "test": 8}


@pytest.fixture(scope="module")
def folder(vision, tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    one = write_folders(folder / "one", 90)
    for path in one.glob("*/*5.png"):
        Image.open(path).resize((48, 40)).save(path)
    (one / "bar" / "broken.png").write_bytes((one / "bar" / "000.png").read_bytes()[:60])
    (one / "bar" / "again.png").write_bytes((one / "bar" / "002.png").read_bytes())
    scene(7, (6, 30)).save(one / "pole" / "tiny.png")
    Image.new("RGB", (36, 36), "white").save(one / "pole" / "white.png")
    fields = recipe_fields(vision / "dino", "image-classification", {"one": {"source": "one"}})
    write_recipe(folder / "r.yaml", fields)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return check_recipe(load_recipe(folder / "r.yaml"), recipe_folder=folder)


def test_every_class_is_shown_as_it_is(report, folder):
    page = report._repr_html_()
    shown = [pair for pair in pictures_of(page) if "/" not in pair[1]]
    assert [name for _, name in shown] == ["bar"] * 3 + ["pole"] * 3
    for seen, name in shown:
        files = [
            Image.open(path).convert("RGB") for path in (folder / "one" / name).iterdir() if "broken" not in path.name
        ]
        twice = [each.resize((64, 64), Image.Resampling.NEAREST).tobytes() for each in files]
        whole = [each.tobytes() for each in files]
        assert seen.tobytes() in [*twice, *whole], "those of 32 pixels are enlarged to twice the size"
    assert len(page) < 100_000
    assert "<script" not in page
    assert "http" not in page


def test_the_choice_is_the_same_each_time(report, folder):
    again = check_recipe(load_recipe(folder / "r.yaml"), recipe_folder=folder)
    assert again._repr_html_() == report._repr_html_()


def test_what_was_dropped_is_beside_what_was_kept(report):
    pair = [(seen, said) for seen, said in pictures_of(report._repr_html_()) if "/" in said]
    assert {said for _, said in pair} == {"bar/002.pngkept", "bar/again.pngexact-duplicate"}
    assert list(pair[0][0].getdata()) == list(pair[1][0].getdata())


def test_dropped_recordings_are_shown_whatever_their_files_are(hearing, tmp_path):
    """The files are read again for it: several channels, 24 bits, and no WAV at all."""
    soundfile = pytest.importorskip("soundfile")
    low = write_sounds(tmp_path / "one", 40) / "low"
    rate, sound = wavfile.read(low / "low_s0_000.wav")
    (low / "both.wav").write_bytes(wav(np.stack([sound, sound], axis=1), rate))
    for name in ("again.flac", "again.aiff", "deep.wav"):
        soundfile.write(low / name, sound, rate, subtype="PCM_24")
    fields = recipe_fields(hearing / "whisper", "audio-classification", {"one": {"source": "one"}}) | {"data": FEW}
    write_recipe(tmp_path / "r.yaml", fields)
    report = check_recipe(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)
    pairs = [(seen, said) for seen, said in pictures_of(report._repr_html_()) if "/" in said]
    shown = {said.partition(".")[0] for _, said in pairs if said.endswith("duplicate")}
    assert shown >= {"low/both", "low/again", "low/deep"}
    assert {seen.size for seen, _ in pairs} == {(144, 72)}


def test_recordings_that_are_cut_to_the_clip_of_the_model_are_counted_and_named(hearing, tmp_path):
    for number, path in enumerate(sorted(write_sounds(tmp_path / "one", 40).glob("low/*"))):
        path.write_bytes(wav(tone("low", 70 + number, seconds=2.5)))
    fields = recipe_fields(hearing / "whisper", "audio-classification", {"one": {"source": "one"}}) | {"data": FEW}
    write_recipe(tmp_path / "r.yaml", fields)
    [record] = check_recipe(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path).records
    audit = record.audit
    assert 0 < audit.truncated_rows < audit.rows
    [found] = [each for each in record.audit.findings if each.code == "truncated"]
    assert found.message.startswith(f"the recording is cut off in {audit.truncated_rows} of {audit.rows} ")
    assert found.fix == "the model reads 50 positions at most: shorten these rows, or set data.too_long: drop"
    assert audit.longest[0].tokens == 125


def test_a_terminal_has_counts_and_sizes(report):
    text = str(report)
    (line,) = (block for block in text.split("\n\n") if "training images" in block)
    rows = report.records[0].splits["train"]
    assert " ".join(line.split()).startswith(
        f"{rows} training images: width 32 to 48 pixels, median 32; height 32 to 40"
    )
    assert "data:" not in text


def test_doubtful_files_are_named(report):
    found = {each.code: each for each in report.records[0].audit.findings}
    kept = report.records[0].rows_kept
    assert found["tiny-image"].message == f"a side of less than 8 pixels in 1 of {kept} images: pole/tiny.png"
    assert found["blank-image"].message == f"one even colour in 1 of {kept} images: pole/white.png"
    assert ", bar/broken.png, has 60 bytes that are no whole image" in found["rows-left-out"].message
    assert not report.hard


def test_many_broken_files_stop_it(vision, tmp_path):
    one = write_folders(tmp_path / "one", 30)
    for path in sorted(one.glob("bar/*"))[:8]:
        path.write_bytes(b"<!doctype html>")
    write_recipe(
        tmp_path / "r.yaml", recipe_fields(vision / "dino", "image-classification", {"one": {"source": "one"}})
    )
    with pytest.raises(DataError, match="8 of 30 rows have files that cannot be read") as caught:
        check_recipe(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)
    assert "bar/000.png, has a web page and no image" in str(caught.value)
    assert "replace these files" in str(caught.value)


@pytest.mark.parametrize("columns", [{}, {"label": "file", "label_pattern": "^([a-z]+)_"}])
def test_pictures_for_a_task_of_recordings_are_told_as_such(hearing, tmp_path, columns):
    """Beside a picture stands its name, which is none of a recording."""
    write_folders(tmp_path / "one", 30)
    domains = {"one": {"source": "one", "columns": columns}}
    write_recipe(tmp_path / "r.yaml", recipe_fields(hearing / "whisper", "audio-classification", domains))
    with pytest.raises(DataError, match="the files are images, and the task learns from recordings") as caught:
        check_recipe(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)
    assert "set task: image-classification and a model for it" in str(caught.value)


def test_what_is_not_read_is_said_of_prepared_rows_too(tmp_path):
    folder = write_folders(tmp_path / "pictures", 40)

    def noticed():
        recipe = Recipe(name="r", model="none", task="image-classification", domains={"d": "pictures"})
        made = prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"].record
        return made.fingerprint, [each.message for each in made.noticed if each.code == "files-not-read"]

    before, said = noticed()
    assert said == []
    (folder / "bar" / "film.mp4").write_bytes(b"film")
    # The rows are those of before.
    assert noticed() == (before, ["pictures: 1 file is not read: 1 .mp4 (bar/film.mp4)"])


@pytest.mark.parametrize("task", ["image-multi-label", "image-regression"])
def test_pictures_with_several_classes_or_a_number_are_shown_with_what_they_have(vision, tmp_path, task):
    """Before, each had one of its classes, and of numbers three were shown without one."""
    lines = []
    for number in range(60):
        scene(number, (32, 32)).save(tmp_path / f"{number}.png")
        value = [name for bit, name in enumerate(("bar", "pole")) if number >> bit & 1]
        label = value if task == "image-multi-label" else number + 0.5
        lines.append(json.dumps({"image": f"{number}.png", "label": label}))
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    fields = recipe_fields(vision / "dino", task, {"one": {"source": "t.jsonl"}})
    write_recipe(tmp_path / "r.yaml", {**fields, "data": {**FEW, "dedupe": {"near": False}}})
    page = check_recipe(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)._repr_html_()
    shown = [caption for _, caption in pictures_of(page)]
    if task == "image-multi-label":
        assert {*shown} >= {"bar, pole", "none of the classes"}
        assert {*shown} <= {"bar", "pole", "bar, pole", "none of the classes"}
    else:
        numbers = [float(caption) for caption in shown]
        assert len(numbers) == 12
        assert numbers == sorted(numbers)
        assert numbers[0] < 8
        assert numbers[-1] > 51
