"""Values that are files, one after the other in one file: rows hold where theirs lies, not what it is.

So a split of pictures or recordings takes a few hundred bytes a row in memory, whatever its files are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfadapt.core.errors import RunError

FILE = "media.bin"
"""Beside the Parquet files whose rows point into it."""
_MARK = {b"hfadapt": b"stored"}
"""Metadata of an Arrow field that says where bytes lie."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that lie in a file and are read each time they are wanted: `bytes(stored)`.

    Args:
        path: The file.
        offset, size: Where they begin in it, and how many they are.
    """

    path: Path
    offset: int
    size: int

    def __bytes__(self) -> bytes:
        """The bytes. Raises RunError where the file is gone, or shorter than it was."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(self.size)
            got = f"{self.path.stat().st_size:,} bytes, of which {self.offset + self.size:,} are needed"
        except OSError as error:
            data, got = b"", error.strerror or str(error)
        if len(data) != self.size:
            what, fix = (
                "files of the prepared rows cannot be read",
                "prepare the data again: hfadapt run RECIPE --fresh",
            )
            raise RunError(what, place=str(self.path), got=got, fix=fix)
        return data


class Store:
    """A file to which bytes are added; it is made with the first of them, so that texts have none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0

    def add(self, value: bytes | Stored) -> Stored:
        """Writes bytes behind the others; what is in this file already stays where it is."""
        if isinstance(value, Stored) and value.path == self.path:
            return value
        data = bytes(value)
        with self.path.open("ab" if self._end else "wb") as file:
            file.write(data)
        self._end += len(data)
        return Stored(self.path, self._end - len(data), len(data))

    def clear(self) -> None:
        """Lets go of all that was added."""
        self._end = 0


@contextmanager
def passing(folder: Path) -> Iterator[Store]:
    """A store for as long as rows are on their way; its file is gone afterwards."""
    store = Store(folder / f".passing-{FILE}")
    try:
        yield store
    finally:
        store.path.unlink(missing_ok=True)


def schema(form: Any, column: str) -> Any:
    """An Arrow schema in which a column of bytes says where they lie; for "" the schema as it is."""
    import pyarrow as pa

    if not column:
        return form
    place = pa.struct([("offset", pa.int64()), ("size", pa.int64())])
    return form.set(form.get_field_index(column), pa.field(column, place, metadata=_MARK))


def table(lines: Sequence[dict[str, Any]], form: Any) -> Any:
    """Rows as an Arrow table of such a schema."""
    import pyarrow as pa

    for column in _columns(form):
        places = ({"offset": line[column].offset, "size": line[column].size} for line in lines)
        lines = [{**line, column: place} for line, place in zip(lines, places, strict=True)]
    return pa.Table.from_pylist(lines, schema=form)


def rows(found: Any, folder: Path, chosen: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Rows of an Arrow table or batch that was read from a file in `folder`: all, or those of these numbers."""
    import pyarrow as pa

    # Numbers have a type also where there are none.
    lines: list[dict[str, Any]] = (found if chosen is None else found.take(pa.array(chosen, pa.int64()))).to_pylist()
    path = folder / FILE
    for column in _columns(found.schema):
        for line in lines:
            line[column] = Stored(path, **line[column])
    return lines


def _columns(form: Any) -> list[str]:
    return [field.name for field in form if (field.metadata or {}).get(b"hfadapt") == _MARK[b"hfadapt"]]
