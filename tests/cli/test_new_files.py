"""`hfadapt new` on images and recordings as public data sets lay them out: tables beside them, splits, and names."""

import csv

import pyarrow
import pytest
from pyarrow import parquet
from tiny import command
from tiny_images import png
from tiny_sounds import write_sounds

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
    for name in ("images-idx3-ubyte", "other"):
        (tmp_path / "data" / name).write_bytes(b"\0\0\x08\x03" + bytes(50))
    refused = new(vision / "vit", tmp_path)
    assert "images-idx3-ubyte is images in one file, as of MNIST" in refused.err
