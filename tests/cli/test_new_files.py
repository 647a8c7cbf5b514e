"""`hfadapt new` on images and recordings as public data sets lay them out: tables beside them, splits, and names."""

import csv
import zipfile

import pyarrow
import pytest
from pyarrow import parquet
from tiny import command
from tiny_images import png
from tiny_sounds import write_sounds

from hfadapt import data as data_module
from hfadapt.cli.new_recipe import write_recipe
from hfadapt.recipe.reading import load_recipe


def new(model, folder, *more):
    return command("new", "data", "--model", model, "-o", "r.yaml", *more, folder=folder)


def pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def checked(folder):
    done = command("check", "r.yaml", folder=folder)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("ending", ["", ".png"])
def test_a_table_may_name_files_of_another_folder_without_their_ending(vision, tmp_path, ending):
    data = tmp_path / "data"
    pictures(data, *(f"train_images/{100 + n}.png" for n in range(24)))
    table(data / "train.csv", [{"image_id": f"{100 + n}{ending}", "kind": "ab"[n % 2]} for n in range(24)])
    table(data / "sample_submission.csv", [{"image_id": "7", "kind": "a"}])
    assert new(vision / "vit", tmp_path).code == 0
    columns = load_recipe(tmp_path / "r.yaml").domains["data"].columns
    assert columns.parts == {"image": "image_id", "label": "kind"}
    assert "24    24" in checked(tmp_path)


def test_a_column_for_each_class_beside_names_without_ending(vision, tmp_path):
    data = tmp_path / "data"
    pictures(data, *(f"images/T_{n}.png" for n in range(24)))
    table(data / "t.csv", [{"id": f"T_{n}", **{c: float("abc"[n % 3] == c) for c in "abc"}} for n in range(24)])
    assert new(vision / "vit", tmp_path).code == 0
    written = (tmp_path / "r.yaml").read_text()
    assert "# Labels: a 8, b 8, c 8." in written
    assert load_recipe(tmp_path / "r.yaml").domains["data"].columns.parts == {"image": "id"}
    checked(tmp_path)


def test_parquet_that_holds_files_is_no_table_of_texts(vision, tmp_path):
    rows = [{"image": {"bytes": png(n), "path": None}, "label": n % 2} for n in range(24)]
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    done = new(vision / "vit", tmp_path)
    assert done.code == 0, done.err
    assert "# Labels: 0 12, 1 12." in (tmp_path / "r.yaml").read_text()
    checked(tmp_path)


def test_folds_of_a_table_stay_together(hearing, tmp_path):
    write_sounds(tmp_path / "data" / "audio", 30)
    files = sorted((tmp_path / "data" / "audio").rglob("*.wav"))
    rows = [{"filename": path.name, "fold": n % 5 + 1, "category": path.parent.name} for n, path in enumerate(files)]
    table(tmp_path / "data" / "meta" / "rows.csv", rows)
    done = new(hearing / "whisper", tmp_path)
    assert done.code == 0, done.err
    columns = load_recipe(tmp_path / "r.yaml").domains["data"].columns
    assert (columns.parts, columns.group) == ({"audio": "filename", "label": "category"}, "fold")


def test_folders_of_speakers_are_groups_and_the_class_is_in_the_names(vision, tmp_path):
    names = [f"Actor_{a:02}/03-{mood}-{a:02}.png" for a in range(6) for mood in ("sad", "glad")]
    pictures(tmp_path / "data", *names)
    done = new(vision / "vit", tmp_path)
    assert done.code == 0, done.err
    columns = load_recipe(tmp_path / "r.yaml").domains["data"].columns
    assert {columns.class_in(name) for name in names} == {"sad", "glad"}
    assert columns.group_pattern == "([^/]+)/[^/]+$"
    assert "If the class is the folder, add --columns 'label=file,label_pattern=([^/]+)/[^/]+$'" in done.out


def test_several_numbers_in_names_are_not_guessed_among_and_who_says_one_gets_the_groups(vision, tmp_path):
    names = [f"Actor_{a:02}/03-{mood:02}-{loud:02}-{a}.png" for a in range(6) for mood in range(3) for loud in range(2)]
    pictures(tmp_path / "data", *names)
    refused = new(vision / "vit", tmp_path)
    assert refused.code == 2
    assert "several fields of the names could be the class" in refused.err
    assert "for the folder" in refused.err
    assert new(vision / "vit", tmp_path, "--columns", "label=file,label_pattern=/03-([^-]+)-").code == 0
    columns = load_recipe(tmp_path / "r.yaml").domains["data"].columns
    assert columns.group_pattern == "([^/]+)/[^/]+$"


