"""Excel workbooks as people have them: titles, merged cells, formulas, dates, empty rows, several sheets."""

import datetime
import gzip
import importlib.util
import io
import re
import zipfile

import openpyxl
import pytest
from tiny import command, recipe_fields, write_recipe

from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, Unread, folders, reading, sheets

ROWS = [[f"the {n}th row, with é", "ab"[n % 2]] for n in range(6)]


def saved(path, *, sheet="Sheet", rows=(), change=lambda book, sheet: None):
    book = openpyxl.Workbook()
    book.active.title = sheet
    for row in rows:
        book.active.append(row)
    change(book, book.active)
    book.save(path)
    return path


def table(path, **how):
    return saved(path, rows=[["text", "label"], *ROWS], **how)


def read(path, split=None):
    found = list(reading.rows(path, split))
    doubts = {each.code: each for each in found if isinstance(each, Doubt)}
    return [each for each in found if not isinstance(each, Doubt)], doubts


@pytest.mark.parametrize("name", ["a.xlsx", "a.XLSM", "a.xlsx.gz"])
def test_rows_have_the_number_that_the_program_shows(tmp_path, name):
    path = table(tmp_path / "made.xlsx")
    content = path.read_bytes()
    path.unlink()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(path) == (
        [Read(n, {"text": text, "label": label}, n + 2) for n, (text, label) in enumerate(ROWS)],
        {},
    )
    assert reading.column_names(path) == ("text", "label")
    assert folders.find(tmp_path).data == (path,)


def test_what_people_do_above_and_between_rows_is_said(tmp_path):
    def change(book, sheet):
        sheet.merge_cells("A1:C1")
        sheet.merge_cells("B4:B5")
        sheet["A9"] = " "  # a cell that was emptied by hand
        sheet["D5"] = "look at it"

    rows = [["Export of the desk"], [], ["text", "label", "day"]]
    rows += [["one", "a", datetime.datetime(2025, 1, 2)], ["two", None, datetime.datetime(2025, 1, 2, 10, 30)]]
    rows += [[], ["three", "b", datetime.date(2025, 1, 3)]]
    found, doubts = read(saved(tmp_path / "a.xlsx", rows=rows, change=change))
    assert found == [
        Read(0, {"text": "one", "label": "a", "day": "2025-01-02"}, 4),
        Read(1, {"text": "two", "label": "a", "day": "2025-01-02 10:30:00"}, 5),
        Unread(2, "empty", " is blank", 6),
        Read(3, {"text": "three", "label": "b", "day": "2025-01-03"}, 7),
    ]
    assert list(doubts) == ["header-below", "merged-cells", "columns-without-names"]
    assert "row 3, and what stands above it is left out: Export of the desk" in doubts["header-below"].detail
    assert "B4:B5" in doubts["merged-cells"].detail
    assert doubts["columns-without-names"].detail.endswith(": D")


def test_formulas_have_their_results_and_those_without_are_said(tmp_path):
    path = saved(tmp_path / "a.xlsx", rows=[["text", "n"], ["one", "=1+1"], ["two", "#N/A"]])
    found, doubts = read(path)
    assert [each.values["n"] for each in found] == [None, None]
    assert doubts["formulas-without-results"].detail.endswith(": 1, such as B2")
    # As a program that calculates saves it.
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"(<f>1\+1</f>)<v ?/?>(</v>)?", rb"\1<v>2</v>", old.read(name)))
    path.write_bytes(made.getvalue())
    found, doubts = read(path)
    assert [each.values["n"] for each in found] == [2, None]
    assert doubts == {}


def test_sheets_are_splits(tmp_path):
    def change(book, sheet):
        for name, state in (("intern", "hidden"), ("Test", "visible")):
            other = book.create_sheet(name, 0 if state == "hidden" else None)
            other.append(["text", "label"])
            other.append([name, "a"])
            other.sheet_state = state

    path = table(tmp_path / "a.xlsx", sheet="Tickets", change=change)
    found, doubts = read(path)
    assert (len(found), [*doubts]) == (6, ["sheets-left-out", "hidden-sheets"])
    assert "set split: Test, or say --split Test" in doubts["sheets-left-out"].fix
    assert doubts["hidden-sheets"].detail.endswith("are not read: 'intern'")
    assert read(path, "Test") == ([Read(0, {"text": "Test", "label": "a"}, 2)], {})
    with pytest.raises(DataError, match="no such sheet") as caught:
        read(path, "intern")
    assert caught.value.problems[0].fix == "name one of its sheets, such as split: Tickets"
    assert folders.usual_split(path) == "Tickets"


def test_what_a_filter_hides_is_read_and_said(tmp_path):
    def change(book, sheet):
        sheet.row_dimensions[3].hidden = True
        sheet.row_dimensions[99].hidden = True
        sheet.column_dimensions["B"].hidden = True

    found, doubts = read(table(tmp_path / "a.xlsx", change=change))
    assert len(found) == 6
    assert doubts["hidden-cells"].detail.endswith(": rows 3; columns B")


