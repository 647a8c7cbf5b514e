"""Rows of files: folders of classes, archives, tables that name files; broken ones named, the rest read."""

import io
import json
import os
import tarfile
import zipfile
from collections import Counter

import pytest
from tiny_images import png, write_folders
from tiny_sounds import write_sounds

from hfadapt.core.errors import DataError
from hfadapt.data import prepare
from hfadapt.files import Blob, Doubt, Unread, Unusable, folders, media
from hfadapt.recipe.reading import load_recipe


def rows(path):
    return [item[1] for item in media.read(folders.find(path).data) if isinstance(item, tuple)]


def labels(path):
    return sorted({row.get("label") for row in rows(path)}, key=str)


def packed(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_folders_of_classes(tmp_path):
    folder = write_folders(tmp_path / "pictures", 6)
    (folder / "README.md").write_text("about")
    (folder / "notes.txt").write_text("about")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(png(1))
    found = rows(folder)
    assert [row["file"] for row in found] == [
        *(f"bar/{number:03}.png" for number in (0, 2, 4)),
        *(f"pole/{number:03}.png" for number in (1, 3, 5)),
    ]
    assert {row["label"] for row in found} == {"bar", "pole"}
    assert found[0]["image"].read() == (folder / "bar" / "000.png").read_bytes()


def test_splits_above_the_classes(tmp_path):
    write_folders(tmp_path / "all" / "train", 4)
    write_folders(tmp_path / "all" / "test", 2)
    assert len(folders.chosen(tmp_path / "all").data) == 4
    assert len(folders.chosen(tmp_path / "all", "test").data) == 2


def test_a_class_called_train_is_no_split(tmp_path):
    """Locomotives beside cars, in files named after their classes."""
    for name, count in (("train", 3), ("car", 4), ("test tube", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{name}_{number}.png").write_bytes(png(number))
    found = rows(tmp_path)
    assert Counter(row["label"] for row in found) == {"train": 3, "car": 4, "test tube": 2}
    # Above classes it is a split, whatever stands beside it, and so are names where all files have them.
    both = tmp_path / "both"
    write_folders(both / "train", 4)
    write_folders(both / "extra", 2)
    write_folders(both / "val", 2)
    assert len(folders.chosen(both).data) == 4
    named = tmp_path / "named"
    for name in ("bar", "pole"):
        (named / name).mkdir(parents=True)
        for split in ("train", "test"):
            (named / name / f"{split}_0.png").write_bytes(png(1))
    assert len(folders.chosen(named, "test").data) == 2


def test_files_of_no_class_are_said_with_their_folder(tmp_path):
    data = write_folders(tmp_path / "data", 24)
    (data / "test").mkdir()
    for number, name in enumerate(("loose.png", "test/0.png")):
        (data / name).write_bytes(png(number))
    domain = prepared(tmp_path, "data")
    assert domain.record.dropped == {"no-class": 2}
    dropped = (domain.folder / "data" / "dropped.jsonl").read_text()
    assert "loose.png, is beside the folders of classes, in none of them" in dropped
    for number in range(2, 6):
        (data / "test" / f"{number}.png").write_bytes(png(number))
    with pytest.raises(DataError, match="6 of 30 rows are files in folders of no class"):
        prepared(tmp_path, "data")


@pytest.mark.parametrize(
    ("task", "ending", "head", "words"),
    [
        ("image-classification", ".HEIC", b"\0\0\0\x1cftypheic", "has a picture in HEIC"),
        ("audio-classification", ".m4a", b"\0\0\0\x20ftypM4A ", "M4A, which is not read"),
    ],
)
def test_formats_that_are_not_read_are_not_passed_over(tmp_path, task, ending, head, words):
    """Else a run would learn from what few files a phone saved otherwise."""
    write = write_folders if "image" in task else write_sounds
    folder = next(each for each in write(tmp_path / "data", 8).iterdir())
    for number in range(8):
        (folder / f"{number}{ending}").write_bytes(head + bytes(200))
    with pytest.raises(DataError, match=f"(?s)8 of 16 rows have files that cannot be read.*{words}"):
        prepared(tmp_path, "data", task)


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    assert labels(tmp_path) == [None]


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz", "p.tgz"])
def test_archives_of_class_folders(tmp_path, name):
    files = {f"top/{label}/{number}.png": png(number) for number, label in enumerate(("cat", "cat", "dog"))}
    path = packed(tmp_path / name, {**files, "top/README": b"about", "__MACOSX/top/cat/._0.png": b"x"})
    assert labels(path) == ["cat", "dog"]
    assert len(rows(path)) == 3


def test_shards_with_what_stands_beside_each_file(tmp_path):
    packed(tmp_path / "shard-0.tar", {"000.png": png(0), "000.cls": b"3\n", "001.png": png(1), "001.txt": b"cat"})
    packed(
        tmp_path / "shard-1.tar", {"002.json": json.dumps({"label": "dog", "speaker": "x"}).encode(), "002.png": png(2)}
    )
    found = rows(tmp_path)
    assert [row["label"] for row in found] == ["3", "cat", "dog"]
    assert found[2]["speaker"] == "x"


def test_what_json_does_not_say_of_a_file_stays_known(tmp_path):
    """Before, the class was lost where shards have JSON beside it, and so was the folder of a class."""
    more = json.dumps({"source": "web", "width": 8}).encode()
    named = json.dumps({"label": "tabby"}).encode()
    files = {"0.png": png(0), "0.cls": b"3", "0.json": more, "1.png": png(1), "1.cls": b"4", "1.json": named}
    packed(tmp_path / "s.tar", {**files, "2.png": png(2), "2.json": more, "2.txt": b"a cat on a mat"})
    found = rows(tmp_path / "s.tar")
    assert [row.get("label") for row in found] == ["3", "tabby", None]
    assert [row.get("source") for row in found] == ["web", None, "web"]
    assert (found[1]["cls"], found[2]["txt"]) == ("4", "a cat on a mat")
    path = packed(tmp_path / "p.zip", {"top/cat/0.png": png(0), "top/cat/0.json": more})
    assert rows(path)[0]["folder"] == "cat"


def test_a_shard_that_is_cut_off_is_named(tmp_path):
    whole = packed(tmp_path / "shard.tar", {f"{n}.png": png(n) for n in range(4)}).read_bytes()
    (tmp_path / "shard.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off or broken") as caught:
        rows(tmp_path / "shard.tar")
    assert "shard.tar" in str(caught.value)


def test_a_damaged_file_in_an_archive_is_one_row(tmp_path):
    path = packed(tmp_path / "p.zip", {f"cat/{n}.png": png(n) for n in range(4)})
    content = bytearray(path.read_bytes())
    content[content.index(png(2)) + 20] ^= 0xFF
    path.write_bytes(content)
    found = list(media.read([path]))
    assert [isinstance(each, Unread) for each in found] == [False, False, True, False]
    assert (found[2].row, found[2].reason) == (2, "damaged-member")
    assert "cat/2.png" in found[2].detail


def test_what_stands_beside_a_file_and_cannot_be_read(tmp_path):
    path = packed(tmp_path / "s.tar", {"0.png": png(0), "0.json": b"{broken", "1.png": png(1), "1.cls": b"1"})
    found = list(media.read([path]))
    assert isinstance(found[0], Unread)
    assert "0.png" in found[0].detail
    assert found[1][1]["label"] == "1"


def test_a_table_beside_pictures_names_them(tmp_path):
    write_folders(tmp_path, 2)
    (tmp_path / "metadata.csv").write_text("file_name,label\nbar/000.png,x\npole/001.png,y\n")
    assert [path.name for path in folders.find(tmp_path).data] == ["metadata.csv"]


def test_several_kinds_in_one_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b.other").write_bytes(b"")
    known = media.suffixes()
    monkeypatch.setattr(media, "suffixes", lambda: {**known, ".other": "smell"})
    with pytest.raises(DataError, match="several kinds"):
        folders.find(tmp_path)


# --- values that are files --------------------------------------------------------------------------------------------


def test_values_of_every_form(tmp_path):
    (tmp_path / "a.png").write_bytes(b"content")
    assert Blob.of("a.png", tmp_path).read() == b"content"
    assert Blob.of({"bytes": b"inside", "path": "x.png"}) == Blob("x.png", b"inside")
    assert Blob.of({"bytes": None, "path": "a.png"}, tmp_path).read() == b"content"
    assert Blob.of(b"inside").read() == b"inside"


@pytest.mark.parametrize(
    ("value", "words"),
    [("https://x.org/a.png", "fetch the file first"), (3, "int"), ("", "str"), ("gone.png", "gone.png: No such file")],
)
def test_values_that_are_no_files(tmp_path, value, words):
    with pytest.raises(Unusable) as caught:
        Blob.of(value, tmp_path).read()
    assert words in caught.value.detail


def test_pipes_and_devices_are_no_files(tmp_path):
    """The one never begins, the other never ends."""
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    for name in ("pipe.png", "zero.png", "/dev/zero"):
        with pytest.raises(Unusable, match="file-not-read"):
            Blob.of(name, tmp_path).read()


def test_members_of_an_archive_without_a_name_are_passed_over(tmp_path):
    path = packed(tmp_path / "a.tar", {"": b"", ".": b"", "cat/1.png": png(1), "dog/2.png": png(2)})
    assert [row["label"] for row in rows(path)] == ["cat", "dog"]


# --- through to splits ------------------------------------------------------------------------------------------------


def prepared(tmp_path, source, task="image-classification", **data):
    fields = {"name": "r", "model": "m", "task": task, "domains": {"d": source}, "data": data}
    (tmp_path / "recipe.yaml").write_text(json.dumps(fields))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    return prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]


def test_broken_files_are_named_and_the_rest_goes_on(tmp_path):
    folder = write_folders(tmp_path / "pictures", 60)
    (folder / "bar" / "broken.png").write_bytes(png(1)[:100])
    (folder / "pole" / "empty.jpg").write_bytes(b"")
    (folder / "pole" / "again.png").write_bytes((folder / "pole" / "001.png").read_bytes())
    domain = prepared(tmp_path, "pictures")
    assert domain.record.rows_in == 63
    assert domain.record.dropped == {"not-an-image": 2, "exact-duplicate": 1}
    dropped = [json.loads(line) for line in (domain.folder / "data" / "dropped.jsonl").read_text().splitlines()]
    told = " ".join(each.get("detail", "") for each in dropped)
    assert "broken.png" in told
    assert "empty.jpg" in told


def test_a_copy_of_another_size_or_colour_stays_in_one_place(tmp_path):
    from PIL import Image

    folder = write_folders(tmp_path / "pictures", 60)
    picture = Image.open(folder / "bar" / "000.png")
    picture.resize((90, 90)).save(folder / "bar" / "larger.jpg", quality=80)
    record = prepared(tmp_path, "pictures").record
    assert record.dropped == {"near-duplicate": 1}


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_archives_and_folders_give_the_same_rows(tmp_path, streaming):
    import pyarrow
    from pyarrow import parquet

    folder = write_folders(tmp_path / "pictures", 60)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}
    packed(tmp_path / "p.tar", files)
    packed(tmp_path / "p.zip", files)
    lines = [f"pictures/{name},{name.split('/')[0]}" for name in files]
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    images = [
        {"image": {"bytes": content, "path": name}, "label": name.split("/")[0]} for name, content in files.items()
    ]
    parquet.write_table(pyarrow.Table.from_pylist(images), tmp_path / "h.parquet")
    found = []
    for source in ("pictures", "p.tar", "p.zip", "t.csv", "h.parquet"):
        domain = prepared(tmp_path, source, streaming=streaming, test=0.2, validation=0.2)
        kept = [
            (split, row["look"], row["label"], bytes(row["image"]))
            for split in ("train", "validation", "test")
            for row in domain.rows(split)
        ]
        found.append(sorted(kept))
    assert all(each == found[0] for each in found)
    assert len(found[0]) == 60


def test_members_of_other_kinds_are_said(tmp_path):
    path = packed(
        tmp_path / "a.zip", {"cat/1.png": png(1), "cat/2.mp4": b"film", "dance/3.mov": b"film", "README": b""}
    )
    (doubt,) = (item for item in media.read([path]) if isinstance(item, Doubt))
    assert (
        doubt.detail
        == "2 files are not read in a.zip: 1 .mp4 (cat/2.mp4), 1 .mov (dance/3.mov); nothing is read in dance"
    )
