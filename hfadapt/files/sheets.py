"""Rows of Excel workbooks (.xlsx, .xlsm), read by openpyxl: values as they were saved, below the names of columns.

People write titles above the header, merge cells, leave rows empty and keep formulas: what was made of it is said.
"""

from __future__ import annotations

import datetime
import importlib.util
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

from hfadapt.core.errors import DataError
from hfadapt.core.show import show_bytes
from hfadapt.files import SPLIT_NAMES, Doubt, Read, Rows, Unread
from hfadapt.files.delimited import distinct
from hfadapt.files.opening import HEAD_BYTES, WORKBOOKS, foreign, packing, readable, suffix

HEADER_ROWS = 50
"""So many rows with cells that are not empty are looked at for the header."""
SHOWN = 60
MOST_UNPACKED = 1 << 30
"""Bytes; a workbook is held as a whole, and a small file can unpack to any size."""
MOST_MERGED = 1_000_000
"""Cells of a sheet that are merged with others."""
FIRST = next(iter(SPLIT_NAMES))
"""What a sheet is called that is read before others: the split to train on."""
_SHEETS = "xl/worksheets/"
_MERGED = re.compile(rb"mergeCell\b[^>]*?\bref=[\"']\$?([A-Z]{1,3}\d{1,7}:[A-Z]{1,3}\d{1,7})[\"']")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")

_Cells = dict[tuple[int, int], Any]
"""Values by row and column, both from 1."""


def missing(path: Path) -> DataError | None:
    """The error for a workbook where openpyxl is not installed; None where it is, and for other files."""
    if suffix(path) not in WORKBOOKS or importlib.util.find_spec("openpyxl") is not None:
        return None
    fix = "pip install 'hfadapt[excel]', or save the sheet as CSV in UTF-8"
    return DataError("Excel workbooks are read by openpyxl, which is not installed", place=str(path), fix=fix)


def names(path: Path) -> dict[str, str]:
    """The sheets of a workbook that are not hidden, by name, that which is read first; none for other files."""
    if suffix(path) not in WORKBOOKS:
        return {}
    return {name: name for name in _titles(path)[0]}


def _hidden(path: Path) -> tuple[str, ...]:
    return _titles(path)[1]


