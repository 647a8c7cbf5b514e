"""Finds what a recipe calls a source and reads its rows; the only file that knows file formats and the Hub.

Local files are JSON Lines, JSON, CSV, TSV, Parquet and plain text, each also as .gz; a folder or a glob is read in
the order of its names and its rows are numbered through. Nothing here raises on a bad row: it is yielded as dropped.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, Problem, nearest
from hfadapt.core.progress import quiet_libraries
from hfadapt.data.rows import Dropped, name_rows
from hfadapt.recipe.schema import Domain, Source
from hfadapt.recipe.sources import suffixes

SAMPLE = "sample:"
LINE_LIMIT_BYTES = 16 << 20
UNREADABLE_LIMIT = 0.1
UNREADABLE = frozenset({"not-json", "not-utf8", "wrong-fields", "huge", "missing-field"})
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLIT_NAMES.update({"dev": "validation", "test": "test"})

Values = dict[str, Any]
Reading = Iterator[tuple[int, Values] | Dropped]


@dataclass(frozen=True)
class Opened:
    """A source that was found.

    Args:
        name: As rows and dropped rows name it.
        read: Starts reading; yields (0-based row, values) or the row as dropped.
        fingerprint: Changes when the content changes.
        label_names: Class names by column, for columns of class numbers.
        settings: The recipe's words about this source.
        split: The split it is given as, or "".
        about: Fields of its SourceRecord.
    """

    name: str
    read: Callable[[], Reading]
    fingerprint: str
    settings: Source
    split: str = ""
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def open_domain(domain: Domain, recipe_folder: Path, *, streaming: bool = False) -> list[Opened]:
    """All sources of a domain, its given validation and test splits included.

    Raises:
        DataError: a source cannot be found; all of them are named at once.
    """
    opened: list[Opened] = []
    problems: list[Problem] = []
    wanted: list[tuple[Source, str]] = [(source, "") for source in domain.all_sources()]
    for split in ("validation", "test"):
        given = getattr(domain, split)
        if given is not None:
            wanted.append((_given_source(given, domain, recipe_folder), split))
    for source, split in wanted:
        try:
            opened.append(open_source(source, recipe_folder, split=split, streaming=streaming))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError("sources cannot be read", problems=problems)
    places: dict[str, Opened] = {}
    for each in opened:
        if each.name in places:
            raise DataError(
                "the same source is used twice in one domain",
                place=each.name,
                got=f"as {places[each.name].split or 'train'} and as {each.split or 'train'}",
                fix="name it once; hfadapt makes validation and test splits by itself",
            )
        places[each.name] = each
    return opened


def _given_source(given: str, domain: Domain, recipe_folder: Path) -> Source:
    """A given split is a source of its own, or the name of a split of the domain's only source."""
    sources = domain.all_sources()
    bare = re.fullmatch(r"[A-Za-z_][\w.-]*(\[[^\]]*\])?", given)
    if bare and local_path(given, recipe_folder) is None and len(sources) == 1:
        own = local_path(sources[0].source, recipe_folder)
        if (own is None and not sources[0].source.startswith(SAMPLE)) or (own is not None and own.is_dir()):
            return sources[0].model_copy(update={"split": given, "rows": None})
    return sources[0].model_copy(
        update={"source": given, "split": None, "config": None, "revision": None, "rows": None, "weight": 1.0}
    )


def local_path(source: str, recipe_folder: Path) -> Path | None:
    """Where a source lies on this machine: beside the recipe first, then in the working directory; else None."""
    if source.startswith(SAMPLE):
        return None
    path = Path(source).expanduser()
    for base in (recipe_folder, Path.cwd()):
        candidate = base / path
        if candidate.exists():
            return candidate
        if any(mark in source for mark in "*?[") and glob.glob(str(candidate), recursive=True):
            return candidate
    return None


def open_source(source: Source, recipe_folder: Path, *, split: str = "", streaming: bool = False) -> Opened:
    """Finds one source.

    Raises:
        DataError: there is no such file, sample or data set.
    """
    name = source.source
    if name.startswith(SAMPLE):
        return _open_sample(source, split)
    path = local_path(name, recipe_folder)
    if path is not None:
        return _open_local(source, path, split)
    if _looks_local(name) or not _HUB_ID.match(name):
        raise _not_found(name, recipe_folder)
    return open_hub(source, split=split, streaming=streaming)


