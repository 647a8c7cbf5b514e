"""Which files of a folder are data, and which split each belongs to."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.files import SPLIT_NAMES, Read, Unread, arrays, media, reading, sheets, split_of
from hfadapt.files.beside import is_paper
from hfadapt.files.lists import layout_of
from hfadapt.files.named import LOOKED_AT, Named
from hfadapt.files.opening import HEAD_BYTES, PACKED, WORKBOOKS, foreign, lines, packing, suffix

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", *WORKBOOKS)
"""Of tables; one beside images or recordings names them."""
SUFFIXES = (*TABLES, ".json", *arrays.ENDINGS, ".txt", ".md")
"""Of files that hfadapt reads whatever the rows; row schemas read further ones."""
TRAIN = next(iter(SPLIT_NAMES))
LISTS, LISTED = (".txt", ".lst"), 0.9
"""Endings of texts that name the files of a split, and the share of their lines that name one."""
_APART = {"corpus", "queries", "qrels"}
"""Files or folders of a benchmark of search, whose rows name each other."""
_MARKS = {"config.json": ("tokenizer.json", "tokenizer_config.json", "model.safetensors"), "lock.yaml": (".",)}
"""Files that mark a folder of a model or of a run, where one of the others is beside them."""


@dataclass(frozen=True)
class Found:
    """The files of a source.

    Args:
        data: Those that are read, sorted by name.
        left: Those of a kind that could be read, which are about the data rather than data.
        others: Splits of the folder that were not asked for.
        foreign: Those of kinds that are not read beside the data, such as films beside images.
        lists: Texts that name the files of a split, such as validation_list.txt.
        listed: The split that these say of files.
        columns: Those of tables that name images or recordings.
    """

    data: tuple[Path, ...]
    left: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    foreign: tuple[Path, ...] = ()
    lists: tuple[Path, ...] = ()
    listed: Mapping[Path, str] = field(default_factory=dict)
    columns: Mapping[Path, Collection[str]] = field(default_factory=dict)


def suffixes() -> tuple[str, ...]:
    """Endings of all tables and texts that can be read."""
    return (*SUFFIXES, *registry.row_files())


def allowed() -> str:
    """What can be read, for messages."""
    kinds = map(registry.modality, registry.names("modalities"))
    files = ", ".join(ending for kind in kinds for ending in kind.suffixes)
    return (
        f"{', '.join(suffixes())}, each also {', '.join(PACKED)}; {files} in folders or in {', '.join(media.ARCHIVES)}"
    )


def every_file(path: Path) -> list[Path]:
    """The files behind a path, folder or glob, sorted by name; hidden ones and hidden folders are left out.

    What is called as an image or recording and is none is among them, so that reading names it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        found = sorted(Path(each) for each in glob.iglob(str(path), recursive=True))
        return [each for each in found if each.is_file() and not each.name.startswith(".")]
    return sorted(_walked(path), key=lambda each: each.parts)


def _walked(path: Path) -> Iterator[Path]:
    """Files of a folder and those in it, also where one is a link, but to a folder that it is in."""
    for name, folders, files in os.walk(path, followlinks=True):
        folder = Path(name)
        if folder != path and folder.resolve() in (each.resolve() for each in folder.parents):
            folders.clear()
            continue
        folders[:] = [each for each in folders if not each.startswith(".")]
        inside = [folder / each for each in (*files, *folders) if not each.startswith(".")]
        yield from (each for each in inside if each.is_file() or _lost(each))


def _lost(path: Path) -> bool:
    """Whether an image or recording should be there: a link to nothing, or an empty folder of its name."""
    if path.suffix.lower() not in media.suffixes():
        return False
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def named_below(path: Path) -> Named:
    """Finds files by what a table calls them that is at a path, or in a folder there."""
    return Named(lambda: every_file(path if path.is_dir() else path.parent))


