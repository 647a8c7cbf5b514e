"""Files as people have them: read rightly, or one sentence that says what the file is and what to do."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import zipfile

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Unread, folders, reading

ROWS = [{"text": f"the {n}th row, with é", "label": "ab"[n % 2]} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
BY_COLUMN = {name: [row[name] for row in ROWS] for name in ("text", "label")}
BY_CELL = {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ("text", "label")}
SPLIT = {"columns": ["text", "label"], "index": [*range(6)], "data": [[*row.values()] for row in ROWS]}
TABLE = {"schema": {"fields": [{"name": "text"}]}, "data": ROWS}


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, CSV)
    return file.getvalue()


def zstd(content):
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def in_parquet(rows, **more):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, **more)
    return file.getvalue()


def in_arrow(rows, kind):
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with kind(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def saved(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(reading.rows(path))


RIGHT = {
    "plain.csv": CSV,
    "bom.csv": "\ufeff" + CSV,
    "windows.csv": CSV.replace("\n", "\r\n"),
    "mac.csv": CSV.replace("\n", "\r"),
    "utf16.csv": CSV.encode("utf-16"),
    "utf16-be.csv": b"\xfe\xff" + CSV.encode("utf-16-be"),
    "utf16-bare.csv": CSV.encode("utf-16-le"),
    "utf32.csv": CSV.encode("utf-32"),
    "utf16.jsonl": LINES.encode("utf-16"),
    "utf16.json": json.dumps(ROWS).encode("utf-16"),
    "sep.csv": "sep=;\r\n" + CSV.replace('",', '";').replace("text,label", "text;label"),
    "semicolon.csv": CSV.replace('",', '";').replace("text,label", "text;label"),
    "pipe.csv": CSV.replace('",', '"|').replace("text,label", "text|label"),
    "tabs.csv": CSV.replace('",', '"\t').replace("text,label", "text\tlabel"),
    "commas.tsv": CSV,
    "header-spaces.csv": CSV.replace("text,label", " text , label\u00a0"),
    "header-quotes.csv": CSV.replace("text,label", '"text","label"'),
    "spaces.csv": "label, text\n" + "".join(f'{row["label"]}, "{row["text"]}"\n' for row in ROWS),
    "index.csv": ",text,label\n" + "".join(f'{n},"{row["text"]}",{row["label"]}\n' for n, row in enumerate(ROWS)),
    "r.csv": "text,label\n" + "".join(f'{n + 1},"{row["text"]}",{row["label"]}\n' for n, row in enumerate(ROWS)),
    "trailing.csv": CSV.replace("\n", ",\n"),
    "trailing-rows.csv": CSV.replace("\n", ",\n").replace("text,label,\n", "text,label\n"),
    "upper.CSV": CSV,
    "lines.jsonl": LINES,
    "bom.jsonl": "\ufeff" + LINES,
    "windows.jsonl": LINES.replace("\n", "\r\n"),
    "records.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2),
    "lines.json": LINES,
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "columns.json": json.dumps(BY_CELL),
    "lists.json": json.dumps(BY_COLUMN),
    "index.json": json.dumps({str(n): row for n, row in enumerate(ROWS)}),
    "ids.json": json.dumps({f"id{n}": row for n, row in enumerate(ROWS)}),
    "split.json": json.dumps(SPLIT),
    "table.json": json.dumps(TABLE),
    "data.json": json.dumps({"version": "1.1", "data": ROWS}),
    "inside.json": json.dumps({"result": {"count": 6, "rows": ROWS}, "ok": True}),
    "a.csv.gz": gzip.compress(CSV.encode()),
    "a.csv.bz2": bz2.compress(CSV.encode()),
    "a.csv.xz": lzma.compress(CSV.encode()),
    "a.csv.zst": zstd(CSV.encode()),
    "a.csv.zip": zipped("a.csv"),
    "mac.csv.zip": zipped("a.csv", "__MACOSX/._a.csv"),
    "a.jsonl.zst": zstd(LINES.encode()),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "utf16.csv.gz": gzip.compress(CSV.encode("utf-16")),
    "a.parquet": in_parquet(ROWS),
    "a.parquet.gz": gzip.compress(in_parquet(ROWS)),
    "bytes.parquet": in_parquet([{key: value.encode() for key, value in row.items()} for row in ROWS]),
    "dictionary.parquet": in_parquet(ROWS, use_dictionary=True),
    "stream.arrow": in_arrow(ROWS, pyarrow.ipc.new_stream),
    "file.arrow": in_arrow(ROWS, pyarrow.ipc.new_file),
}


@pytest.mark.parametrize("name", RIGHT)
def test_read_rightly(tmp_path, name):
    found = read(tmp_path, name, RIGHT[name])
    wanted = ROWS if not name.startswith("spaces") else [dict(reversed(row.items())) for row in ROWS]
    assert [item[:2] for item in found] == list(enumerate(wanted))
    names = reading.column_names(tmp_path / name)
    assert names is not None
    assert set(names) == {"text", "label"}


REFUSED = {
    "plain.csv.gz": (CSV, "called .gz but is not gzip", "call it plain.csv"),
    "plain.csv.zip": (CSV, "called .zip but is not zip", "call it plain.csv"),
    "other.csv.gz": (zstd(CSV.encode()), "called .gz but is not gzip", "call it other.csv.zst"),
    "gzip.csv": (gzip.compress(CSV.encode()), "the file is gzip", "call it gzip.csv.gz"),
    "zst.jsonl": (zstd(LINES.encode()), "the file is Zstandard", "call it zst.jsonl.zst"),
    "zip.csv": (zipped("a.csv"), "the file is zip", "call it zip.csv.zip"),
    "bzip2.csv": (bz2.compress(CSV.encode()), "the file is bz2", "call it bzip2.csv.bz2"),
    "cut.csv.gz": (gzip.compress(CSV.encode() * 99)[:-40], "cut off or broken", "again"),
    "cut.csv.bz2": (bz2.compress(CSV.encode() * 99)[:-40], "cut off or broken", "again"),
    "cut.csv.xz": (lzma.compress(CSV.encode() * 99)[:-40], "cut off or broken", "again"),
    "cut.csv.zst": (zstd(os.urandom(9000).hex().encode())[:-400], "cut off or broken", "again"),
    "cut.csv.zip": (zipped("a.csv")[:-40], "cut off or broken", "again"),
    "changed.csv.gz": (gzip.compress(CSV.encode())[:-8] + b"12345678", "cut off or broken", "again"),
    "many.csv.zip": (zipped("a.csv", "b.csv"), "holds several files", "unpack it"),
    "none.csv.zip": (zipped(), "the zip archive is empty", "unpack"),
    "cut.parquet": (in_parquet(ROWS)[:-20], "no whole Parquet file", "again"),
    "text.parquet": (CSV, "no whole Parquet file", "again"),
    "cut.arrow": (b"ARROW1", "no whole Arrow file", "to_parquet"),
    "parquet.csv": (in_parquet(ROWS), "the file is Parquet", "call it .parquet"),
    "parquet.arrow": (in_parquet(ROWS), "the file is Parquet", "call it .parquet"),
    "arrow.jsonl": (in_arrow(ROWS, pyarrow.ipc.new_file), "the file is Arrow", "call it .arrow"),
    "excel.csv": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "call it .xlsx"),
    "word.txt": (zipped("[Content_Types].xml", "word/document.xml"), "a Word document", "open it"),
    "old.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "old Office document", "save it as CSV"),
    "pdf.txt": (b"%PDF-1.7\n", "a PDF document", ".txt"),
    "pickle.csv": (pickle.dumps(ROWS), "a pickle, which can run code", "to_parquet"),
    "array.csv": (saved(lambda file: np.save(file, np.zeros(3))), "a NumPy array", "CSV"),
    "arrays.csv": (saved(lambda file: np.savez(file, a=np.zeros(3))), "saved arrays", "CSV"),
    "page.csv": ("<!DOCTYPE html><html>", "a web page", "download the data itself"),
    "page.json": ("<html><body>404", "a web page", "download the data itself"),
    "lfs.csv": ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS", "git lfs pull"),
    "zeros.csv": (bytes(5000), "nothing but zero bytes", "again"),
    "base.csv": (b"SQLite format 3\0" + bytes(99), "an SQLite database", "sqlite3"),
    "tar.csv.gz": (gzip.compress(bytes(257) + b"ustar" + bytes(200)), "a tar archive", "unpack"),
    "broken16.csv": (CSV.encode("utf-16") + b"\x00", "seems to be UTF-16, but broken", "UTF-8"),
    "lines.csv": (LINES, "the file is JSON, not CSV", "call it lines.jsonl"),
    "array.tsv": (json.dumps(ROWS), "the file is JSON, not CSV", "call it array.json"),
    "array.jsonl": (json.dumps(ROWS), "one JSON array", "call it array.json"),
    "indented.jsonl": (json.dumps(ROWS, indent=1), "one JSON array", "call it indented.json"),
    "array.jsonl.gz": (gzip.compress(json.dumps(ROWS).encode()), "one JSON array", "call it array.json.gz"),
    "objects.jsonl": (json.dumps(ROWS[0], indent=2), "JSON over several lines", "call it objects.json"),
    "csv.jsonl": (CSV, "the file is not JSON", "call it csv.csv"),
    "csv.json": (CSV, "the file is not JSON", "correct"),
    "cut.json": (json.dumps(ROWS)[:-30], "the JSON is cut off", "again"),
    "latin.json": (json.dumps(ROWS, ensure_ascii=False).encode("latin-1"), "not UTF-8", "encoding: windows-1252"),
    "lists.json": (json.dumps([[*row.values()] for row in ROWS]), "a list of lists", "for each row"),
    "texts.json": (json.dumps(["a", "b"]), "a list of values", "for each row"),
    "text.json": (json.dumps(json.dumps(ROWS)), "one text", "a list of objects"),
    "two.json": (json.dumps({"new": ROWS, "test": ROWS}), "several lists of rows: new, test", "file of its own"),
    "uneven.json": (json.dumps({"text": ["a"], "label": []}), "different lengths: text 1, label 0", "every row"),
    "other.json": (json.dumps({"a": 1, "b": ["x"]}), "an object with a, b", "a list of objects"),
    "deep.json": ("[" * 200_000, "nested too deeply", "list of objects"),
}


REFUSED |= {
    "commas.jsonl": (LINES.replace("}", "},"), "every line ends in a comma", "call it commas.json"),
    "together.jsonl": (LINES.replace("\n", ""), "a line holds several objects", "call it together.json"),
    "python.jsonl": ("".join(f"{row}\n" for row in ROWS), "the lines are Python's, not JSON", "json.dumps"),
    "lists.jsonl": ('["a text", "good"]\n["another", "bad"]\n', "the lines are lists", '{"text": …'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_says_what_it_is(tmp_path, name):
    content, what, fix = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    problem = caught.value.problems[0]
    assert what in f"{problem.what} {problem.got}"
    assert fix in (problem.fix or "")
    assert reading.column_names(tmp_path / name) is None


def reasons(found):
    return [(each.row, each.reason) for each in found if isinstance(each, Unread)]


def test_stray_quotes_take_no_other_row_with_them(tmp_path):
    lines = [f"some words of row {n},{'ab'[n % 2]}" for n in range(60)]
    lines[10], lines[40] = '"' + lines[10], '"' + lines[40]
    lines[20] = '"two\nlines, of a poem",a'
    lines[21] = '5" screens and 7" screens,b'
    found = read(tmp_path, "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    assert reasons(found) == [(10, "open-quote"), (40, "open-quote")]
    assert found[10].detail == " opens a quotation mark that is not closed"
    assert [found[n].line for n in (0, 10, 20, 21)] == [2, 12, 22, 24]
    assert len(found) == 60
    assert found[20][1]["text"] == "two\nlines, of a poem"
    assert found[21][1]["text"] == lines[21][:-2]
    assert found[59][1] == {"text": "some words of row 59", "label": "b"}


@pytest.mark.parametrize("at", [0, 30, 58, 59])
def test_an_open_quote_takes_no_other_row_with_it(tmp_path, at):
    lines = [f"some words of row {n},{'ab'[n % 2]}" for n in range(60)]
    lines[at] = '"' + lines[at]
    found = read(tmp_path, "a.csv", "text,label\n" + "\n".join(lines))
    assert reasons(found) == [(at, "open-quote")]
    assert len(found) == 60


def test_a_header_that_comes_again_is_no_row(tmp_path):
    lines = ["text,label", "some words,good", "others,bad"]
    found = read(tmp_path, "a.csv", "\n".join([*lines, " text ,label", *lines[1:]]))
    assert reasons(found) == [(2, "header-again")]
    assert len(found) == 5
    assert reasons(read(tmp_path, "b.csv", "text\nwords\ntext\n")) == []


def test_stray_quotes_that_close_are_known_by_the_labels_between(tmp_path):
    lines = [f"some words of row {n},{'ab'[n % 2]}" for n in range(60)]
    lines[10], lines[14] = '"' + lines[10], lines[14].replace(",", '",')
    found = read(tmp_path, "a.csv", "text,label\n" + "\n".join(lines))
    assert [each for each in reasons(found) if each[1] == "open-quote"] == [(10, "open-quote")]
    assert len(found) == 60


def test_lines_of_letters_that_end_in_a_comma_are_no_rows_where_last_fields_are_empty(tmp_path):
    """As of tickets of which some are not labelled yet."""
    letters = [f"Where is parcel {n}?\n\nBest,\nAnna" for n in range(30)]
    lines = [f'"{letter}",{"" if n % 3 else "delivery"}' for n, letter in enumerate(letters)]
    found = read(tmp_path, "a.csv", "text,label\n" + "\n".join(lines) + "\n")
    assert [item.values["text"] for item in found] == letters


def test_stray_quotes_are_known_where_last_fields_are_empty(tmp_path):
    lines = [f"some words of row {n},{'ab'[n % 2]}," for n in range(60)]
    lines[10], lines[14] = '"' + lines[10], lines[14].replace(",", '",', 1)
    found = read(tmp_path, "a.csv", "text,label,notes\n" + "\n".join(lines))
    assert [each for each in reasons(found) if each[1] == "open-quote"] == [(10, "open-quote")]
    assert len(found) == 60


def test_quoted_lines_are_one_field(tmp_path):
    poem = "roses are red,\nviolets are blue,\nsugar is sweet,\nand so are you,"
    code = "a,b\n1,2\n3,4"
    rows = "".join(f'"{text}",answer {n}\n' for n, text in enumerate((poem, code, poem, code)))
    found = read(tmp_path, "a.csv", "prompt,completion\n" + rows)
    assert [item.values["prompt"] for item in found] == [poem, code, poem, code]


@pytest.mark.parametrize("first", ["ab", "numbers", "words"])
def test_rows_inside_of_a_last_field_are_said(tmp_path, first):
    def lead(n):
        return {"ab": "ab"[n % 2], "numbers": f"{n * 7}.5", "words": f"the {n * 7}th"}[first]

    lines = [f"{lead(n)},some words of row {n}" for n in range(60)]
    lines[5] = f'{lead(5)},"two lines\nof a letter, which are no rows"'
    lines[10], lines[14] = lines[10].replace(",", ',"'), lines[14] + '"'
    found = read(tmp_path, "a.csv", "label,text\n" + "\n".join(lines) + "\n")
    assert len(found) == 57
    assert reasons(found) == []
    assert isinstance(found[-1], Doubt)
    assert "4 in rows that begin at line 13;" in found[-1].detail


def test_one_row_inside_of_a_last_field_is_said(tmp_path):
    lines = [f"{'ab'[n % 2]},some words of row {n}" for n in range(60)]
    lines[10], lines[11] = lines[10].replace(",", ',"'), lines[11] + '"'
    found = read(tmp_path, "a.csv", "label,text\n" + "\n".join(lines) + "\n")
    assert "1 in rows that begin at line 12;" in found[-1].detail
    lines[10], lines[11] = 'a,"Dear all,\nThanks, John"', "b,plain"
    assert len(read(tmp_path, "a.csv", "label,text\n" + "\n".join(lines) + "\n")) == 60


def test_quotes_after_a_backslash(tmp_path):
    found = read(tmp_path, "a.csv", 'text,label\n"he said \\"no, never\\" again",a\nplain,b\n')
    assert [item[:2] for item in found] == [
        (0, {"text": 'he said "no, never" again', "label": "a"}),
        (1, {"text": "plain", "label": "b"}),
    ]


def test_a_field_without_end_is_not_held(tmp_path, monkeypatch):
    from hfadapt import files

    monkeypatch.setattr(files, "LINE_LIMIT_BYTES", 500)
    lines = [f"some words of row {n},{'ab'[n % 2]}" for n in range(60)]
    lines[3] = '"' + lines[3]
    found = read(tmp_path, "a.csv", "text,label\n" + "\n".join(lines))
    assert reasons(found) == [(3, "open-quote")]
    assert len(found) == 60


def test_a_key_with_two_values_is_no_row(tmp_path):
    lines = ['{"text": "one", "label": "a"}', '{"text": "two", "label": "a", "label": "b"}']
    lines += ['{"text": "three", "label": "a", "label": "a"}', '{"text": {"x": 1, "x": 2}, "label": "a"}']
    found = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert reasons(found) == [(1, "repeated-key"), (3, "repeated-key")]
    assert (found[1].line, found[1].detail) == (2, ": an object has the key 'label' more than once: 'a' and 'b'")
    assert found[2][1] == {"text": "three", "label": "a"}
    for content in (f"[{','.join(lines)}]", "\n\n".join(lines).replace(", ", ",\n")):
        with pytest.raises(DataError, match="has the key 'label' more than once: 'a' and 'b'"):
            read(tmp_path, "a.json", content)


def test_columns_of_the_same_name_are_numbered(tmp_path):
    found = read(tmp_path, "a.csv", "text,label,text\none,a,two\n")
    assert [item[:2] for item in found] == [(0, {"text (1 of 2)": "one", "label": "a", "text (2 of 2)": "two"})]


@pytest.mark.parametrize(
    ("header", "line", "names", "rival"),
    [
        ("a;b,c", "one, or two;x, y, z", ["a", "b,c"], None),
        ("a,b;c", "one; or two,x; y; z", ["a", "b;c"], None),
        ("a,b;c;d", "one,two;;;", ["a", "b;c;d"], None),
        ("a|label (yes,no)", "one|yes", ["a", "label (yes,no)"], None),
        ("a|label (yes,no)", "one,two|yes", ["a|label (yes", "no)"], "sep=|"),
    ],
)
def test_the_delimiter_is_that_by_which_rows_fit_the_header(tmp_path, header, line, names, rival):
    found = read(tmp_path, "a.csv", "\n".join([header, *[line] * 6]) + "\n")
    doubts = [each for each in found if isinstance(each, Doubt)]
    rows = [each for each in found if not isinstance(each, Doubt)]
    assert [[*each.values] for each in rows] == [names] * 6
    assert [each.code for each in doubts] == (["delimiter"] if rival else [])
    if rival:
        assert rival in doubts[0].fix
        told = read(tmp_path, "b.csv", "\n".join([rival, header, *[line] * 6]) + "\n")
        assert not any(isinstance(each, Doubt) for each in told), "what is said is not doubted"


def test_one_row_of_another_width_changes_no_delimiter(tmp_path):
    lines = ["id,text;body,label", *["1,some; words,x"] * 20, "2,one,too,many"]
    found = read(tmp_path, "a.csv", "\n".join(lines))
    assert [each.reason for each in found if isinstance(each, Unread)] == ["wrong-fields"]


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", "\ufeff"])
def test_files_without_rows_have_none(tmp_path, content):
    assert [each for each in read(tmp_path, "a.csv", content) if isinstance(each, tuple)] == []


def test_long_files_have_every_line_once(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        for first in range(4):
            lines = ["text,label", "x" * first + ",a", *(f"row {n} {'y' * (n % 7)},b" for n in range(9000))]
            found = read(tmp_path, "a.csv", end.join(lines))
            assert len(found) == 9001
            assert not reasons(found)


def test_zeros_in_text(tmp_path):
    found = read(tmp_path, "a.csv", "text,label\na\0b,x\nc,y\n")
    assert found[1][:3] == (1, {"text": "c", "label": "y"}, 3)
    assert len(found) == 2


def names(found):
    return [path.name for path in found]


@pytest.mark.parametrize(
    ("files", "data", "left"),
    [
        (["rows.csv", "README.txt", "LICENSE", "LICENSE.txt"], ["rows.csv"], ["LICENSE.txt", "README.txt"]),
        (["rows.csv", "notes.txt", "recipe.yaml"], ["rows.csv"], ["notes.txt"]),
        (["a.txt", "b.txt", "README.txt"], ["a.txt", "b.txt"], ["README.txt"]),
        (["a.txt", "b.txt", "info.json"], ["a.txt", "b.txt"], ["info.json"]),
        (["a.json", "b.json", "notes.txt"], ["a.json", "b.json"], ["notes.txt"]),
        (["README.txt"], ["README.txt"], []),
        (["data.csv", "bert/config.json", "bert/tokenizer.json", "bert/vocab.txt"], ["data.csv"], []),
        (["data.csv", "runs/lock.yaml", "runs/d/data/train.parquet"], ["data.csv"], []),
        (["data.csv", ".git/x.csv", ".hidden.csv"], ["data.csv"], []),
        (
            ["data-0.arrow", "dataset_info.json", "state.json", "cache-1.arrow"],
            ["data-0.arrow"],
            ["cache-1.arrow", "dataset_info.json", "state.json"],
        ),
        (["a.csv", "b.jsonl.gz", "c.parquet"], ["a.csv", "b.jsonl.gz", "c.parquet"], []),
    ],
)
def test_what_of_a_folder_is_data(tmp_path, files, data, left):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = folders.find(tmp_path)
    assert (names(found.data), names(found.left)) == (data, left)


def test_folders_are_splits_too(tmp_path):
    for name in ("train/a.csv", "train/b.csv", "test/a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CSV)
    assert names(folders.chosen(tmp_path).data) == ["a.csv", "b.csv"]
    assert folders.chosen(tmp_path, "test").data == (tmp_path / "test" / "a.csv",)


def test_a_folder_of_save_to_disk(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    both = {"train": datasets.Dataset.from_list(ROWS[:4]), "test": datasets.Dataset.from_list(ROWS[4:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    for folder, split, wanted in (("one", None, ROWS), ("two", None, ROWS[:4]), ("two", "test", ROWS[4:])):
        (path,) = folders.chosen(tmp_path / folder, split).data
        assert [item.values for item in reading.rows(path)] == wanted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.ods", zipped("[Content_Types].xml", "xl/workbook.xml"), "call it .xlsx"),
        ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), "a Word document"),
        ("a.pkl", pickle.dumps(ROWS), "a pickle"),
        ("a.npy", saved(lambda file: np.save(file, np.zeros(3))), "a NumPy array"),
        ("a.pdf", b"%PDF-1.4", "a PDF document"),
        ("a.pq", in_parquet(ROWS), "call it .parquet"),
        ("data", CSV.encode(), "call it data.csv"),
        ("a.dat", LINES.encode(), "call it a.dat.jsonl"),
        ("a.yaml", b"- text: a", "CSV or JSON Lines"),
        ("a.bin", bytes(range(128, 256)), "in one of these formats"),
    ],
)
def test_kinds_that_are_not_read(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        folders.chosen(tmp_path / name)
    assert said in str(caught.value)
    assert caught.value.problems[0].fix


def test_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="pipe"):
        folders.chosen(tmp_path / "pipe.csv")


def test_a_folder_of_another_name_makes_other_files_of_the_same_content(tmp_path):
    """The class of a picture is the name of its folder."""

    def hashed(folder):
        return reading.content_hash(sorted((tmp_path / folder).rglob("*.csv")))

    for folder, names in {"one": ("a", "b"), "same": ("a", "b"), "other": ("a", "c")}.items():
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "1.csv").write_text(CSV)
    assert hashed("one") == hashed("same") != hashed("other")
    assert hashed("one/a") == hashed("other/c"), "where all lie in is no part of a name"


def test_every_row_has_the_line_that_an_editor_shows(tmp_path):
    lines = ["sep=;", "", "text;label", "one;a", "", '"two', "of three", 'lines";b', "three;a;x", "four;b"]
    found = read(tmp_path, "a.csv", "\n".join(lines) + "\n")
    assert [(each.row, each.line) for each in found] == [(0, 4), (1, 5), (2, 6), (3, 9), (4, 10)]
    assert [isinstance(each, Unread) for each in found] == [False, True, False, True, False]
    found = read(tmp_path, "a.jsonl", '{"text": "one"}\n\n{"text": \n{"text": "two"}\n')
    assert [(each.row, each.line) for each in found] == [(0, 1), (1, 2), (2, 3), (3, 4)]