def _titles(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    status = path.stat()
    return _names(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _names(path: Path, size: int, changed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sheets that are seen and hidden ones, as long as the file is the same one; what cannot be read is said when it is
    read."""
    try:
        book = _open(path, read_only=True)
        state = {sheet.title: sheet.sheet_state == "visible" for sheet in book.worksheets}
        book.close()
    except DataError:
        return (), ()
    seen = sorted((name for name in state if state[name]), key=lambda name: name.lower() == FIRST, reverse=True)
    return tuple(seen), tuple(name for name in state if not state[name])


def header(path: Path, sheet: str | None = None) -> tuple[str, ...]:
    """The names of the columns. Raises DataError where it is no workbook."""
    return tuple(name for name in _table(path, _sheet(path, sheet))[1] if name)


def read(path: Path, sheet: str | None = None) -> Rows:
    """Rows by name of column, with the number of the row in the workbook; blank ones at the end are none.

    Args:
        sheet: Which; by default one called `train`, else the first that is not hidden.

    Raises:
        DataError: it is no whole workbook, has a password, or no such sheet.
    """
    name = _sheet(path, sheet)
    others = [each for each in names(path) if each != name]
    if sheet is None and others:
        found = f"of the sheets of the workbook {name!r} is read, and not {', '.join(map(repr, others))}"
        how = f"to read another one set split: {others[0]}, or say --split {quote(others[0])} to hfadapt new"
        yield Doubt("sheets-left-out", found, how)
    if sheet is None and (hidden := _hidden(path)):
        found = f"hidden sheets of the workbook are not read: {', '.join(map(repr, hidden))}"
        yield Doubt("hidden-sheets", found, "nothing; to read one, show it in its program and save the workbook")
    top, columns, cells, doubts = _table(path, name)
    yield from doubts
    filled = sorted({row for row, _ in cells if row > top})
    named = [(place, column) for place, column in enumerate(columns, 1) if column]
    for number, row in enumerate(range(top + 1, filled[-1] + 1) if filled else ()):
        values = {column: cells.get((row, place)) for place, column in named}
        if all(value is None for value in values.values()):
            yield Unread(number, "empty", " is blank", row)
        else:
            yield Read(number, values, row)


def _sheet(path: Path, asked: str | None) -> str:
    """The sheet that is read. Raises DataError where there is none of that name."""
    found = names(path)
    if not found:
        _open(path, read_only=True).close()  # says what is wrong with it
    if asked in found or (asked is None and found):
        return asked or next(iter(found))
    what = "the workbook has no such sheet" if asked else "the workbook has no sheet that is not hidden"
    allowed = ", ".join(found) or "a sheet that can be seen"
    fix = f"name one of its sheets, such as split: {next(iter(found))}" if found else "show a sheet, and save it"
    raise DataError(what, place=str(path), got=repr(asked) if asked else "", allowed=allowed, fix=fix)


def _open(path: Path, **how: bool) -> Any:
    """The workbook of openpyxl. Raises DataError where it is none."""
    if (error := missing(path)) is not None:
        raise error
    import openpyxl

    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not packing(path) and (found := foreign(head, suffix(path))) is not None:
        raise DataError(f"the file is {found[0]}", place=str(path), fix=found[1])
    try:
        with readable(path) if packing(path) else path.open("rb") as raw:
            whole = io.BytesIO(raw.read(MOST_UNPACKED))
        with zipfile.ZipFile(whole) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > MOST_UNPACKED:
            got = f"{show_bytes(size)} of {show_bytes(path.stat().st_size)}"
            allowed, fix = f"up to {show_bytes(MOST_UNPACKED)}", "save the sheet as CSV in UTF-8"
            raise DataError("the workbook unpacks to too much", place=str(path), got=got, allowed=allowed, fix=fix)
        if not how.get("read_only"):
            _refuse_large_merges(path, whole)
        return openpyxl.load_workbook(whole, data_only=True, **how)
    except DataError:
        raise
    # Of a damaged workbook openpyxl raises whatever comes first: of zip, XML or its own.
    except Exception as error:
        got = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        fix = "get it again, or save it again in its program"
        raise DataError("the file is no whole Excel workbook", place=str(path), got=got, fix=fix) from None


def _refuse_large_merges(path: Path, whole: io.BytesIO) -> None:
    """openpyxl makes an object of each cell that is merged, of which a line of the file may name 17 thousand million.
    Raises DataError."""
    from openpyxl.utils import range_boundaries

    with zipfile.ZipFile(whole) as archive:
        for each in archive.namelist():
            found = _MERGED.findall(archive.read(each)) if each.startswith(_SHEETS) else ()
            bounds = (range_boundaries(ref.decode()) for ref in found)
            cells = sum((right - left + 1) * (below - above + 1) for left, above, right, below in bounds)
            if cells > MOST_MERGED:
                what, got = "the workbook has merged cells over too large a part of a sheet", f"{cells:,} cells"
                allowed, fix = f"up to {MOST_MERGED:,}", "take the merging back, or save the sheet as CSV in UTF-8"
                raise DataError(what, place=str(path), got=got, allowed=allowed, fix=fix)


def _filled(sheet: Any) -> Iterable[Any]:
    """The cells that are in the file; by rows and columns a single one far away makes 17 thousand million."""
    cells: dict[tuple[int, int], Any] = sheet._cells
    return cells.values()


def _table(path: Path, name: str) -> tuple[int, list[str], _Cells, list[Doubt]]:
    """The row of the header, the names of the columns by their place, all values, and what is doubtful."""
    # Only a sheet that is held as a whole knows its merged cells.
    sheet = _open(path)[name]
    cells: _Cells = {(cell.row, cell.column): value for cell in _filled(sheet) if (value := _value(cell)) is not None}
    doubts = _unsaved(path, name, cells)
    top = _top(cells)
    above = [str(value) for (row, _), value in sorted(cells.items()) if row < top]
    if above:
        shown = "; ".join(above)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        found = f"the names of columns are taken from row {top}, and what stands above it is left out: {shown}"
        doubts.append(Doubt("header-below", found, "nothing; if that is wrong, delete what stands above the header"))
    doubts += _unseen(sheet, cells, top)
    merged = sorted(
        (each for each in sheet.merged_cells.ranges if each.max_row > top), key=lambda each: each.bounds[::-1]
    )
    for each in merged:
        value = cells.get((each.min_row, each.min_col))
        places = ((row, column) for row, column in _places(each) if value is not None and row > top)
        cells.update(dict.fromkeys(places, value))
    if merged:
        shown = ", ".join(str(each) for each in merged[:3]) + (" …" if len(merged) > 3 else "")
        found = f"merged cells hold their value in each of their rows: {len(merged):,}, such as {shown}"
        doubts.append(Doubt("merged-cells", found, "nothing; if that is wrong, take the merging back"))
    width = max((column for row, column in cells if row == top), default=0)
    columns = distinct([str(cells.get((top, place), "")).strip() for place in range(1, width + 1)])
    unnamed = sorted({column for row, column in cells if row > top and (column > width or not columns[column - 1])})
    if unnamed:
        from openpyxl.utils import get_column_letter

        letters = ", ".join(map(get_column_letter, unnamed[:8]))
        found = f"columns without a name in row {top} are not read: {letters}"
        doubts.append(Doubt("columns-without-names", found, "nothing; to read them, write a name above them"))
    return top, columns, cells, doubts


def _unseen(sheet: Any, cells: _Cells, top: int) -> list[Doubt]:
    """Rows and columns that are hidden, as a filter does it, and have values."""
    from openpyxl.utils import get_column_letter

    rows = sorted({row for row, _ in cells if row > top and sheet.row_dimensions[row].hidden})
    # Columns that stand side by side and look alike are one entry of the file.
    spans = [(each.min, each.max) for each in sheet.column_dimensions.values() if each.hidden and each.min]
    columns = sorted({column for _, column in cells if any(least <= column <= most for least, most in spans)})
    lists = {"rows": [*map(str, rows)], "columns": [*map(get_column_letter, columns)]}
    said = [f"{what} {', '.join(each[:8])}{' …' if len(each) > 8 else ''}" for what, each in lists.items() if each]
    if not said:
        return []
    found = f"what is hidden in the sheet is read like the rest: {'; '.join(said)}"
    return [Doubt("hidden-cells", found, "nothing; if they are not meant, delete them in the workbook")]


def _places(merged: Any) -> Iterator[tuple[int, int]]:
    for row in range(merged.min_row, merged.max_row + 1):
        for column in range(merged.min_col, merged.max_col + 1):
            yield row, column


def _top(cells: Mapping[tuple[int, int], Any]) -> int:
    """The row of the header: the first as wide as most, all of it text; else the first that is not empty."""
    rows: dict[int, list[Any]] = {}
    for (row, _), value in sorted(cells.items()):
        if row not in rows and len(rows) == HEADER_ROWS:
            break
        rows.setdefault(row, []).append(value)
    if not rows:
        return 0
    usual = median(len(values) for values in rows.values())
    texts = (row for row, values in rows.items() if len(values) >= usual and all(isinstance(v, str) for v in values))
    return next(texts, min(rows))


def _value(cell: Any) -> Any:
    """The value of a cell as a row has it; None for an empty one and for an error, such as #N/A."""
    value = cell.value
    if cell.data_type == "e" or value is None:
        return None
    if isinstance(value, str):
        # So characters are written that XML cannot hold.
        text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value).replace("\r\n", "\n")
        return text if text.strip() else None
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "seconds")
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return str(value)
    return value


def _unsaved(path: Path, name: str, cells: _Cells) -> list[Doubt]:
    """Formulas of which the file has no result, as programs write them that do not calculate."""
    if not _has_formulas(path):
        return []
    import openpyxl

    with path.open("rb") as raw, readable(path) if packing(path) else raw as file:
        sheet = openpyxl.load_workbook(io.BytesIO(file.read()))[name]
        formulas = [cell for cell in _filled(sheet) if cell.data_type == "f"]
    left = [cell.coordinate for cell in formulas if (cell.row, cell.column) not in cells]
    if not left:
        return []
    shown = ", ".join(left[:3]) + (" …" if len(left) > 3 else "")
    found = f"cells of formulas without a result in the file are read as empty: {len(left):,}, such as {shown}"
    return [Doubt("formulas-without-results", found, "open the file in its program and save it: that calculates them")]


def _has_formulas(path: Path) -> bool:
    """Whether any sheet has one; told by the bytes, as a second look at all cells takes as long as the first."""
    with path.open("rb") as raw, readable(path) if packing(path) else raw as file:
        with zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            sheets = (each for each in archive.namelist() if each.startswith(_SHEETS))
            return any(b"<f>" in content or b"<f " in content for content in map(archive.read, sheets))