def find(path: Path) -> Found:
    """The data files behind a path, folder or glob: in a folder without licences, settings, models and hidden files.

    Raises:
        DataError: images and recordings are beside each other.
    """
    files = every_file(path)
    known = [each for each in files if suffix(each) in suffixes()]
    known += sorted({labels for each in known for labels in arrays.beside(each)} - {*known})
    # Archives are opened for it, so each file is asked once.
    kinds = {each: media.holds(each) for each in files} if not known or path.is_dir() else {}
    seen = [each for each, kind in kinds.items() if kind]
    naming = _naming(known, seen) if seen else {}
    if seen and not naming and not media.in_class_folders(seen):
        naming = _naming([each for each in known if suffix(each) == ".txt" and layout_of(each)], seen, (".txt",))
    if seen and not naming and not any(suffix(each) in TABLES for each in known):
        # Of these each is a row; a table beside them would name them.
        counts = Counter(kinds[each] for each in seen)
        if len(counts) > 1:
            got = ", ".join(f"{count:,} of kind {kind}" for kind, count in counts.items())
            ending = next(each.suffix for each in seen if kinds[each] == max(counts, key=lambda name: counts[name]))
            fix = f"name files of one kind, such as {path / '**' / f'*{ending}'}"
            raise DataError("the folder holds files of several kinds", place=str(path), got=got, fix=fix)
        lists = _lists(files, seen)
        listed = {file: split for own in lists.values() for file, split in own.items()}
        foreign = _foreign(files, {*seen, *lists})
        return Found(tuple(seen), foreign=foreign, lists=tuple(lists), listed=listed)
    if not path.is_dir():
        return Found(tuple(known), foreign=_foreign(files, known))
    if {part.split(".")[0] for each in known for part in each.relative_to(path).parts} >= _APART:
        raise DataError(
            "the folder keeps queries and documents apart, as those of BEIR do",
            place=str(path),
            got=", ".join(each.relative_to(path).as_posix() for each in known[:6]),
            allowed="rows of a query and a document",
            fix="write a table of the columns query and document, a row for each line of qrels whose score is over 0, "
            "and name that; or name corpus.jsonl to learn its texts alone",
        )
    others = {each.parent for each in files if each.name in _MARKS and _holds(each.parent, _MARKS[each.name])}
    inside = {each for each in files if others & set(each.parents)} if others else set()
    known = [each for each in known if each not in inside]
    # Images and recordings beside a table are what it names, but not those that an archive holds.
    apart = {each for each in seen if suffix(each) in PACKED or each.name.lower().endswith(media.ARCHIVES)}
    foreign = _foreign(files, {*known, *seen, *inside} - apart)
    if naming:
        left = [each for each in known if each not in naming and not is_paper(each.name)]
        return Found(tuple(naming), tuple(left), foreign=foreign, columns=naming)
    # A page about files that cannot be read is no data.
    data = [each for each in known if not is_paper(each.name)] or [each for each in known if suffix(each) != ".md"]
    # Saved by datasets' save_to_disk, the rest is about the Arrow files.
    arrow = [each for each in data if suffix(each) == ".arrow"]
    pixels = [each for each in data if suffix(each) in arrays.ENDINGS]
    tables = [each for each in data if suffix(each) not in (".txt", ".md", ".json", *arrays.ENDINGS)]
    texts, documents = ([each for each in data if suffix(each) in ends] for ends in ((".txt", ".md"), (".json",)))
    if arrow:
        data = [each for each in arrow if not each.name.startswith(("cache-", "tmp"))]
    elif tables:
        data = [each for each in data if each not in texts and each not in pixels]
    elif pixels:
        data = pixels
    elif texts and documents:
        data = max(texts, documents, key=len)
    return Found(tuple(data), tuple(each for each in known if each not in data), foreign=foreign)


def _naming(known: Iterable[Path], seen: Iterable[Path], endings: Sequence[str] = TABLES) -> dict[Path, set[str]]:
    """Tables whose first rows name images or recordings that are there, or hold such; and their columns."""
    named, found = Named(lambda: seen), dict[Path, set[str]]()
    for table in known:
        if not is_paper(table.name) and (suffix(table) in endings or _is_list(table)):
            with suppress(DataError, OSError, ValueError):
                first = islice((item for item in reading.rows(table) if isinstance(item, Read)), LOOKED_AT)
                rows = [item.values for item in first]
                if named.columns(rows, table.parent):
                    found[table] = {name for row in rows for name in row}
    return found


