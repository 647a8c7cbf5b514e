"""Values that are files lie in one file beside the splits, and rows hold where."""

import json
import os
import pickle

import pytest
from test_media import packed, prepared
from tiny_images import png, write_folders

from hfadapt.core.errors import RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.data import prepare, read_split
from hfadapt.data.pictures import SIDE, tiles
from hfadapt.data.split_files import write_table
from hfadapt.files import stored
from hfadapt.files.stored import Store, Stored
from hfadapt.modalities.image import KIND
from hfadapt.recipe.reading import load_recipe


def test_what_is_added_is_found_again(tmp_path):
    store = Store(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    first, second = store.add(b"abc"), store.add(b"defgh")
    assert [bytes(each) for each in (first, second)] == [b"abc", b"defgh"]
    assert store.add(first) is first
    other = Store(tmp_path / "y")
    assert bytes(other.add(second)) == b"defgh"
    assert bytes(pickle.loads(pickle.dumps(second))) == b"defgh"
    store.clear()
    assert bytes(store.add(b"new")) == b"new"
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("left", [None, b"ab"])
def test_a_file_that_is_gone_or_cut_is_named(tmp_path, left):
    value = Store(tmp_path / stored.FILE).add(b"abc")
    value.path.unlink() if left is None else value.path.write_bytes(left)
    with pytest.raises(RunError, match="cannot be read") as error:
        bytes(value)
    assert str(value.path) in str(error.value)
    assert "--fresh" in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_prepared_rows_hold_no_bytes(tmp_path, streaming, monkeypatch):
    # Chunks of a few rows, so that files on their way are written over.
    monkeypatch.setattr("hfadapt.data.stream.CHUNK_ROWS", 7)
    folder = write_folders(tmp_path / "pictures", 60)
    (folder / "bar" / "zz.png").write_bytes((folder / "bar" / "000.png").read_bytes())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}
    packed(tmp_path / "p.tar", files)
    domain = prepared(tmp_path, "p.tar", streaming=streaming, test=9, validation=0.2, train_rows=20)
    rows = [row for split in ("train", "validation", "test") for row in domain.rows(split)]
    assert len(rows) == domain.record.rows_kept
    assert all(isinstance(row["image"], Stored) and bytes(row["image"]) == files[row["file"]] for row in rows)
    beside = domain.folder / "data" / stored.FILE
    # What was dropped takes no room, but for test rows that gave way to others.
    sizes = [row["image"].size for row in rows]
    assert beside.stat().st_size <= sum(sizes) + (9 * max(sizes) if streaming else 0)
    assert domain.record.files[stored.FILE] == file_sha256(beside)
    assert not list(domain.folder.rglob("*passing*"))


def test_texts_have_no_such_file(tmp_path):
    lines = [{"text": f"row {number} says {number * 7919}", "label": "ab"[number % 2]} for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"name": "t", "model": "m", "task": "text-classification", "domains": {"d": "a.jsonl"}}
    (tmp_path / "t.yaml").write_text(json.dumps(fields))
    made = prepare(load_recipe(tmp_path / "t.yaml"), recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]
    assert not (made.folder / "data" / stored.FILE).exists()
    assert stored.FILE not in made.record.files


def test_a_cell_has_the_file_without_a_second_copy(tmp_path, monkeypatch):
    write_folders(tmp_path / "pictures", 60)
    domain = prepared(tmp_path, "pictures")
    domain.copy_into(tmp_path / "cell")
    name = f"data/{stored.FILE}"
    assert os.path.samefile(domain.folder / name, tmp_path / "cell" / name)
    row = read_split(tmp_path / "cell", "train")[0]
    assert row["image"].path == tmp_path / "cell" / name
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    domain.copy_into(tmp_path / "other")
    assert not os.path.samefile(domain.folder / name, tmp_path / "other" / name)
    assert bytes(read_split(tmp_path / "other", "train")[0]["image"]) == bytes(row["image"])


def test_some_rows_of_many(tmp_path, monkeypatch):
    write_folders(tmp_path / "pictures", 300)
    domain = prepared(tmp_path, "pictures")
    whole = domain.rows("train")
    assert tiles(domain.folder, "train", "pictured", {200: "a"})[0].data == KIND.preview(whole[200]["image"], SIDE)[0]
    monkeypatch.setattr("hfadapt.data.split_files.BATCH_ROWS", 8)
    assert read_split(domain.folder, "train", limit=3) == whole[:: -(-len(whole) // 3)]


def test_splits_of_an_older_run_hold_the_bytes_themselves(tmp_path):
    from hfadapt.data.rows import arrow_schema

    (tmp_path / "data").mkdir()
    columns = {"label": "a", "file": "f", "look": "l", "source": "s", "row": 0}
    columns |= dict.fromkeys(("width", "height", "brightness", "contrast"), 1.0)
    write_table(tmp_path / "data" / "train.parquet", [{"image": png(1), **columns}], arrow_schema("pictured", True))
    assert read_split(tmp_path, "train")[0]["image"] == png(1)
    assert read_split(tmp_path, "train", limit=1)[0]["image"] == png(1)
