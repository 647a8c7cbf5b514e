"""Rows of Parquet and Arrow files, and the names of classes that the datasets library keeps in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from hfadapt.core.errors import DataError
from hfadapt.files import Read, Rows
from hfadapt.files.opening import packing, readable, suffix

BATCH_ROWS, BATCH_BYTES = 2048, 16 << 20
ROW_BYTES = 100
"""Of a row as a line of text, about."""
"""Rows that are held at once: fewer where they are large, as those are that hold files."""
_AGAIN = "write Parquet where it was saved: datasets.load_from_disk(FOLDER).to_parquet('data.parquet')"


def schema(path: Path) -> Any:
    """The Arrow schema. Raises DataError where the file is broken."""
    with _opened(path) as (found, _):
        return found


def read(path: Path) -> Rows:
    """Rows; bytes that are UTF-8 are text."""
    number = 0
    with _opened(path) as (found, batches):
        twice = {name for name in found.names if found.names.count(name) > 1}
        if twice:
            what = f"the column {min(twice)!r} is there twice"
            raise DataError(what, place=str(path), fix="rename one of them")
        for batch in chain.from_iterable(map(_divided, batches)):
            for values in batch.to_pylist():
                yield Read(number, {name: _text(value) for name, value in values.items()})
                number += 1


def bytes_of_rows(path: Path) -> int:
    """About as many bytes as the rows of a Parquet file are once they are read: values that come again and again take
    none in the file. 0 for other files, and for what is none."""
    from pyarrow import ArrowException, parquet

    if path.suffix.lower() != ".parquet":
        return 0
    try:
        rows: int = parquet.read_metadata(path).num_rows
    except (ArrowException, OSError):
        return 0
    return rows * ROW_BYTES


def label_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Class names by column; nothing where the file is broken, which reading says."""
    try:
        metadata = schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (DataError, ValueError):
        return {}
    return {column: names for column, feature in features.items() if (names := _class_names(feature))}


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of the classes of a column, or of its elements, as the datasets library writes features down."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else ()
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") == "ClassLabel":
        return tuple(feature.get("names") or ())
    return _class_names(feature.get("feature"))


def _divided(batch: Any) -> Iterator[Any]:
    """A batch in parts that are small enough."""
    step = max(1, BATCH_BYTES * len(batch) // max(1, batch.nbytes))
    return (batch.slice(start, step) for start in range(0, len(batch), step))


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Schema and batches of rows."""
    import pyarrow
    from pyarrow import ipc, parquet

    with readable(path) as raw:
        # pyarrow maps files itself, so that a column that is not asked for costs nothing.
        source: Any = pyarrow.BufferReader(raw.read()) if packing(path) else str(path)
        try:
            if suffix(path) == ".parquet":
                # A buffer, so that of a row group no more is read than the next pages.
                with parquet.ParquetFile(source, buffer_size=1 << 20) as file:
                    about = file.metadata
                    row_bytes = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
                    rows = min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, row_bytes))
                    yield file.schema_arrow, file.iter_batches(batch_size=max(1, rows))
                return
            with pyarrow.memory_map(source) if isinstance(source, str) else source as memory:
                is_file = memory.read(6) == b"ARROW1"
                memory.seek(0)
                with ipc.open_file(memory) if is_file else ipc.open_stream(memory) as reader:
                    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
                    yield reader.schema, batches
        except (pyarrow.ArrowException, OSError) as error:
            kind, again = ("Parquet", "get it or write it again")
            if suffix(path) == ".arrow":
                kind, again = ("Arrow", f"get it again, or {_AGAIN}")
            got = str(error).splitlines()[0]
            raise DataError(f"the file is no whole {kind} file", place=str(path), got=got, fix=again) from None