def _looks_local(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or Path(name).suffix in (*suffixes(), ".gz") or any(m in name for m in "*?[")
    )


def _not_found(name: str, recipe_folder: Path) -> DataError:
    folder = (recipe_folder / name).parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    close = nearest(Path(name).name, names)
    return DataError(
        "there is no such file",
        place=name,
        got=f"looked in {recipe_folder} and {Path.cwd()}",
        allowed="a file, folder or glob; a Hub data set id such as imdb; sample:NAME",
        fix=f"did you mean {Path(name).parent / close}?" if close else "check the path",
    )


def _open_sample(source: Source, split: str) -> Opened:
    from hfadapt.core import samples

    sample = samples.dataset(source.source.removeprefix(SAMPLE))
    about: dict[str, Any] = {"sha256": sample.sha256, "license": sample.license, "citation": sample.citation}
    about.update(url=sample.url, language=sample.language, revision=f"{sample.package} {sample.version}")
    fingerprint = f"{sample.sha256}:{sample.name}:{_sha256([sample.path])}"
    return Opened(source.source, lambda: _numbered(source.source, [sample.path]), fingerprint, source, split, {}, about)


def _open_local(source: Source, path: Path, split: str) -> Opened:
    files, name = local_files(path, source.split), source.source
    if source.split:
        name = f"{name}:{source.split}"
    labels: dict[str, tuple[str, ...]] = {}
    for file in files:
        if file.suffix == ".parquet":
            labels.update(_parquet_label_names(file))
    sha256 = _sha256(files)
    return Opened(name, lambda: _numbered(name, files), sha256, source, split, labels, {"sha256": sha256})


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


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _numbered(name: str, files: list[Path]) -> Reading:
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


def _parquet_label_names(path: Path) -> dict[str, tuple[str, ...]]:
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


def open_hub(source: Source, *, split: str = "", streaming: bool = False) -> Opened:
    """A data set of the Hub, or anything else that `datasets.load_dataset` takes.

    Raises:
        DataError: it cannot be reached, or there is no such config or split.
    """
    import datasets

    wanted = source.split or "train"
    try:
        with quiet_libraries():
            data = datasets.load_dataset(
                source.source, source.config, split=wanted, revision=source.revision, streaming=streaming
            )
    except Exception as error:  # the library raises many kinds, all of them about the request
        raise DataError(
            "the data set cannot be loaded from the Hub, and there is no local file of that name",
            place=source.source,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            allowed="a Hub data set id with an existing config and split, a local path, or sample:NAME",
            fix="check the id, config and split, or the connection to the Hub",
        ) from None
    features = data.features or {}
    elements = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    labels = {
        column: tuple(feature.names)
        for column, feature in elements.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }
    info = data.info
    about: dict[str, Any] = {"license": info.license or None, "citation": (info.citation or "").strip() or None}
    about.update(url=info.homepage or None, revision=source.revision or _hub_revision(source.source))
    fingerprint = getattr(data, "_fingerprint", None) or f"{source.source}@{about['revision']}"
    name = f"{source.source}:{source.split}" if source.split else source.source
    return Opened(
        name,
        lambda: ((i, dict(values)) for i, values in enumerate(data)),
        str(fingerprint),
        source,
        split,
        labels,
        about,
    )


def _hub_revision(dataset_id: str) -> str | None:
    """The commit that was read, or None when the Hub does not answer."""
    if Path(dataset_id).exists():
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset_id, timeout=5).sha
    except Exception:  # offline, private, rate-limited: the revision stays unknown
        return None


def check_unreadable(name: str, rows: int, bad: list[Dropped]) -> None:
    """Raises DataError when more than a tenth of a source's rows cannot be read, naming the lines."""
    unreadable = [each for each in bad if each.reason in UNREADABLE]
    if unreadable and len(unreadable) > UNREADABLE_LIMIT * rows:
        shown = "; ".join(each.detail for each in unreadable[:5] if each.detail)
        mixed = all(each.reason == "missing-field" for each in unreadable)
        raise DataError(
            f"{len(unreadable):,} of {rows:,} rows "
            + (
                "lack columns that the others have: values are missing, or formats are mixed"
                if mixed
                else "cannot be read"
            ),
            place=name_rows((name, each.row) for each in unreadable),
            got=shown or unreadable[0].reason,
            allowed=f"at most {UNREADABLE_LIMIT:.0%}",
            fix="repair these rows, name the right columns, or make each format a source of its own",
        )
