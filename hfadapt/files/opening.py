"""Opens a file through its compression and encoding, after a look at its first bytes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any, cast

from hfadapt import files
from hfadapt.core.errors import DataError
from hfadapt.core.show import show_bytes
from hfadapt.files import Unread

HEAD_BYTES = 1 << 16
WESTERN, GUESSED_BYTES = "windows-1252", 64 << 20
"""What Windows saves Western languages in, and the largest file that is looked at for it."""
MOST_UNPACKED, MOST_TIMES = 1 << 28, 200
"""Bytes that a packed file may unpack to, or so many times its own: text shrinks to a tenth, logs to a hundredth."""
UNPACKED_AT_ONCE = 1 << 18
USUAL_MARKS = "€‚„…‘’“”•–—™\u00a0¡£§«°²´»¿"
_WORD = re.compile(r"\w{2,24}")
_IDX = re.compile(r"[-.](idx\d-ubyte)$")
_CSV = "save it as CSV in UTF-8"


class _Zstd(io.RawIOBase):
    """pyarrow's decompression for Python's buffering, which knows lines."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._file = pyarrow.input_stream(str(path), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Unpacked(io.RawIOBase):
    """What comes out of a packed file, up to a size that none has that anybody has written: a file of a few kilobytes
    can unpack to any size."""

    def __init__(self, path: Path, packed: IO[bytes]) -> None:
        self._path, self._packed, self._bytes = path, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._packed.read(len(buffer))
        buffer[: len(content)] = content
        self._bytes += len(content)
        if self._bytes > max(MOST_UNPACKED, MOST_TIMES * self._path.stat().st_size):
            what, fix = "the file unpacks to too much", "look at it; if it is all meant, unpack it, and name the file"
            allowed = f"up to {show_bytes(MOST_UNPACKED)}, or {MOST_TIMES} times its size"
            got = f"more than {show_bytes(self._bytes)} of {show_bytes(self._path.stat().st_size)}"
            raise DataError(what, place=str(self._path), got=got, allowed=allowed, fix=fix)
        return len(content)


