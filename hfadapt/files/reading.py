"""One door to the rows and the columns of a file: the reader of its kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, Rows, Unread, arrays, delimited, json_rows, media, plain_text, sheets, tables
from hfadapt.files.nested import field_names, spread
from hfadapt.files.opening import WORKBOOKS, lines, suffix

HEAD_ROWS = 2_000
LOOKED_AT = 200
"""Lines by which a text is told to be of another kind than it is called."""
HEAD_BYTES = 1 << 20


def _document(path: Path, encoding: str | None = None) -> Rows:
    """One row: paragraphs, lists and tables of a text that is set apart by empty lines mean little alone."""
    whole = list(lines(path, encoding))
    if bad := next((item for item in whole if isinstance(item, Unread)), None):
        yield replace(bad, row=0)
    else:
        yield Read(0, {"text": "\n".join(item[1] for item in whole if not isinstance(item, Unread)).strip()}, 1)


def _seems(path: Path, encoding: str | None = None) -> str:
    """The ending that a text should have, by its lines, to be read as one of a row schema; "" of others."""
    if suffix(path) not in (".txt", ".tsv"):
        return ""
    head = [item[1] for item in islice(lines(path, encoding), LOOKED_AT) if not isinstance(item, Unread)]
    return next((ending for schema in registry.schemas() if (ending := schema.seems(head))), "")


def _of_schema(path: Path, encoding: str | None = None, ending: str = "") -> Rows:
    """A file of a kind that belongs to one row schema; lines that cannot be read end up in its rows' faults.

    Args:
        ending: That of its kind, where it has another.
    """
    if ending:
        fix = (
            "nothing; to learn the lines themselves, put them into a file of another kind, such as JSON Lines with text"
        )
        yield Doubt("text-as-kind", f"read as if it were called {ending}, which its lines are", fix)
    ending = ending or suffix(path)
    read = registry.row_files()[ending].files[ending]
    bad: list[Unread] = []

    def whole() -> Iterator[str]:
        for item in lines(path, encoding):
            if isinstance(item, Unread):
                bad.append(item)
            else:
                yield item[1]

    number = 0
    for number, row in enumerate(read(whole())):
        yield Read(number, row)
    for more, item in enumerate(bad, number + 1):
        yield replace(item, row=more)


def _table(path: Path, encoding: str | None = None) -> Rows:
    """Parquet and Arrow say themselves how their texts are kept."""
    return tables.read(path)


_READERS: dict[str, Callable[[Path, str | None], Rows]] = {
    ".jsonl": json_rows.read_lines,
    ".ndjson": json_rows.read_lines,
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".parquet": _table,
    ".arrow": _table,
    ".txt": plain_text.read,
    ".md": _document,
}


def split_names(path: Path) -> dict[str, str]:
    """The splits that one file holds, by what they are called in it."""
    return json_rows.split_names(path) or arrays.split_names(path)


def rows(path: Path, split: str | None = None, encoding: str | None = None) -> Rows:
    """The rows of a file. Raises DataError where it is not what its ending says, or broken.

    Args:
        split: Which of its splits or sheets, where it has some; `train`, else the first sheet, when not said.
        encoding: As which a text was saved, where somebody says so; by default UTF-8, or as its first bytes tell.
    """
    if suffix(path) in WORKBOOKS:
        return sheets.read(path, split)
    if suffix(path) in arrays.ENDINGS:
        return arrays.read(path, split)
    if suffix(path) == ".json":
        return json_rows.read_whole(path, split, encoding)
    if ending := _seems(path, encoding):
        return _of_schema(path, encoding, ending)
    return _READERS.get(suffix(path), _of_schema)(path, encoding)


def column_names(path: Path, encoding: str | None = None, sheet: str | None = None) -> tuple[str, ...] | None:
    """The columns of a file, from its first rows; None when they cannot be known without reading it all."""
    kind = suffix(path)
    if media.holds(path):
        # Whether there is a class, folders tell.
        return None
    try:
        kind = _seems(path, encoding) or kind
        if kind in registry.row_files():
            return registry.row_files()[kind].parts
        if kind in (".parquet", ".arrow"):
            return tuple(field_names(tables.schema(path)))
        if kind in WORKBOOKS:
            return sheets.header(path, sheet) or None
        if kind in (".csv", ".tsv"):
            return delimited.header(path, encoding) or None
        if kind == ".json" and path.stat().st_size >= HEAD_BYTES:
            return None
        found = list(islice(rows(path, encoding=encoding), HEAD_ROWS))
    except (DataError, OSError, LookupError):
        return None  # what cannot be read is said when it is read
    head = [item.values for item in found if isinstance(item, Read)]
    if any(isinstance(item, Unread) and item.reason != "empty" for item in found):
        return None
    return tuple(dict.fromkeys(key for row in head for key in (*row, *spread(row)))) or None


def content_hash(files: Sequence[Path]) -> str:
    """SHA-256 of the names and bytes of files, in their order; of one that cannot be read, of its name and why.

    To a name belong the folders that not all of them lie in: they may be classes.
    """
    digest = hashlib.sha256()
    above = os.path.commonpath([path.parent for path in files]) if files else ""
    for path in files:
        name = os.path.relpath(path, above) if above else path.name
        digest.update(name.replace(os.sep, "/").encode("utf-8", "surrogateescape") + b"\0")
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            # Reading says it, of an image or recording as of one row.
            digest.update(str(error.errno).encode())
    return digest.hexdigest()
