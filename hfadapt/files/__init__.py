"""Rows of local files. What a file is, is told by its bytes; its ending has to agree, so that nothing is guessed.

A bad row never raises: it comes as `Unread`. A file that cannot be read raises DataError, which says in one sentence
what it is and what to do.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LINE_LIMIT_BYTES = 16 << 20
FILE_LIMIT_BYTES = 256 << 20
"""Of one image or recording."""
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES.update({"dev": "validation", "test": "test", "training": "train", "testing": "test"})
"""What the splits of a data set are called."""

_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")


def split_of(said: Any) -> str | None:
    """The split that a word or a name says: `Training`, `PublicTest`, `val1`."""
    words = (word.lower() for word in _WORD.findall(str(said)))
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


Values = dict[str, Any]


@dataclass(frozen=True)
class Unread:
    """A row that cannot be read.

    Args:
        row: Its number, from 0.
        reason: As in dropped.jsonl.
        detail: What was found; it follows the name of the row, so it begins with a space or a colon.
        line: Where it begins in its file, from 1, where files have lines.
    """

    row: int
    reason: str
    detail: str = ""
    line: int | None = None


class Read(NamedTuple):
    """A row: its number from 0, its values by column, and the line where it begins, from 1, where files have lines.

    Names of files in its values begin in `folder`.
    """

    row: int
    values: Values
    line: int | None = None
    in_file: str = ""
    folder: Path = Path()


class Unusable(Exception):
    """A row that cannot be used, with the reason as in dropped.jsonl and what was found, as of `Unread`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


_SEEMING = {
    b"\x89PNG": ("a PNG", "image"),
    b"\xff\xd8\xff": ("a JPEG", "image"),
    b"GIF8": ("a GIF", "image"),
    b"WEBP": ("a WebP", "image"),
    b"WAVE": ("a recording (WAV)", "sound"),
    b"fLaC": ("a recording (FLAC)", "sound"),
    b"OggS": ("a recording (OGG)", "sound"),
    b"ID3": ("a recording (MP3)", "sound"),
    b"FORM": ("a recording (AIFF)", "sound"),
    b"<svg": ("a drawing (SVG)", ""),
    b"%PDF": ("a PDF", ""),
    b"PK\x03\x04": ("an archive (ZIP)", ""),
}
"""Of beginnings of files what they are, and as what they are broken rather than of another kind."""


def modality_of(data: bytes) -> str | None:
    """Whether bytes begin as an image or a recording does."""
    own = data[8:12] if data[:4] == b"RIFF" else data
    kind = next((kind for begins, (_, kind) in _SEEMING.items() if own.startswith(begins)), "")
    return {"image": "image", "sound": "audio"}.get(kind)


def seeming(data: bytes, what: str, why: str = "") -> str:
    """What bytes seem to be that are no `what`, such as an image, else why a reader does not take them."""
    if not data:
        return "an empty file"
    head = data[:16].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        return f"a web page and no {what}"
    if head.startswith(b"version https://"):
        return f"a pointer of Git LFS and no {what} (git lfs pull)"
    if head.startswith(b"--") and b"form-data" in data[:1000]:
        return f"a form and no {what}: send the file alone, as curl --data-binary @FILE does"
    own = data[8:12] if data[:4] == b"RIFF" else data
    for begins, (name, kind) in _SEEMING.items():
        if own.startswith(begins) and kind != what:
            return f"{name} and no {what}"
    return f"{len(data):,} bytes that are no whole {what}{': ' if why else ''}{why}"


_BOXES = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "raw data of a camera", b"jxl ": "JPEG XL"}
_BOXES |= dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC")
_HEADS = {b"#!AMR": "AMR", b"0&\xb2u": "WMA", b"\x1aE\xdf\xa3": "WebM or Matroska", b"8BPS": "PSD"}
_HEADS |= {b"\xff\xf1": "AAC", b"\xff\xf9": "AAC"}


def format_of(data: bytes) -> str:
    """The format of a picture or recording that not every reader knows, by how it begins; "" for others."""
    if data[4:8] == b"ftyp":
        return _BOXES.get(data[8:12], "MP4 or M4A")
    return next((name for head, name in _HEADS.items() if data.startswith(head)), "")


@dataclass(frozen=True)
class Blob:
    """The content of a file, which may not have been read yet.

    Args:
        name: As its source calls it.
        data: Its bytes.
        path: Where they are, if not in `data`.
    """

    name: str
    data: bytes | None = None
    path: Path | None = None

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, value: Any, folder: Path | None = None, named: Callable[[str], Path | None] | None = None) -> Blob:
        """Of a value of a source: a path below `folder`, bytes, or both as the datasets library stores files.

        Args:
            named: Finds what is not there by what it is called; a whole number may be a name then.

        Raises:
            Unusable: it is none of these, or an address of the web.
        """
        if isinstance(value, Blob):
            return value
        if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
            data, name = value.get("bytes"), str(value.get("path") or "")
            if data is not None:
                return cls(name, data)
            value = name
        if isinstance(value, (bytes, bytearray)):
            return cls("", bytes(value))
        value = str(value) if named is not None and isinstance(value, int) else value
        if not isinstance(value, str) or not value:
            raise Unusable("not-a-file", f" has {type(value).__name__} where the name of a file is needed")
        if "://" in value:
            raise Unusable("address-not-read", f" has an address of the web, {value[:60]}: fetch the file first")
        path = (folder or Path()) / value
        if named is not None and not is_there(path):
            path = named(value) or path
        return cls(value, path=path)

    def read(self) -> bytes:
        """Its bytes. Raises Unusable where there is no such file, or it is too large."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                # Neither a pipe, which may never say anything, nor a device, which may never end.
                raise Unusable("file-not-read", f" has {self.name}, which is no file")
            if status.st_size > FILE_LIMIT_BYTES:
                raise Unusable("file-too-large", f" has {self.name}, larger than {FILE_LIMIT_BYTES >> 20} MiB")
            return self.path.read_bytes()
        except OSError as error:
            raise Unusable("file-not-read", f" has {self.name}: {error.strerror or 'it cannot be read'}") from None


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; a name that is too long for one has none."""
    try:
        return path.exists()
    except OSError:
        return False


@dataclass(frozen=True)
class Doubt:
    """What may be wrong with rows that could be read: the code of a finding, what was found, and what helps."""

    code: str
    detail: str
    fix: str


Rows = Iterator[Read | Unread | Doubt]