def _zip(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(names) != 1:
        shown = ", ".join(names[:5]) or "nothing"
        raise DataError(
            "the zip archive holds several files" if names else "the zip archive is empty",
            place=str(path),
            got=shown + (" …" if len(names) > 5 else ""),
            fix="unpack it, and name the file or folder with the data",
        )
    if archive.getinfo(names[0]).flag_bits & 1:
        raise DataError("the zip archive needs a password", place=str(path), fix="unpack it, and name the file in it")
    return archive.open(names[0])


PACKED: dict[str, tuple[bytes, Callable[[Path], IO[bytes]]]] = {
    ".gz": (b"\x1f\x8b", lambda path: cast("IO[bytes]", gzip.GzipFile(path))),
    ".bz2": (b"BZh91AY&SY", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda path: io.BufferedReader(_Zstd(path))),
    ".zip": (b"PK\x03\x04", _zip),
}
"""First bytes and opener of each kind of compression, by ending."""

_SINGLE = "call it train-KIND, such as train-images-idx3-ubyte beside train-labels-idx1-ubyte; name the folder of both"
_OLE = b"\xd0\xcf\x11\xe0"
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "Parquet", "call it .parquet"),
    (b"ARROW1", "Arrow", "call it .arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "call it .arrow"),
    (b"%PDF", "a PDF document", "copy its text into a .txt file, or its tables into a CSV file"),
    (_OLE, "an old Office document (.xls, .doc)", f"open it in its program and {_CSV}"),
    (b"{\\rtf", "a rich-text document", "save it as plain text"),
    (
        b"SQLite format 3",
        "an SQLite database",
        "write the table as CSV: sqlite3 -header -csv FILE 'select * from TABLE'",
    ),
    (b"\x89HDF", "HDF5", "read it with pandas.read_hdf and write it with to_parquet"),
    (b"MATLAB", "MATLAB", "call it .mat"),
    (b"\0\0\x08\x03", "images in one file, as of MNIST", _SINGLE),
    (b"\0\0\x08\x01", "numbers of classes in one file, as of MNIST", _SINGLE),
    (b"\x93NUMPY", "a NumPy array", "write its rows as CSV or JSON Lines, with names of columns"),
    (b"Obj\x01", "Avro", "write its rows as JSON Lines or Parquet"),
    (b"FEA1", "Feather", "read it with pandas.read_feather and write it with to_parquet"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and name the file with the data"),
    (b"Rar!\x1a", "a RAR archive", "unpack it, and name the file with the data"),
    (b"\x89PNG", "an image", "images are not learned from"),
    (b"\xff\xd8\xff", "an image", "images are not learned from"),
    (b"GIF89a", "an image", "images are not learned from"),
    (b"\x7fELF", "a program", "name the file with the data"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    (b"<!doctype html", "a web page", "download the data itself, such as the raw file"),
    (b"<html", "a web page", "download the data itself, such as the raw file"),
    (b"<?xml", "XML", "write its rows as CSV or JSON Lines"),
)
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
WORKBOOKS = (".xlsx", ".xlsm")
_OFFICE = {
    b"xl/": ("an Excel workbook", "call it .xlsx"),
    b"word/": ("a Word document", f"open it in its program and {_CSV}"),
    b"ppt/": ("a presentation", f"open it in its program and {_CSV}"),
}
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def packing(path: PurePath) -> str:
    """The ending of its compression, in lower case, or ""."""
    return path.suffix.lower() if path.suffix.lower() in PACKED else ""


def suffix(path: PurePath) -> str:
    """The ending that tells the format, in lower case, compression aside; `.idx3-ubyte` of `images-idx3-ubyte`."""
    name = (PurePath(path.stem) if packing(path) else path).name.lower()
    return f".{found[1]}" if (found := _IDX.search(name)) else PurePath(name).suffix


def called(path: PurePath, ending: str) -> str:
    """Its name with another ending of the format."""
    packed = path.suffix if packing(path) else ""
    return f"{PurePath(path.name.removesuffix(packed)).stem}{ending}{packed}"


def foreign(head: bytes, ending: str = "") -> tuple[str, str] | None:
    """What a file is that cannot be read, and what to do with it; None for text, tables and compressed files.

    Args:
        head: Its first bytes.
        ending: The ending that it has.
    """
    if ending in WORKBOOKS and head.startswith(_OLE):
        return "a workbook with a password, or of old Excel (.xls)", "save it without one as .xlsx, or as CSV in UTF-8"
    for magic, what, fix in _OTHERS:
        if fix == _SINGLE and ending.startswith(".idx"):
            continue
        # Pages may be learned from, as plain text.
        page, begins = magic[:1] == b"<", head.lower() if magic[:1] == b"<" else head
        if begins.startswith(magic) and not (page and ending in (".txt", ".md")):
            return (what, fix) if f"call it {ending}" != fix else None
    if head.startswith(b"PK\x03\x04"):
        if ending in WORKBOOKS:
            return None
        if inside := next((each for part, each in _OFFICE.items() if part in head), None):
            return inside
        if b"[Content_Types].xml" in head[:100]:
            return "an Office document", f"open it in its program and {_CSV}"
        if b"data.pkl" in head[:200] or b".npy" in head[:200]:
            return "saved arrays or tensors", "write the rows as CSV, JSON Lines or Parquet"
    if head.startswith(_PICKLES):
        return "a pickle, which can run code when it is read", "read it where it was made, and write it with to_parquet"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it, and name the file or folder with the data"
    if len(head) > 8 and not head.strip(b"\0"):
        return "nothing but zero bytes, as after a broken download", "get the file again"
    return None


@contextmanager
def readable(path: Path) -> Iterator[IO[bytes]]:
    """The file without its compression.

    Raises:
        DataError: it is something else, or broken.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(HEAD_BYTES)
        ending = packing(path)
        _refuse(path, head, ending)
        with PACKED[ending][1](path) if ending else path.open("rb") as file:
            yield io.BufferedReader(_Unpacked(path, file), UNPACKED_AT_ONCE) if ending else file
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from None
    except OSError as error:
        if error.errno is None:
            raise _broken(path, error) from None
        raise DataError(
            "the file cannot be read", place=str(path), got=error.strerror, fix="check that you may read it"
        ) from None


def _broken(path: Path, error: Exception) -> DataError:
    got = str(error) or type(error).__name__
    return DataError("the file is cut off or broken", place=str(path), got=got, fix="download or compress it again")


def _refuse(path: Path, head: bytes, ending: str) -> None:
    found = foreign(head, suffix(path))
    if found:
        raise DataError(f"the file is {found[0]}", place=str(path), fix=found[1])
    is_packed = next((each for each, (magic, _) in PACKED.items() if _starts(head, magic)), "")
    if head and is_packed != ending:
        what = (
            f"the file is called {ending} but is not {_name(ending)}" if ending else f"the file is {_name(is_packed)}"
        )
        right = f"{path.stem if ending else path.name}{is_packed}"
        raise DataError(what, place=str(path), fix=f"call it {right}, or get it again")


def _starts(head: bytes, magic: bytes) -> bool:
    if magic[:2] == b"PK":
        return head[:4] in (magic, b"PK\x05\x06")  # the second is empty
    # The fourth byte of bzip2 is its level.
    return head.startswith(magic) or (magic[:3] == b"BZh" == head[:3] and head[4:10] == magic[4:])


def _name(ending: str) -> str:
    return {".gz": "gzip", ".zst": "Zstandard"}.get(ending, ending[1:])


def encoding_of(head: bytes) -> str:
    """`utf-8-sig`, or one with two or four bytes a character."""
    for mark, encoding in _ENCODINGS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark, the zeros of plain Latin letters tell.
    pairs = max(len(head) // 2, 1)
    if len(head) >= 4 and head[1::2].count(0) > 0.4 * pairs and head[::2].count(0) < 0.1 * pairs:
        return "utf-16-le"
    if len(head) >= 4 and head[::2].count(0) > 0.4 * pairs and head[1::2].count(0) < 0.1 * pairs:
        return "utf-16-be"
    return "utf-8-sig"


@contextmanager
def text_bytes(path: Path, encoding: str | None = None) -> Iterator[IO[bytes]]:
    """The file as UTF-8, without its compression and without a byte order mark.

    Args:
        encoding: As which it was saved, where somebody says so.

    Raises:
        DataError: it is no text, broken, or not in this encoding.
    """
    with readable(path) as raw:
        head = raw.read(HEAD_BYTES)
        found = foreign(head, suffix(path))
        if found:
            raise DataError(f"the file is {found[0]}", place=str(path), fix=found[1])
        used = encoding or encoding_of(head)
        if used == "utf-8-sig":
            with readable(path) as again:
                again.read(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
                yield again
            return
        whole = head + raw.read()
        try:
            content = whole.decode(used)
        except UnicodeDecodeError as error:
            line = whole.count(b"\n", 0, error.start) + 1
            seems = (
                f"is not {encoding}, as the recipe says" if encoding else f"seems to be {used.upper()[:6]}, but broken"
            )
            raise DataError(
                f"the file {seems}",
                place=str(path),
                got=f"byte 0x{whole[error.start]:02X} in line {line:,}: {error.reason} at byte {error.start:,}",
                fix=f"name the encoding that it was saved in, {NAME_IT}" if encoding else "save it as UTF-8",
            ) from None
        yield io.BytesIO(content.removeprefix("\ufeff").encode("utf-8", "surrogatepass"))


NAME_IT = (
    "such as encoding: windows-1252 (Western letters) or windows-1251 (Cyrillic) beside its source, or --encoding for "
    "hfadapt new; or save it as UTF-8"
)
"""What helps where a file is in another encoding."""


def not_utf8(data: bytes) -> str:
    """What is found in a line that is not UTF-8: its first such byte, and the letter that Windows writes so."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start : error.start + 1]
        letter = byte.decode(WESTERN, "ignore")
        return f" is not UTF-8: byte 0x{byte[0]:02X}" + (f", {letter} in {WESTERN}" if letter else "")
    return ""


def unmarked(path: Path) -> str | None:
    """The encoding of two bytes a character that a file's zeros tell, where no mark at its beginning does."""
    with readable(path) as raw:
        head = raw.read(HEAD_BYTES)
    encoding = encoding_of(head)
    return encoding.upper() if encoding.endswith(("-le", "-be")) else None


def western(path: Path) -> str | None:
    """A word with a letter that is not ASCII, where a file is not UTF-8 and reads as a Western language in
    windows-1252: most of its letters are ASCII, and what is not, is a letter or a mark that is written there.

    None for all other files, and for larger ones than are looked at.
    """
    with readable(path) as raw:
        data = raw.read(GUESSED_BYTES + 1)
    if len(data) > GUESSED_BYTES or encoding_of(data[:HEAD_BYTES]) != "utf-8-sig":
        return None
    try:
        data.decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode(WESTERN)
    except UnicodeDecodeError:
        return None
    others = [letter for letter in text if not letter.isascii()]
    letters = sum(letter.isalpha() for letter in text)
    usual = sum(letter.isalpha() or letter in USUAL_MARKS for letter in others)
    if usual < 0.9 * len(others) or sum(map(str.isalpha, others)) > 0.25 * letters:
        return None
    return next((word for word in _WORD.findall(text) if not word.isascii()), others[0])


def lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str] | Unread]:
    """Text lines with their number; a line that is too long or not UTF-8 is left out without being held."""
    with text_bytes(path, encoding) as file:
        number = 0
        while line := file.readline(files.LINE_LIMIT_BYTES + 1):
            if len(line) > files.LINE_LIMIT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(files.LINE_LIMIT_BYTES + 1)
                yield Unread(number, "huge", f" is longer than {files.LINE_LIMIT_BYTES >> 20} MiB", number + 1)
            else:
                try:
                    yield number, line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    yield Unread(number, "not-utf8", not_utf8(line), number + 1)
            number += 1
