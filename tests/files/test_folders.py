"""Folders of pages of text, and of what is no rows at all."""

import pytest

from hfadapt.core.errors import DataError
from hfadapt.files import folders, reading
from hfadapt.files.beside import not_read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_page_of_markdown_is_one_row(tmp_path, encoding):
    (tmp_path / "a.md").write_bytes("# Château\n\nOld\nand large.\n".encode(encoding))
    (row,) = reading.rows(tmp_path / "a.md")
    assert row.values == {"text": "# Château\n\nOld\nand large."}
    assert reading.column_names(tmp_path / "a.md") == ("text",)


def test_pages_and_texts_lie_in_one_folder_and_a_readme_is_none(tmp_path):
    for name in ("README.md", "a.md", "deep/b.md", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A text.\n")
    found = folders.find(tmp_path)
    assert [each.name for each in found.data] == ["a.md", "c.txt", "b.md"]
    assert [each.name for each in found.left] == ["README.md"]
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    assert [each.name for each in folders.find(tmp_path).data] == ["rows.csv"]


def test_a_readme_beside_what_cannot_be_read_is_no_data(tmp_path):
    (tmp_path / "README.md").write_text("# About\n")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match="no file here can be read"):
        folders.chosen(tmp_path)


def test_a_benchmark_of_search_is_not_taken_for_rows_of_numbers(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "a text"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "a query"}\n')
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    with pytest.raises(DataError, match="queries and documents apart") as raised:
        folders.chosen(tmp_path)
    assert "the columns query and document" in raised.value.problems[0].fix
    assert [each.name for each in folders.chosen(tmp_path / "corpus.jsonl").data] == ["corpus.jsonl"]


def test_what_is_not_read_beside_the_data_is_found_and_papers_are_none(tmp_path):
    names = (
        "cat/1.png",
        "dog/2.png",
        "dog/film.mp4",
        "dance/a.MOV",
        "cat/1.txt",
        "README.md",
        "LICENSE",
        "cat/Thumbs.db",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = folders.find(tmp_path)
    assert [each.name for each in found.data] == ["1.png", "2.png"]
    assert [each.name for each in found.foreign] == ["1.txt", "a.MOV", "film.mp4"]
    (tmp_path / "rows.csv").write_text("file,label\ncat/1.png,a\n")
    found = folders.find(tmp_path)
    assert ([each.name for each in found.data], [each.name for each in found.foreign]) == (
        ["rows.csv"],
        ["a.MOV", "film.mp4"],
    )


def test_what_is_not_read_of_another_split_is_said_there(tmp_path):
    for name in ("train/cat/1.png", "train/cat/2.mp4", "test/cat/3.png", "test/cat/4.mp4", "notes.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [each.name for each in folders.chosen(tmp_path).foreign] == ["notes.pdf", "2.mp4"]
    assert [each.name for each in folders.chosen(tmp_path, "test").foreign] == ["4.mp4"]


def test_files_that_are_not_read_are_counted_by_kind_with_the_first_names():
    names = [*(f"a/{n}.mp4" for n in range(1200)), "b/c.doc", "d/e"]
    said = not_read(names, ["a/1.png", "b/deep/2.png"]).detail
    assert said == (
        "1,202 files are not read: 1,200 .mp4 (a/0.mp4, a/1.mp4, a/2.mp4, …), 1 .doc (b/c.doc), "
        "1 without ending (d/e); nothing is read in d"
    )
    assert "1 of other kinds" in not_read([f"a.x{n}" for n in range(6)], ["b.png"]).detail


def test_folders_may_be_links_but_not_to_one_above(tmp_path):
    """A class that is kept elsewhere."""
    for name in ("data/cat/1.png", "elsewhere/dog/2.png", "data/.hidden/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data")
    assert [each.relative_to(tmp_path / "data").as_posix() for each in folders.find(tmp_path / "data").data] == [
        "cat/1.png",
        "dog/2.png",
    ]
