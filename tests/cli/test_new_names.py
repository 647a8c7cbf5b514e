"""`hfadapt new` on a flat folder: class and speaker are taken from the names of recordings and pictures, and said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny import command
from tiny_images import png, write_folders

from hfadapt.cli.new_recipe import write_recipe
from hfadapt.recipe.reading import load_recipe


def new(model, data, folder):
    return command("new", "--model", model, "--data", data, "-o", "r.yaml", folder=folder)


SPOKEN = Path(__file__).parents[1] / "data_files/spoken_digits"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def recordings(folder, name):
    """Real recordings of ten digits by six speakers, under other names."""
    folder.mkdir()
    for number, path in enumerate(sorted(SPOKEN.glob("*.wav"))):
        digit, speaker, take = path.stem.split("_")
        said = {"speaker": speaker, "digit": digit, "word": WORDS[int(digit)], "take": take, "n": number}
        said |= {"who": f"{SPEAKERS.index(speaker) + 1:02}", "half": number % 2}
        shutil.copy(path, folder / f"{name.format(**said)}.wav")


NAMED = (
    *("{speaker}_{word}_{take}", "{speaker}-{word}-x_{take}", "{word}_{n}", "set_{word}_{n}"),
    *("{word}_{who}_{take}", "{who}_{word}_take{half}", "{word}_spk{who}_{take}"),
)


@pytest.mark.parametrize("name", NAMED)
def test_class_and_speaker_are_taken_from_the_names(hearing, tmp_path, name):
    recordings(tmp_path / "clips", name)
    done = new(hearing / "whisper", "clips", tmp_path)
    assert done.code == 0, done.err
    columns = load_recipe(tmp_path / "r.yaml").domains["clips"].columns
    [*files] = sorted((tmp_path / "clips").iterdir())
    assert {columns.class_in(path.name) for path in files} == {*WORDS}
    assert columns.label == "file"
    written = (tmp_path / "r.yaml").read_text()
    assert re.search(r"# Guessed: the class is field \d \(.*\) of names such as ", written)
    assert "label is what " in done.out
    assert "Guessed: the class is field " in done.out
    if "{speaker}" in name:
        assert columns.group == "file"
        assert {re.search(columns.group_pattern, path.name)[1] for path in files} == {*SPEAKERS}
        assert "If the class is field 1 (george, jackson, " in written
        option = shlex.split(written.partition(", add --columns ")[2])[0]
        assert re.search(option.partition("label_pattern=")[2], files[0].name)[1] in SPEAKERS
    elif "{who}" in name:
        assert columns.group == "file"
    else:
        assert columns.group is None


def test_ten_digits_are_the_class_and_the_names_beside_them_speakers(hearing, tmp_path):
    """As the spoken digits are published: digit, speaker, take."""
    recordings(tmp_path / "clips", "{digit}_{speaker}_{take}")
    done = new(hearing / "whisper", "clips", tmp_path)
    assert done.code == 0, done.err
    columns = load_recipe(tmp_path / "r.yaml").domains["clips"].columns
    assert columns.class_in("0_jackson_12.wav") == "0"
    assert re.search(columns.group_pattern, "0_jackson_12.wav")[1] == "jackson"
    option = shlex.split(done.out.partition("If the class is field 2 (")[2].partition("add --columns ")[2])[0]
    (tmp_path / "r.yaml").unlink()
    done = command("new", "clips", "--model", hearing / "whisper", "--columns", option, folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "clips.yaml").domains["clips"].columns.class_in("0_jackson_12.wav") == "jackson"


def test_classes_in_names_are_as_good_as_class_folders(hearing, tmp_path):
    recordings(tmp_path / "clips", "{speaker}_{word}_{take}")
    assert new(hearing / "whisper", "clips", tmp_path).code == 0
    done = command("check", "r.yaml", "--json", folder=tmp_path)
    [record] = json.loads(done.out)
    assert record["labels"] == sorted(WORDS)
    assert record["rows_kept"] == 120
    assert record["columns"] == {"audio": "audio", "label": "file", "group": "file"}


def test_pictures_are_named_too_and_in_archives(vision, tmp_path):
    write_folders(tmp_path / "made", 24)
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "made").rglob("*.png"):
        shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}_{path.name}")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "flat")
    for data in ("flat", "packed.zip"):
        (tmp_path / "r.yaml").unlink(missing_ok=True)
        done = new(vision / "dino", data, tmp_path)
        assert done.code == 0, done.err
        assert "# Labels: bar 12, pole 12." in (tmp_path / "r.yaml").read_text()


def test_names_that_could_mean_several_things_are_listed_with_a_line_that_works(hearing, tmp_path, monkeypatch):
    recordings(tmp_path / "clips", "{speaker}_{take}_{word}_{n}")
    for number, path in enumerate(sorted((tmp_path / "clips").iterdir())):
        path.rename(path.with_stem(f"{path.stem.rpartition('_')[0]}_{'ab'[number % 2]}{number}_{'xy'[number % 2]}"))
    done = new(hearing / "whisper", "clips", tmp_path)
    assert done.code == 2
    assert "clips: several fields of the names could be the class" in done.err
    assert "field 3 (eight, five, four, nine and 6 more)" in done.err
    option = shlex.split(done.err.partition("such as --columns ")[2])[0]
    assert command("new", "clips", "--model", hearing / "whisper", "--columns", option, folder=tmp_path).code == 0
    assert "# Labels: x 60, y 60." in (tmp_path / "clips.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    path = write_recipe(str(hearing / "whisper"), "clips", Path("asked.yaml"), lambda question, options, default: "3")
    recipe = load_recipe(path)
    assert recipe.domains["clips"].columns.class_in("theo_3_nine_a4_x.wav") == "nine"


def test_names_without_a_class_stay_without(vision, tmp_path):
    write_folders(tmp_path / "made", 12)
    for number, path in enumerate(sorted((tmp_path / "made").rglob("*.png"))):
        path.rename(tmp_path / "made" / f"picture_{number:04}.png")
    done = new(vision / "dino", "made", tmp_path)
    assert done.code == 2
    assert "the images have no classes" in done.err
    assert "--columns 'label=file,label_pattern=" in done.err


def test_a_class_folder_in_another_is_said_with_a_line_that_takes_the_outer_one(vision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["birds", "birds/drawn", "fish", "fish/drawn"] * 6):
        (tmp_path / "animals" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "animals" / name / f"{number}.png").write_bytes(png(number))
    text = write_recipe(str(vision / "conv"), "animals").read_text()
    assert "the class is the folder right above each file, 'drawn' of birds/drawn/1.png. If it is 'birds', add" in text
    assert "Labels: drawn 12, birds 6, fish 6." in text
    option = re.search(r"--columns '(.+?)'", text)[1]
    text = write_recipe(str(vision / "conv"), "animals", tmp_path / "outer.yaml", columns=[option]).read_text()
    assert "Labels: birds 12, fish 12." in text


def test_the_outer_folder_is_offered_though_the_first_rows_are_all_in_one(vision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfadapt.cli.new_recipe.PEEK_ROWS", 4)
    names = [f"{outer}/{inner}/{n}.png" for outer in ("16x16", "32x32") for inner in ("a", "b") for n in range(4)]
    for number, name in enumerate(names):
        (tmp_path / "icons" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "icons" / name).write_bytes(png(number))
    assert "If it is '16x16', add" in write_recipe(str(vision / "conv"), "icons").read_text()
