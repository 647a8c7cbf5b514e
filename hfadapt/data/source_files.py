"""Reads the rows of local files; the only file that knows file formats.

JSON Lines, JSON, CSV, TSV, Parquet, plain text and the files of a row schema, each also as .gz. A folder or a glob is
read in the order of its names and its rows are numbered through. Nothing here raises on a bad row: it is yielded as
dropped.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.rows import Dropped
from hfadapt.recipe.sources import suffixes

LINE_LIMIT_BYTES = 16 << 20
_SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_NAMES.update({"dev": "validation", "test": "test"})

Values = dict[str, Any]
Reading = Iterator[tuple[int, Values] | Dropped]


def local_files(path: Path, split: str | None = None) -> list[Path]:
    """The readable files behind a path, folder or glob, sorted by name.

    A folder whose files are called train…, validation… and test… has these splits; `split` picks one (`train` when
    not said), as for a data set on the Hub.

    Raises:
        DataError: none can be read, or there is no such split.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
    else:
        files = [Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file()]
    readable = [each for each in files if _suffix(each) in suffixes()]
    if not readable:
        raise DataError(
            "no file here can be read",
            place=str(path),
            got=", ".join(sorted({each.suffix or each.name for each in files})[:8]) or "no files",
            allowed=", ".join(suffixes()) + ", each also .gz",
            fix="save the data in one of these formats",
        )
    splits = {each: _SPLIT_NAMES.get(re.split(r"[^a-z]", each.name.lower())[0]) for each in readable}
    if not path.is_file() and "train" in splits.values():
        wanted = _SPLIT_NAMES.get(split or "train", split)
        chosen = [each for each in readable if splits[each] == wanted]
        if not chosen:
            raise DataError(
                "the folder has no such split",
                place=str(path),
                got=repr(split),
                allowed=", ".join(sorted({name for name in splits.values() if name})),
                fix="name one of these splits",
            )
        return chosen
    if split:
        raise DataError(
            "a local file has no named splits",
            place=str(path),
            got=f"split {split!r}",
            fix="leave split out, or name the files of a folder train…, validation… and test…",
        )
    return readable


def _suffix(path: Path) -> str:
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def content_hash(files: list[Path]) -> str:
    """SHA-256 of the names and bytes of files, in their order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def numbered_rows(name: str, files: list[Path]) -> Reading:
    """Rows of all files, numbered through from 0."""
    first = 0
    for path in files:
        count = 0
        for item in _reader(path)(path):
            if isinstance(item, Dropped):
                detail = f"{path.name}: {item.detail}" if len(files) > 1 else item.detail
                yield Dropped(name, first + item.row, item.reason, detail=detail)
            else:
                yield first + item[0], item[1]
            count += 1
        first += count


def _reader(path: Path) -> Callable[[Path], Reading]:
    return _READERS.get(_suffix(path), _read_with_schema)


def _read_with_schema(path: Path) -> Reading:
    """A file of a kind that belongs to one row schema; lines that cannot be read end up in its rows' faults."""
    read = registry.row_files()[_suffix(path)].files[_suffix(path)]
    bad: list[Dropped] = []

    def lines() -> Iterator[str]:
        for item in _lines(path):
            if isinstance(item, Dropped):
                bad.append(item)
            else:
                yield item[1]

    number = 0
    for number, row in enumerate(read(lines())):
        yield number, row
    for more, item in enumerate(bad, number + 1):
        yield replace(item, row=more)


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, str] | Dropped]:
    """Text lines with their number; a line that is too long or not UTF-8 is dropped without being held."""
    with _open_bytes(path) as file:
        number = 0
        while line := file.readline(LINE_LIMIT_BYTES + 1):
            where = f"line {number + 1}"
            if len(line) > LINE_LIMIT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_LIMIT_BYTES + 1)
                yield Dropped("", number, "huge", detail=f"{where} is longer than {LINE_LIMIT_BYTES >> 20} MiB")
            else:
                try:
                    yield number, line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield Dropped("", number, "not-utf8", detail=f"{where}: {error.reason} at byte {error.start}")
            number += 1


def _read_jsonl(path: Path) -> Reading:
    for item in _lines(path):
        if isinstance(item, Dropped):
            yield item
            continue
        number, line = item
        if not line.strip():
            yield Dropped("", number, "empty", detail=f"line {number + 1} is blank")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Dropped("", number, "not-json", detail=f"line {number + 1}: {error}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            yield Dropped("", number, "not-json", detail=f"line {number + 1} is not an object")


def _read_json(path: Path) -> Reading:
    with _open_bytes(path) as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8", place=str(path), got=str(error), fix="save it as UTF-8") from None
    except ValueError as error:
        if "Extra data" in str(error):
            yield from _read_jsonl(path)
            return
        raise DataError("the file is not JSON", place=str(path), got=str(error), fix="check the file") from None
    if isinstance(value, dict):
        lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        value = lists[0] if len(lists) == 1 else [value]
    for number, each in enumerate(value if isinstance(value, list) else []):
        if isinstance(each, dict):
            yield number, each
        else:
            yield Dropped("", number, "not-json", detail=f"entry {number} is not an object")


def _read_csv(path: Path) -> Reading:
    import io

    csv.field_size_limit(LINE_LIMIT_BYTES)
    with _open_bytes(path) as raw:
        # Bytes that are not UTF-8 come through as lone surrogates, so that only their own row is lost.
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        head = text.readline()
        text.seek(0)
        suffix = _suffix(path)
        delimiter = "\t" if suffix == ".tsv" else max(",;\t|", key=head.count)
        reader = csv.reader(text, delimiter=delimiter)
        header = next(reader, None)
        if not header:
            return
        number = 0
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Dropped("", number, "huge", detail=f"line {reader.line_num}: {error}")
                number += 1
                continue
            if fields is None:
                return
            where = f"line {reader.line_num}"
            if not fields:
                yield Dropped("", number, "empty", detail=f"{where} is blank")
            elif len(fields) != len(header):
                detail = f"{where} has {len(fields)} fields, the header {len(header)}"
                yield Dropped("", number, "wrong-fields", detail=detail)
            elif any(not each.isascii() and any("\udc80" <= char <= "\udcff" for char in each) for each in fields):
                yield Dropped("", number, "not-utf8", detail=f"{where} is not UTF-8")
            else:
                yield number, dict(zip(header, fields, strict=True))
            number += 1


def _read_parquet(path: Path) -> Reading:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            "the Parquet file cannot be read", place=str(path), got=str(error), fix="write the file again"
        ) from None
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=2048):
            for values in batch.to_pylist():
                yield number, values
                number += 1


def parquet_label_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Class names that the datasets library keeps in a Parquet file's metadata."""
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (OSError, ValueError):
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


def _read_text(path: Path) -> Reading:
    for item in _lines(path):
        yield item if isinstance(item, Dropped) else (item[0], {"text": item[1]})


_READERS: dict[str, Callable[[Path], Reading]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