@pytest.mark.parametrize(
    ("name", "content", "what", "fix"),
    [
        ("locked.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "with a password", ".xlsx"),
        ("text.xlsx", b"text,label\n", "no whole Excel workbook", "again"),
        ("cut.xlsx", None, "no whole Excel workbook", "again"),
        ("page.xlsx", b"<!DOCTYPE html><html>", "a web page", "download the data itself"),
    ],
)
def test_what_is_no_workbook_is_named(tmp_path, name, content, what, fix):
    path = tmp_path / name
    path.write_bytes(table(tmp_path / "whole.xlsx").read_bytes()[:-200] if content is None else content)
    with pytest.raises(DataError) as caught:
        read(path)
    problem = caught.value.problems[0]
    assert what in problem.what
    assert fix in problem.fix
    assert reading.column_names(path) is None


@pytest.mark.parametrize("name", ["a.xlsx", "a.xlsx.gz"])
def test_a_small_workbook_that_unpacks_to_much_is_refused(tmp_path, monkeypatch, name):
    content = table(tmp_path / "made.xlsx").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(read(tmp_path / name)[0]) == len(ROWS)
    sheets._names.cache_clear()
    monkeypatch.setattr(sheets, "MOST_UNPACKED", len(content))
    with pytest.raises(DataError, match="unpacks to too much") as raised:
        read(tmp_path / name)
    assert "CSV" in raised.value.problems[0].fix


def test_a_sheet_that_is_not_there_is_told_with_the_recipe(models, tmp_path):
    table(tmp_path / "a.xlsx")
    fields = recipe_fields(models / "encoder", "text-classification", {"a": {"source": "a.xlsx", "split": "Shet"}})
    write_recipe(tmp_path / "r.yaml", fields)
    done = command("plan", "r.yaml", folder=tmp_path)
    assert done.code == 2
    assert "no such sheet" in done.err
    assert "split: Sheet" in done.err


def test_a_sheet_without_rows_has_none(tmp_path):
    assert read(saved(tmp_path / "a.xlsx")) == ([], {})
    assert read(saved(tmp_path / "b.xlsx", rows=[["text", "label"]])) == ([], {})


def test_without_openpyxl_the_line_that_installs_it_is_told(tmp_path, monkeypatch):
    path = table(tmp_path / "a.xlsx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.problems[0].fix.startswith("pip install 'hfadapt[excel]'")
    assert sheets.missing(tmp_path / "a.csv") is None


def test_from_a_workbook_to_the_rows_that_are_learned(models, tmp_path):
    rows = [["text", "label"], *([f"{word} {n}", word] for n in range(30) for word in ("good", "bad"))]

    def change(book, sheet):
        other = book.create_sheet("held out")
        for row in (rows[0], *([f"{word} and {n}", word] for n in range(9) for word in ("good", "bad"))):
            other.append(row)

    saved(tmp_path / "a.xlsx", rows=rows, change=change)
    done = command("new", "a.xlsx", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    assert "of the sheets of the workbook 'Sheet' is read, and not 'held out'" in " ".join(done.out.split())
    recipe = (tmp_path / "a.yaml").read_text().replace("{source: a.xlsx}", "{source: a.xlsx, split: held out}")
    (tmp_path / "b.yaml").write_text(recipe)
    for name, count in (("a", 60), ("b", 18)):
        done = command("check", f"{name}.yaml", "--json", "data.dedupe.near=false", folder=tmp_path)
        assert f'"rows_in": {count}' in done.out, done.err


def edited(path, old, new):
    """A workbook with other words in its sheet."""
    content = {name: zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(old, new) if name.startswith("xl/worksheets/") else data)
    return path


@pytest.mark.parametrize("attribute", ['ref="A2:XFD1048576"', "ref='A2:XFD1048576'", 'x="" ref="A2:XFD1048576"'])
def test_cells_that_are_merged_by_the_million_are_refused(tmp_path, attribute):
    merged = f"</sheetData><mergeCells count='1'><mergeCell {attribute}/></mergeCells>".encode()
    path = edited(table(tmp_path / "a.xlsx"), b"</sheetData>", merged)
    with pytest.raises(DataError, match="merged cells over too large a part"):
        read(path)


@pytest.mark.parametrize("formula", [b"", b"<f>1+1</f>"])
def test_a_cell_far_away_takes_no_longer_than_one_that_is_near(tmp_path, formula):
    """By rows and columns there are 17 thousand million cells before it."""
    path = edited(table(tmp_path / "a.xlsx"), b'<c r="B7"', b'<c r="XFD7"').with_name("a.xlsx")
    edited(path, b"</sheetData>", b'<row r="99999"><c r="XFD99999">' + formula + b"<v>2</v></c></row></sheetData>")
    found, doubts = read(path)
    assert [each.row for each in found if isinstance(each, Read)] == [*range(6)]
    assert "columns-without-names" in doubts
