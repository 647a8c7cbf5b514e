"""Plain texts that are tables, and files in other encodings than UTF-8: read, or told with byte and line."""

import bz2
import gzip
import json
import lzma
import zipfile

import pytest

from hfadapt import files
from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, Unread, opening, reading
from hfadapt.files.opening import western

ROWS = [{"text": f"the {n}th row, with é", "label": "ab"[n % 2]} for n in range(6)]
CSV = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(reading.rows(path))


# --- tables in plain texts -------------------------------------------------------------------------------------------


TABBED = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS)


@pytest.mark.parametrize("content", [TABBED, TABBED.replace("\n", "\r\n"), TABBED.encode("utf-16"), TABBED + "\n"])
def test_a_text_with_tabs_in_every_line_is_a_table(tmp_path, content):
    doubt, *rows = read(tmp_path, "rows.txt", content)
    assert isinstance(doubt, Doubt)
    assert doubt.code == "text-as-table"
    assert "columns text, label, as every line has 2 fields" in doubt.detail
    assert [row.values for row in rows if isinstance(row, Read)] == ROWS
    assert reading.column_names(tmp_path / "rows.txt") == ("text", "label")


@pytest.mark.parametrize(
    "content",
    [
        "A title\there\n" + "a plain line\n" * 5,
        "a plain line\n" * 5 + "with a stray\ttab\n",
        TABBED + "one\tfield\tmore\n",
        "text\tlabel\none\ta\n",  # too few lines to tell
        "text,label\none,a\ntwo,b\nthree,a\n",
    ],
)
def test_a_stray_tab_makes_no_table(tmp_path, content):
    found = read(tmp_path, "rows.txt", content)
    assert [row.values["text"] for row in found] == content.splitlines()


@pytest.mark.parametrize(
    "first", ["a\tgo to the river", "1\tsome row", "text\ttext", "\tlabel", "it was a long and dark day\tgood"]
)
def test_tabs_without_names_of_columns_above_them_are_said(tmp_path, first):
    lines = [first, "a\tone row, with words", "b\ttwo rows", "a\tthree"]
    doubt, *rows = read(tmp_path, "rows.txt", "\n".join(lines))
    assert isinstance(doubt, Doubt)
    assert doubt.code == "table-as-text"
    assert "names of its columns above it" in doubt.fix
    assert [row.values["text"] for row in rows] == lines


# --- encodings -------------------------------------------------------------------------------------------------------


NAMED = {
    "a.csv": CSV,
    "a.tsv": CSV.replace('",', '"\t').replace("text,label", "text\tlabel"),
    "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS, ensure_ascii=False),
    "lines.json": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.txt": TABBED,
    "a.csv.gz": CSV,
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("encoding", ["windows-1252", "mac-roman", "utf-16-be", "cp037"])
def test_files_are_read_in_the_encoding_that_is_named(tmp_path, name, encoding):
    content = NAMED[name].encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = [row.values for row in reading.rows(tmp_path / name, encoding=encoding) if isinstance(row, Read)]
    assert found == ROWS
    if name != "lines.json":
        assert reading.column_names(tmp_path / name, encoding) == ("text", "label")


def test_what_is_not_in_the_encoding_is_told_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(CSV.encode() + b"caf\x81,a\n")
    with pytest.raises(DataError, match="is not windows-1252, as the recipe says") as caught:
        [*reading.rows(tmp_path / "a.csv", encoding="windows-1252")]
    assert "byte 0x81 in line 8" in str(caught.value)


def test_a_byte_that_is_not_utf8_is_told_with_the_letter_that_windows_writes_so(tmp_path):
    found = read(tmp_path, "a.csv", CSV.encode() + b"caf\xe9,a\n")
    assert found[-1] == Unread(6, "not-utf8", " is not UTF-8: byte 0xE9, é in windows-1252", 8)
    found = read(tmp_path, "a.txt", b"one\ncaf\x81\n")
    assert found[-1] == Unread(1, "not-utf8", " is not UTF-8: byte 0x81", 2)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("Das Mädchen sagte: „ja“\n".encode("cp1252"), "Mädchen"),
        ("It’s 5 €\n".encode("cp1252"), "’"),
        ("Das Mädchen\n".encode(), None),
        (b"plain\n", None),
        ("сегодня хороший день, a good day\n".encode("cp1251"), None),
        ("今日はいい天気です\n".encode("shift-jis"), None),
        ("今天天气很好\n".encode("gb18030"), None),
        ("Das Mädchen sagte: ja\n".encode("utf-16"), None),
        (bytes(range(128, 256)) + b" and a long line of plain words in ASCII letters", None),
    ],
)
def test_western_files_are_told_by_their_letters(tmp_path, content, word):
    (tmp_path / "a.txt").write_bytes(content)
    assert western(tmp_path / "a.txt") == word


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zip"])
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl", "a.txt"])
def test_a_small_file_that_unpacks_to_any_size_is_refused(tmp_path, monkeypatch, name, ending):
    """Also in an encoding that is unpacked as a whole."""
    monkeypatch.setattr(opening, "MOST_UNPACKED", 1 << 20)
    path, content = tmp_path / f"{name}{ending}", "\ufeff".encode("utf-16-le") + b" \0" * (2 << 20)
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    else:
        path.write_bytes(packed[ending](content))
    with pytest.raises(DataError, match="unpacks to too much"):
        list(reading.rows(path))


def test_packed_text_of_any_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MOST_UNPACKED", 1 << 10)
    lines = "".join(json.dumps({"text": f"{n * 7919} {n}"}) + "\n" for n in range(9_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(list(reading.rows(tmp_path / "a.jsonl.gz"))) == 9_000


def test_names_of_columns_longer_than_any_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE_LIMIT_BYTES", 1_000)
    with pytest.raises(DataError, match="names of the columns"):
        read(tmp_path, "a.csv", "a" * 2_000 + ",label\ngood,1\n")