def _is_list(path: Path) -> bool:
    """Whether a file is a JSON list, such as an export of rows."""
    with path.open("rb") as file:
        return suffix(path) == ".json" and file.read(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")


def _lists(files: Iterable[Path], seen: Collection[Path]) -> dict[Path, dict[Path, str]]:
    """Texts that name images or recordings, a line each, and the split that each says of these by its own name.

    What stands behind a name, such as the number of a class, is left out. Where there are several for a split, as
    train1.txt and train2.txt, the first are taken.
    """
    named = Named(lambda: seen)
    sets: dict[str, dict[Path, dict[Path, str]]] = {}
    for path in (each for each in files if each.suffix.lower() in LISTS):
        words = re.split(r"([^a-z]+|(?<=train)(?=val))", path.stem.lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if split is not None and (listed := _listed(path, named)):
            rest = "".join(word for word in words if word and word not in SPLIT_NAMES)
            sets.setdefault(rest, {})[path] = dict.fromkeys(listed, split)
    return min(sorted(sets.items()), key=lambda item: -len(item[1]), default=("", {}))[1]


def _listed(path: Path, named: Named) -> list[Path]:
    """The files that the lines of a text name, where hardly a line names none."""

    def found(said: Iterable[str]) -> list[Path]:
        return [file for line in said if (file := named(line) or named(line.split()[0]))]

    with suppress(DataError, OSError):
        said = (line for item in lines(path) if not isinstance(item, Unread) and (line := item[1].strip()))
        if len(found(first := list(islice(said, LOOKED_AT)))) > LISTED * len(first):
            return found([*first, *said])
    return []


def _foreign(files: Iterable[Path], read: Collection[Path]) -> tuple[Path, ...]:
    """Files beside those that are read which may be data of a kind that is not."""
    read = set(read)
    return tuple(each for each in files if each not in read and not is_paper(each.name))


def may_have_splits(path: Path) -> bool:
    """Whether a path can have named splits: a folder, a JSON file that holds them, or a workbook with its sheets."""
    return path.is_dir() or (path.is_file() and bool(reading.split_names(path) or sheets.names(path)))


def usual_split(path: Path) -> str:
    """The split that is read where none is named; "" where a path has none."""
    first = next(iter(sheets.names(path)), "") if path.is_file() else ""
    return first or ("train" if may_have_splits(path) else "")


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def chosen(path: Path, split: str | None = None) -> Found:
    """The files behind a path, folder or glob that belong to a split.

    A folder whose files or folders are called train…, validation… and test… has these splits, and so has a JSON file
    with a list of rows for each; `split` picks one (`train` when not said), as for a data set on the Hub.

    Raises:
        DataError: none can be read, or there is no such split.
    """
    found = find(path)
    if not found.data:
        raise unreadable(path)
    inside = reading.split_names(path) if path.is_file() else {}
    if inside:
        if SPLIT_NAMES.get(split or "train", split) not in inside.values():
            raise DataError(
                "the file has no such split" if split else "the file has no split to train on",
                place=str(path),
                got=repr(split) if split else f"the splits {', '.join(inside)}",
                allowed=", ".join(inside),
                fix=f"name one of these splits, such as split: {(first := next(iter(inside)))}; "
                f"with hfadapt new --split {first}",
            )
        return found
    if path.is_file() and suffix(path) in WORKBOOKS:
        return found  # whether it has such a sheet, reading says
    splits = _splits(found.data, path)
    if found.listed:
        # What no list names is to train on, unless one says of what that is.
        rest = None if TRAIN in found.listed.values() else TRAIN
        splits = {each: found.listed.get(each) or splits[each] or rest for each in found.data}
    if not path.is_file() and "train" in splits.values():
        wanted = SPLIT_NAMES.get(split or "train", split)
        data = tuple(each for each in found.data if splits[each] == wanted)
        if not data:
            raise DataError(
                "the folder has no such split",
                place=str(path),
                got=repr(split),
                allowed=", ".join(sorted({name for name in splits.values() if name})),
                fix="name one of these splits",
            )
        # Beside files of splits, one of no split is none of the training rows.
        left = (*found.left, *(each for each in found.data if splits[each] is None))
        others = sorted({name for name in splits.values() if name and name != wanted}, reverse=True)
        where = _splits(found.foreign, path)
        foreign = tuple(each for each in found.foreign if (where[each] or "train") == wanted)
        return _alike(replace(found, data=data, left=left, others=tuple(others), foreign=foreign), path)
    if split:
        raise DataError(
            "a local file has no named splits",
            place=str(path),
            got=f"split {split!r}",
            fix="leave split out, or name the files of a folder train…, validation… and test…; or write a JSON file of "
            '{"train": […], "test": […]}',
        )
    return _alike(found, path)


def _alike(found: Found, path: Path) -> Found:
    """The files. Raises DataError for tables about the same files that each have columns which the others lack."""
    kinds = [(each, {*found.columns[each]}) for each in found.data if each in found.columns]
    if any(not (own <= other or other <= own) for _, own in kinds for _, other in kinds):
        raise DataError(
            "several tables name the files, each with columns of its own",
            place=str(path),
            got="; ".join(f"{each.relative_to(path)}: {', '.join(sorted(own)[:6])}" for each, own in kinds[:3]),
            fix=f"name the one that has the classes, such as {kinds[0][0]}",
        )
    return found


def _splits(files: tuple[Path, ...], start: Path) -> dict[Path, str | None]:
    """The split that each file belongs to, by its own name or that of a folder above it.

    Images and recordings are named as their classes are, `train_07.png` beside `car_03.png`; so their own names tell
    splits where all of them do, and a folder where it is no class beside others.
    """
    own = {
        each: arrays.split_said(each) or SPLIT_NAMES.get(re.split(r"[^a-z]", each.name.lower())[0]) for each in files
    }
    single = {each for each in files if each.suffix.lower() in media.suffixes()}
    if not all(own[each] for each in single):
        own |= dict.fromkeys(single)
    classes = media.class_folders(single)
    return {each: own[each] or _split_above(each, start, classes) for each in files}


def _split_above(file: Path, start: Path, classes: Collection[Path]) -> str | None:
    inside = [each for each in reversed(file.parents) if start in each.parents and each not in classes]
    for each in inside:
        # Beside a word of its own, as `seg_train`, it holds folders of classes; `train_station` may be one.
        if (media.is_split(each.name) or each != file.parent) and (split := split_of(each.name)):
            return split
    return None


def unreadable(path: Path) -> DataError:
    """The error for what has no readable file: names what it is."""
    if path.exists() and not path.is_file() and not path.is_dir():
        what = "this is a pipe or a device, which cannot be read twice"
        return DataError(what, place=str(path), fix="write it to a file first, and name the file")
    files = every_file(path)
    if len(files) == 1:
        return _no_format(files[0])
    if not files:
        return DataError("the folder holds no files", place=str(path), allowed="files with rows", fix="check the path")
    got = ", ".join(sorted({each.suffix or each.name for each in files})[:8])
    fix = "save rows as CSV or JSON Lines, images as PNG, recordings as WAV, and films as either of these"
    for each in files:
        if known := foreign(_head(each)):
            got, fix = f"{got}; {each.name} is {known[0]}", known[1]
            break
    return DataError("no file here can be read", place=str(path), got=got, allowed=allowed(), fix=fix)


def _head(path: Path) -> bytes:
    """How a file begins, without its compression; nothing where that cannot be read."""
    with suppress(DataError, OSError, EOFError):
        with PACKED[ending][1](path) if (ending := packing(path)) else path.open("rb") as file:
            return file.read(HEAD_BYTES)
    return b""


def _no_format(path: Path) -> DataError:
    if broken := media.broken(path):
        return broken
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    found = foreign(head)
    if found:
        return DataError(f"the file is {found[0]}", place=str(path), allowed=allowed(), fix=found[1])
    text = head.decode("utf-8", errors="ignore") if b"\0" not in head else ""
    fix = "save the data as CSV or JSON Lines" if text else "save it in one of these formats"
    if packing(path):
        fix = "unpack it, and name the file or folder with the data"
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    first = text.partition("\n")[0].strip()
    if first.startswith("{"):
        fix = f"if it has a JSON object a line, call it {path.name}.jsonl"
    elif text.startswith("["):
        fix = f"if it is a JSON array, call it {path.name}.json"
    elif any(mark in first for mark in ",;\t|"):
        fix = f"if it is CSV, call it {path.name}.csv"
    what = "files of this kind are not read" if path.suffix else "the file has no ending that tells its format"
    return DataError(what, place=str(path), got=path.name, allowed=allowed(), fix=fix)