@pytest.mark.parametrize(
    ("name", "classes"),
    [("{label}_{n}.png", {"basset_hound", "pug"}), ("{label}.{n}.png", {"basset_hound", "pug"})],
)
def test_words_before_a_number_are_the_class(vision, tmp_path, name, classes):
    names = [name.format(label=label, n=n) for label in sorted(classes) for n in range(6)]
    pictures(tmp_path / "data" / "train", *names)
    # Of these nobody says the class.
    pictures(tmp_path / "data" / "test1", "1.png", "2.png")
    done = new(vision / "vit", tmp_path)
    assert done.code == 0, done.err
    domain = load_recipe(tmp_path / "r.yaml").domains["data"]
    assert {domain.columns.class_in(each) for each in names} == classes
    assert domain.test is None


def test_a_folder_of_files_inside_the_class_folder_is_no_class(vision, tmp_path):
    pictures(tmp_path / "data", *(f"{label}/images/{n}.png" for label in ("cat", "dog") for n in range(6)))
    assert new(vision / "vit", tmp_path).code == 0
    assert "# Labels: cat 6, dog 6." in (tmp_path / "r.yaml").read_text()


def test_a_table_may_name_files_as_seen_from_its_own_folder(vision, tmp_path):
    """Files of one name in the folder of each split."""
    for split, count in (("train", 12), ("test", 4)):
        for number in range(count):
            pictures(tmp_path / "data" / split, f"{number}.png")
            (tmp_path / "data" / split / f"{number}.png").write_bytes(png(100 * len(split) + number))
        rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in range(count)]
        table(tmp_path / "data" / split / "metadata.csv", rows)
    done = new(vision / "vit", tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "r.yaml").domains["data"].test == "test"
    assert "16    16" in checked(tmp_path)


