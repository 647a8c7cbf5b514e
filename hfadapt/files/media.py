"""Files each of which is one row: images and recordings in folders of classes, and in archives of them.

A file in a folder of its class has the name of that folder as its label. In a tar archive files of one name belong
together, as in WebDataset: `0001.jpg` with `0001.cls`, `0001.txt` or `0001.json` beside it.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.files import FILE_LIMIT_BYTES, SPLIT_NAMES, Blob, Read, Rows, Unread, modality_of, split_of
from hfadapt.files.beside import is_paper, not_read

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
_SIDECARS = (".cls", ".txt", ".json")
LONGEST = 200
"""Characters at the end of a name in which its ending is looked for."""
_BARE = ("data", "images", "audio")
"""What folders are called that hold files of all classes, or all of one in the folder of that."""
_BESIDE = {*_BARE, "image", "set", "dataset"}
"""Words beside that of a split in the name of its folder."""
_BROKEN = "download or pack it again"

Member = tuple[PurePosixPath, Callable[[], bytes]]


def suffixes() -> dict[str, str]:
    """Endings of such files, also of those that turn out not to be read, and the modality of each."""
    kinds = [registry.modality(name) for name in registry.names("modalities")]
    return {ending: kind.name for kind in kinds for ending in (*kind.suffixes, *kind.unread)}


def kind_of(value: Any) -> str | None:
    """The modality of a value that is a file or the name of one, by its ending or how it begins; None for others."""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = Blob(str(value.get("path") or ""), value.get("bytes"))
    data = value.data if isinstance(value, Blob) else value if isinstance(value, bytes) else None
    name = (value.path or value.name) if isinstance(value, Blob) else str(value)[-LONGEST:] if data is None else ""
    return suffixes().get(PurePosixPath(name).suffix.lower()) or (modality_of(data) if data else None)


def holds(path: Path) -> str | None:
    """The modality of what is in a file or archive; None for other files."""
    known = suffixes()
    if path.suffix.lower() in known:
        return known[path.suffix.lower()]
    if not path.name.lower().endswith(ARCHIVES):
        return None
    try:
        for name, _ in _members(path):
            if found := known.get(name.suffix.lower()):
                return found
    except DataError:
        return None
    return None


def broken(path: Path) -> DataError | None:
    """What is wrong with a file that is called as an archive; None for others, and for whole ones."""
    if path.name.lower().endswith(ARCHIVES):
        try:
            for _ in _members(path):
                pass
        except DataError as error:
            return error
    return None


def read(files: Sequence[Path]) -> Rows:
    """A row for each file, or for each file in an archive, with its class where folders tell it.

    What an archive holds of kinds that are not read comes as a Doubt after its rows.

    Raises:
        DataError: an archive is broken.
    """
    kinds = suffixes()
    whole = [path for path in files if path.suffix.lower() in kinds]
    labelled = len({path.parent for path in whole}) > 1
    classes, loose, names = class_folders(whole), _above_the_classes(whole), names_of(whole)
    root = Path(os.path.commonpath([path.parent for path in whole])) if whole else Path()
    number = 0
    for path in files:
        if path.suffix.lower() in kinds:
            folder = path.parent
            while folder != root and _is_bare(folder.name) and folder not in classes:
                folder = folder.parent
            # What all files lie in is no class of some.
            bare = path.parent in loose or folder == root != path.parent
            bare = bare or (_is_bare(folder.name) and folder not in classes)
            label = {"label": folder.name} if labelled and not bare else {}
            name = names[path]
            yield Read(number, {kinds[path.suffix.lower()]: Blob(name, path=path), **label, "file": name})
            number += 1
            continue
        foreign: list[str] = []
        one_of: dict[PurePosixPath, str] = {}
        for values in _rows(path, kinds, foreign):
            if isinstance(values, tuple):
                yield Unread(number, *values)
            else:
                one_of[PurePosixPath(values["file"]).parent] = values["file"]
                yield Read(number, values)
            number += 1
        if foreign:
            yield not_read(foreign, one_of.values(), path.name)


def names_of(files: Sequence[Path]) -> dict[Path, str]:
    """What files are called: with the folders below the one that all are in, as two may hold files of one name."""
    root = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    return {path: path.relative_to(root).as_posix() for path in files}


def is_split(name: str) -> bool:
    """Whether a folder of this name can only be that of a split: `train`, `test1`, `Training_Set`."""
    words = re.findall("[a-z]+", name.lower())
    return split_of(name) is not None and all(word in SPLIT_NAMES or word in _BESIDE for word in words)


def _is_bare(name: str) -> bool:
    """Whether a folder of this name is hardly that of a class."""
    return name.lower() in _BARE or f".{name.lower()}" in suffixes() or is_split(name)


def in_class_folders(files: Collection[Path]) -> bool:
    """Whether the folders of files can be their classes: there are two or more of names that are not bare."""
    return len({each.parent.name for each in files if not _is_bare(each.parent.name)}) > 1


def class_folders(files: Collection[Path]) -> set[Path]:
    """Folders called `train` that hold a class, as of locomotives: files and no folders are in them, and folders of
    other names beside them. What is so called `test` may as well be what nobody has sorted yet."""
    folders = {path.parent for path in files}
    above = {each for folder in folders for each in folder.parents}
    trains = {each for each in folders - above if SPLIT_NAMES.get(each.name.lower()) == "train"}
    return {
        train for train in trains if any(each.parent == train.parent and not _is_bare(each.name) for each in folders)
    }


def _above_the_classes(files: Collection[Path]) -> set[Path]:
    """The folder in which all folders of classes are: what lies beside these has no class."""
    folders = {path.parent for path in files}
    return {each for each in folders if len(folders) > 2 and all(each in other.parents for other in folders - {each})}


def _rows(path: Path, kinds: dict[str, str], foreign: list[str]) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """Rows of an archive, or why a member is none; names of what is of another kind go into `foreign`."""
    for _, together in groupby(_members(path), key=lambda member: member[0].with_suffix("")):
        # A tar archive is read as it comes, so what is wanted of a member is taken before the next one.
        beside: dict[str, bytes] = {}
        asides: list[PurePosixPath] = []
        found: list[tuple[str, Blob]] = []
        damaged = ""
        for name, content in together:
            ending = name.suffix.lower()
            if ending not in kinds and ending not in _SIDECARS:
                foreign += [] if is_paper(name.name) else [str(name)]
                continue
            try:
                data = content()
            except _Damaged as error:
                damaged = str(error)
                continue
            if ending in kinds:
                found.append((kinds[ending], Blob(str(name), data)))
            else:
                beside[ending] = data
                asides.append(name)
        if damaged:
            yield "damaged-member", f": {path.name}: {damaged}"
            continue
        # What stands beside no file, as a list of those of a split, says nothing of one.
        alone = (name for name in asides if not found and not is_paper(name.name))
        foreign += map(str, alone)
        for kind, blob in found:
            try:
                name = PurePosixPath(blob.name)
                split = next((split for each in name.parts[:-1] if is_split(each) and (split := split_of(each))), None)
                given = {"split": split} if split else {}
                yield {kind: blob, **_label(name, beside), **given, "file": blob.name}
            except ValueError as error:
                yield "not-json", f": {path.name}: {blob.name}: {error}"


def _label(name: PurePosixPath, beside: dict[str, bytes]) -> dict[str, Any]:
    """What stands beside a member, or the name of its folder. Raises ValueError for what cannot be read."""

    def folder(column: str) -> dict[str, str]:
        known = name.parent.name
        return {column: known} if known and not _is_bare(known) else {}

    told = {ending[1:]: beside[ending].decode("utf-8").strip() for ending in (".cls", ".txt") if ending in beside}
    if ".json" in beside:
        values = json.loads(beside[".json"])
        values = values if isinstance(values, dict) else {"label": values}
        # What else is known of a file stands in JSON, and what it shows in a text; its class in `.cls`.
        named = {"label": told.pop("cls")} if "cls" in told and "label" not in values else {}
        return {**folder("folder"), **told, **values, **named}
    return {"label": told.get("cls", told.get("txt"))} if told else folder("label")


def _members(path: Path) -> Iterator[Member]:
    """Names and contents of an archive's files, hidden ones left out.

    Raises:
        DataError: it is cut off, broken or locked.
    """
    with _whole(path):
        for name, size, content in _zipped(path) if path.suffix.lower() == ".zip" else _tarred(path):
            inside = PurePosixPath(name)
            hidden = not inside.name or any(part.startswith((".", "__MACOSX")) for part in inside.parts)
            if hidden or size > FILE_LIMIT_BYTES:
                continue
            yield inside, partial(_content, path, content)


def _content(path: Path, read: Callable[[], bytes]) -> bytes:
    with _whole(path):
        return read()


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Raises DataError for an archive that is cut off, broken or locked."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        what = "needs a password" if isinstance(error, RuntimeError) else "is cut off or broken"
        raise DataError(
            f"the archive {what}", place=str(path), got=f"{path.name}: {error}"[:120], fix=_BROKEN
        ) from None


class _Damaged(Exception):
    """One member of an archive; those after it can be read."""


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a member, which is found by the archive's list whatever is before it. Raises _Damaged."""
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _Damaged(f"{info.filename}: {error}") from None


def _zipped(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.is_dir():
                yield info.filename, info.file_size, partial(_member, archive, info)


def _tarred(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    # As a stream: nothing is looked for twice, so an archive may be larger than memory and disk cache.
    with tarfile.open(path, "r|*") as archive:
        for info in archive:
            if info.isfile():
                yield info.name, info.size, lambda info=info: archive.extractfile(info).read()  # type: ignore[misc, union-attr]
