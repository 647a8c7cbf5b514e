"""Files that tables and lists name: where several could be meant, none is taken."""

import unicodedata

import pytest
from tiny_images import png

from hfadapt.core.errors import DataError
from hfadapt.files import folders
from hfadapt.files.named import Named


def placed(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(len(name)))
    return Named(lambda: folders.every_file(folder))


@pytest.mark.parametrize(
    "said", ["7", "7.jpg", "7.JPG", "photos/7.jpg", "photos\\7", "/data/upload/photos/7.jpg", "x/7"]
)
def test_a_file_is_found_by_name_with_or_without_ending_and_folders(tmp_path, said):
    found = placed(tmp_path, "photos/7.jpg", "photos/17.jpg")(said)
    assert found == tmp_path / "photos" / "7.jpg"


def test_of_several_files_of_one_name_none_is_guessed(tmp_path):
    named = placed(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "masks/2.png")
    assert named("1") is None
    assert named("2") is None
    assert named("2.jpg") == tmp_path / "dog" / "2.jpg"
    assert named("pets/dog/1.jpg") == tmp_path / "dog" / "1.jpg"
    # Named in another folder, it may be another file.
    assert named("bird/2.jpg") is None
    assert named("") is None
    assert named("9" * 5000) is None


def test_accents_may_be_written_in_two_ways(tmp_path):
    named = placed(tmp_path, unicodedata.normalize("NFD", "bär.jpg"), "x/other.jpg")
    assert named(unicodedata.normalize("NFC", "bär")) is not None


def test_of_tables_beside_images_those_are_data_that_name_them(tmp_path):
    placed(tmp_path, *(f"photos/{n}.jpg" for n in range(4)))
    (tmp_path / "rows.csv").write_text("id,label\n" + "".join(f"{n},a\n" for n in range(4)))
    (tmp_path / "features.csv").write_text("length,label\n" + "".join(f"{n}.5,a\n" for n in range(4)))
    (tmp_path / "sample_submission.csv").write_text("id,label\n0,a\n1,a\n")
    (tmp_path / "export.json").write_text('[{"about": "all of it"}]')
    found = folders.find(tmp_path)
    assert [each.name for each in found.data] == ["rows.csv"]
    assert [each.name for each in found.left] == ["export.json", "features.csv"]


def test_tables_that_differ_about_the_same_files_are_told_apart_by_the_user(tmp_path):
    placed(tmp_path, *(f"photos/{n}.jpg" for n in range(4)))
    (tmp_path / "classes.csv").write_text("id,label\n" + "".join(f"{n},a\n" for n in range(4)))
    (tmp_path / "people.csv").write_text("id,age\n" + "".join(f"{n},5\n" for n in range(4)))
    with pytest.raises(
        DataError, match=r"(?s)several tables name the files.*id, label.*name the one that has the class"
    ):
        folders.chosen(tmp_path)
    # One may have less, as of files whose classes nobody knows.
    (tmp_path / "people.csv").write_text("id\n" + "".join(f"{n}\n" for n in range(4)))
    assert len(folders.chosen(tmp_path).data) == 2


def test_lists_of_files_are_the_splits(tmp_path):
    names = [f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(6)]
    placed(tmp_path, *names)
    (tmp_path / "testing_list.txt").write_text("cat/5.jpg\ndog/5.jpg\n")
    (tmp_path / "validation_list.txt").write_text("cat/4 1 7\ndog/4 2 7\n")
    (tmp_path / "test_notes.txt").write_text("what is to be seen\n")
    found = folders.chosen(tmp_path)
    assert (len(found.data), found.others) == (8, ("validation", "test"))
    assert [each.name for each in found.lists] == ["testing_list.txt", "validation_list.txt"]
    assert [each.name for each in folders.find(tmp_path).foreign] == ["test_notes.txt"]
    assert {each.stem for each in folders.chosen(tmp_path, "test").data} == {"5"}


def test_of_several_lists_for_a_split_the_first_is_taken(tmp_path):
    placed(tmp_path, *(f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(6)))
    for number in (1, 2):
        (tmp_path / f"train{number}.txt").write_text(f"cat/{number}.jpg\ndog/{number}.jpg\n")
        (tmp_path / f"test{number}.txt").write_text("cat/5.jpg\n")
    found = folders.chosen(tmp_path)
    # What no list names is left out where one says what is to train on.
    assert {each.stem for each in found.data} == {"1"}
    assert len(found.left) == 9
    assert [each.name for each in found.lists] == ["test1.txt", "train1.txt"]


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("seg_train/x", "seg_test/x"), ("train", "test1")]
)
def test_folders_of_splits_have_other_names_too(tmp_path, train, test):
    placed(tmp_path, *(f"{split}/{label}/{n}.jpg" for split in (train, test) for label in ("a", "b") for n in range(3)))
    found = folders.chosen(tmp_path)
    assert (len(found.data), found.others) == (6, ("test",))
    # A word of its own beside it makes a class of it.
    placed(tmp_path / "two", "train station/1.jpg", "test pattern/1.jpg")
    assert folders.chosen(tmp_path / "two").others == ()
