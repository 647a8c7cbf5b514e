"""What a source in a recipe names: files here, a sample, or a data set of the Hub. Looks at heads of files only."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import re
from itertools import islice
from pathlib import Path

from hfadapt.core import registry

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""Of files that hfadapt reads whatever the rows; row schemas read further ones."""
SAMPLE = "sample:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
"""`name` or `owner/name`."""
MODEL_ID = re.compile(rf"{HUB_ID.pattern}(@[A-Za-z0-9][\w./-]*)?", re.ASCII)
"""The same, with a revision."""
HEAD_ROWS = 20
HEAD_BYTES = 1 << 20


def resolve_source(source: str, recipe_folder: Path) -> Path | None:
    """Where a source lies on this machine: beside the recipe first, then in the working directory.

    Args:
        source: A path, relative or not, `~` and glob patterns included.
        recipe_folder: Folder of the recipe file.

    Returns:
        The file or folder; for a glob that matches something the pattern with its folder, which `source_files`
        spells out; None when there is nothing here, so that it may be a sample or a data set of the Hub.
    """
    if source.startswith(SAMPLE) or "\0" in source:
        return None
    path = expanded(source)
    for base in dict.fromkeys((recipe_folder, Path.cwd())):
        candidate = base / path
        if _exists(candidate) or (is_glob(source) and next(glob.iglob(str(candidate), recursive=True), None)):
            return candidate
    return None


def expanded(text: str) -> Path:
    """A path as it is written; `~` stands for a home folder where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def placed_model(model: str) -> str:
    """A local model by its full path, so that it is found from any folder; a sample or a Hub id unchanged."""
    path = expanded(model)
    return model if model.startswith(SAMPLE) or not _exists(path) else str(path.resolve())


def is_missing(model: str) -> bool:
    """Whether a model can only be a path on this machine, and is not there."""
    path = expanded(model)
    local = model.startswith((".", "/", "~")) or path.is_absolute() or path.suffix == ".gguf"
    return local and not _exists(path)


def near_model(model: str) -> str:
    """A local model in or below the working directory as seen from there; anything else unchanged."""
    path, here = Path(model), Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_absolute() and path.is_relative_to(here) else model


def from_recipe(model: str, recipe_folder: Path) -> str:
    """A relative path to a local model as seen from the recipe, whatever the working directory; else unchanged."""
    path = Path(model)
    if model.startswith((SAMPLE, "~")) or path.is_absolute() or not _exists(path):
        return model
    seen = os.path.relpath(path.resolve(), recipe_folder.resolve())
    return seen if seen.startswith("..") else f"./{seen}"


def found_model(model: str, folder: Path) -> str:
    """Where the local model that a lock names lies now; a sample or a Hub id unchanged.

    A project may be moved or copied with its runs: then the model stands at the end of its old path under one of the
    folders above the cell. Whether it is the same model, the adapter's manifest tells.

    Args:
        model: As the lock names it.
        folder: The cell's folder.

    Returns:
        The path of what is there; `model` where there is nothing.
    """
    path = expanded(model)
    if not model.startswith((".", "/", "~")) and not path.is_absolute():
        return model
    if path.is_absolute() and _exists(path):
        return model
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    for above in folder.resolve().parents:
        for first in range(len(parts)):
            candidate = above.joinpath(*parts[first:])
            if _exists(candidate / "config.json") or (candidate.suffix == ".gguf" and _exists(candidate)):
                return str(candidate)
    return placed_model(model)


def source_files(path: Path) -> list[Path]:
    """The files behind a resolved source, sorted by name; hidden ones are left out."""
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else (Path(each) for each in glob.iglob(str(path), recursive=True))
    return sorted(each for each in found if each.is_file() and not each.name.startswith("."))


def is_glob(source: str) -> bool:
    """Whether a source is a pattern for several files."""
    return any(mark in source for mark in "*?[")


def looks_local(source: str) -> bool:
    """Whether a source can only mean files on this machine, there or not."""
    return (
        source.startswith((".", "/", "~"))
        or is_glob(source)
        or "\\" in source
        or Path(source).suffix.lower() in (*suffixes(), ".gz")
        or source.count("/") > 1
    )


def suffixes() -> tuple[str, ...]:
    """Endings of all files that can be read."""
    return (*SUFFIXES, *registry.row_files())


def suffix(path: Path) -> str:
    """The format's ending, `.gz` aside."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def column_names(path: Path) -> tuple[str, ...] | None:
    """The columns of a file, from its first rows; None when they cannot be known without reading it all."""
    readers = {".csv": _csv_columns, ".tsv": _csv_columns, ".jsonl": _jsonl_columns, ".ndjson": _jsonl_columns}
    kind = suffix(path)
    try:
        if kind in readers:
            return readers[kind](path)
        if kind == ".json":
            return _json_columns(path)
        if kind == ".parquet":
            from pyarrow import parquet

            return tuple(parquet.read_schema(path).names)
    except (OSError, EOFError, ValueError, csv.Error, RecursionError):
        return None  # unreadable content is the data stage's to report, row by row
    if kind in registry.row_files():
        return registry.row_files()[kind].parts
    return ("text",) if kind == ".txt" else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _head(path: Path) -> str:
    """The first lines of a text file, whole; at most `HEAD_BYTES`."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        content: bytes = file.read(HEAD_BYTES)
    if len(content) == HEAD_BYTES:
        content = content[: content.rfind(b"\n") + 1]
    return content.decode("utf-8-sig")


def _csv_columns(path: Path) -> tuple[str, ...] | None:
    head = _head(path)
    delimiter = "\t" if suffix(path) == ".tsv" else max(",;\t|", key=head.partition("\n")[0].count)
    return tuple(next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), ())) or None


def _jsonl_columns(path: Path) -> tuple[str, ...] | None:
    """The keys of the first rows together: a row may leave some out."""
    lines = (line for line in _head(path).split("\n") if line.strip())
    return _keys([json.loads(line) for line in islice(lines, HEAD_ROWS)])


def _json_columns(path: Path) -> tuple[str, ...] | None:
    if path.stat().st_size >= HEAD_BYTES:
        return None
    rows = json.loads(_head(path))
    if isinstance(rows, dict):
        inner = [each for each in rows.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        rows = inner[0] if len(inner) == 1 else [rows]
    return _keys(rows[:HEAD_ROWS]) if isinstance(rows, list) else None


def _keys(rows: list[object]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)) or None