def test_images_without_classes_are_told_with_what_lies_beside(vision, tmp_path):
    pictures(tmp_path / "data", *(f"jpg/{n}.png" for n in range(6)))
    (tmp_path / "data" / "labels.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    refused = new(vision / "vit", tmp_path)
    assert refused.code == 2
    assert "1 file is not read: 1 .mat (labels.mat)" in refused.err


def test_what_a_folder_holds_that_is_not_read_is_told_by_its_bytes(vision, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("images.bin", "other"):
        (tmp_path / "data" / name).write_bytes(b"\0\0\x08\x03" + bytes(50))
    refused = new(vision / "vit", tmp_path)
    assert "images.bin is images in one file, as of MNIST" in refused.err


@pytest.mark.parametrize("words", [("train", "val", "test"), ("Training", "PublicTest", "PrivateTest")])
def test_a_column_says_the_split_of_each_row(vision, tmp_path, words):
    data = tmp_path / "data"
    pictures(data, *(f"{n}.png" for n in range(30)))
    said = [*[words[0]] * 20, *[words[1]] * 5, *[words[2]] * 5]
    table(data / "t.csv", [{"file": f"{n}.png", "label": "ab"[n % 2], "Usage": said[n]} for n in range(30)])
    done = new(vision / "vit", tmp_path)
    assert done.code == 0, done.err
    assert "Guessed: 'Usage' says of each row for which split it is" in done.out
    record = data_module.prepare(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)["data"].record
    held = {"validation": 5, "test": 5} if words[1] == "val" else {"validation": 2, "test": 10}
    assert record.splits == {"train": 30 - sum(held.values()), **held}
    refused = command("check", "r.yaml", "data.streaming=true", folder=tmp_path)
    assert "a stream cannot know which splits a column has" in refused.err


def test_folders_of_an_archive_say_the_split(vision, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for number in range(30):
            split = "test" if number > 25 else "train"
            archive.writestr(f"top/{split}/{'ab'[number % 2]}/{number}.png", png(number))
    done = command("new", "data.zip", "--model", vision / "vit", "-o", "r.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    record = data_module.prepare(load_recipe(tmp_path / "r.yaml"), recipe_folder=tmp_path)["data"].record
    assert (record.splits["test"], record.columns["split"]) == (4, "split")


def test_a_word_that_is_no_split_stops_where_many_rows_have_one(vision, tmp_path):
    data = tmp_path / "data"
    pictures(data, *(f"{n}.png" for n in range(30)))
    table(data / "t.csv", [{"file": f"{n}.png", "label": "ab"[n % 2], "part": n % 5} for n in range(30)])
    assert new(vision / "vit", tmp_path, "--columns", "split=part").code == 0
    refused = command("check", "r.yaml", folder=tmp_path)
    assert "30 of 30 rows say no split in the column of splits" in refused.err
    assert "line 2 of t.csv has '0' in part, which is no split" in refused.err


def test_a_folder_that_is_set_apart_is_said_to_be_a_class(hearing, tmp_path):
    (write_sounds(tmp_path / "data", 20) / "low").rename(tmp_path / "data" / "_low_")
    assert "'_low_' is a class as the others are. Otherwise move its folder" in new(hearing / "whisper", tmp_path).out


def test_a_table_without_names_of_columns_is_told(vision, tmp_path):
    pictures(tmp_path / "data", *(f"{n}.png" for n in range(12)))
    (tmp_path / "data" / "t.csv").write_text("".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(12)))
    refused = new(vision / "vit", tmp_path)
    assert refused.code == 2
    assert "the first line of the table is a row: it names a file" in refused.err


def test_files_of_several_labels_are_sent_to_the_task_that_learns_them(vision, tmp_path):
    pictures(tmp_path / "data", *(f"{n}.png" for n in range(12)))
    table(tmp_path / "data" / "t.csv", [{"file": f"{n}.png", "label": str(["a", "b"][: 1 + n % 2])} for n in range(12)])
    assert new(vision / "vit", tmp_path).code == 0
    written = (tmp_path / "r.yaml").read_text()
    assert command("check", "r.yaml", folder=tmp_path).code == 0
    (tmp_path / "r.yaml").write_text(written.replace("task: image-multi-label", "task: image-classification"))
    refused = command("check", "r.yaml", folder=tmp_path)
    assert "6 of 12 rows have several labels" in refused.err
    assert "audio-multi-label or image-multi-label" in refused.err


def test_what_an_archive_holds_beside_its_files_is_said(vision, tmp_path):
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "train.zip", "w") as archive:
        for number in range(8):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", png(number))
        archive.writestr("testing_list.txt", "a/0.png")
    done = new(vision / "vit", tmp_path)
    assert "1 file is not read in train.zip: 1 .txt (testing_list.txt)" in done.out
    # Files in an archive have no place that a table could name.
    table(tmp_path / "data" / "train.csv", [{"id": n, "kind": "ab"[n % 2]} for n in range(8)])
    refused = command("new", "data", "--model", vision / "vit", "-o", "s.yaml", folder=tmp_path)
    assert "columns id, kind; data: 1 file is not read: 1 .zip (train.zip)" in refused.err


def test_a_model_of_recordings_is_proposed_for_recordings_with_texts_beside(tmp_path):
    write_sounds(tmp_path / "data", 10)
    files = sorted((tmp_path / "data").rglob("*.wav"))
    rows = [{"path": path.name, "sentence": f"what is said in {path.stem}", "mood": "ab"[n % 2]}
            for n, path in enumerate(files)]  # fmt: skip
    table(tmp_path / "data" / "t.csv", rows)
    refused = command("new", "data", folder=tmp_path)
    assert "hfadapt new data --model sample:whisper-tiny.en-5s" in refused.err


def test_a_field_that_says_the_folder_again_is_no_class_however_few_rows_are_looked_at(vision, tmp_path, monkeypatch):
    names = [f"user{a}/user{a}_{mood}_{n}.png" for a in range(6) for mood in ("sad", "glad") for n in range(3)]
    pictures(tmp_path / "data", *names)
    monkeypatch.setattr("hfadapt.cli.new_recipe.PEEK_ROWS", 8)
    monkeypatch.chdir(tmp_path)
    text = write_recipe(str(vision / "vit"), "data").read_text()
    assert "Guessed: the class is field 2 (glad, sad)" in text
    assert "files of a folder (user0, user1) stay in one split" in text


def test_a_diagnosis_is_rather_the_class_than_what_has_fewer_values(vision, tmp_path):
    data = tmp_path / "data"
    pictures(data, *(f"part_{n % 2}/ISIC_{n}.png" for n in range(24)))
    table(data / "t.csv", [{"image_id": f"ISIC_{n}", "sex": "mf"[n % 2], "dx": "abc"[n % 3]} for n in range(24)])
    assert new(vision / "vit", tmp_path).code == 0
    columns = load_recipe(tmp_path / "r.yaml").domains["data"].columns
    assert columns.parts == {"image": "image_id", "label": "dx"}
