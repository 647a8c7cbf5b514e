"""What hfadapt can make again: one folder of records (JSON) and of made folders, used only where they are what was
written.

Whatever else stands in a place (empty, cut off, changed, foreign, of another version, not readable) is told in one
line and made anew. Where nothing can be written, what is made is kept for as long as the process lives.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar, TypeVar

from hfadapt.core.errors import FULL, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.spec import Record

VARIABLE = "HFADAPT_CACHE"
log = logging.getLogger(__name__)
SomeRecord = TypeVar("SomeRecord", bound=Record)


class Seal(Record):
    """Written last into a folder that was made: bytes, time of the last change in ns, and sha256 of every file."""

    FILE: ClassVar[str] = "sealed.json"
    files: dict[str, tuple[int, int, str]]


def folder() -> Path:
    """`HFADAPT_CACHE`, else `~/.cache/hfadapt`; a user without a home gets a temporary folder."""
    try:
        if asked := os.environ.get(VARIABLE):
            return Path(asked).expanduser()
        return Path.home() / ".cache" / "hfadapt"
    except RuntimeError:
        return _temporary()


def read(path: Path, kind: type[SomeRecord]) -> SomeRecord | None:
    """The record in a file of the cache; None where there is none, or another thing, which is said."""
    try:
        return kind.read(path) if os.path.lexists(path) else None
    except RunError as error:
        _say(path, error.what)
    except OSError as error:
        _say(path, error.strerror or str(error))
    except RecursionError:
        _say(path, "the record is not readable JSON")
    return None


def write(path: Path, record: Record) -> None:
    """Keeps a record, in the place of whatever stood there; says so where that is not possible."""
    try:
        if path.is_dir():
            remove(path)
        record.write(path)
    except OSError as error:
        _cannot_write(path.parent, error)


def made(path: Path, make: Callable[[Path], None], check: Callable[[Path], object] = lambda made: None) -> Path:
    """A folder of the cache, as `make` left it; safe with several processes at once.

    Args:
        path: Where it is, or will be.
        make: Fills an empty folder.
        check: Raises RunError, OSError or ValueError for a whole folder that cannot be used all the same.

    Returns:
        `path`, or a folder that lives as long as this process where `path` cannot be written.

    Raises:
        RunError: the disk is full.
    """
    if _is_whole(path, check):
        return path
    with workplace(path.parent) as (home, temporary):
        path = home / path.name
        if _is_whole(path, check, silent=True):
            return path
        ready = temporary / "ready"
        ready.mkdir()
        try:
            make(ready)
            _seal(ready)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise RunError(
                "the cache's disk is full",
                place=str(home),
                got=error.strerror or str(error),
                fix=f"free some space there, or set {VARIABLE} to a folder on another disk",
            ) from None
        return _placed(ready, path, check)


def there(path: Path, check: Callable[[Path], object] = lambda made: None) -> Path | None:
    """A folder that `made` has left in the cache, or None; arguments as there."""
    return path if _is_whole(path, check) else None


@contextmanager
def workplace(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A folder of the cache, and one in it for what is being made, which goes away at the end.

    Where it cannot be written, both are temporary.
    """
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            _say(folder, "it is no folder")
            folder.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder, prefix=".tmp-")
    except OSError as error:
        _cannot_write(folder, error)
        folder = _temporary() / folder.name
        folder.mkdir(exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder, prefix=".tmp-")
    try:
        yield folder, Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def holds(path: Path, sha256: str) -> bool:
    """Whether a file of the cache is the one with this sha256; says so where it is another."""
    try:
        if not os.path.lexists(path):
            return False
        why = "" if file_sha256(path) == sha256 else "it has another sha256"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        _say(path, why)
    return not why


def _placed(ready: Path, path: Path, check: Callable[[Path], object]) -> Path:
    """Moves a folder to its place. Another process may have been faster: its folder is as good, and may be in use."""
    try:
        if not _is_whole(path, check, silent=True):
            if os.path.lexists(path):
                path.rename(ready.with_name("unusable"))
            ready.rename(path)
    except OSError as error:
        if not _is_whole(path, check, silent=True):
            _cannot_write(path.parent, error)
            path = Path(tempfile.mkdtemp(dir=_temporary())) / path.name
            shutil.move(ready, path)
    return path


def remove(path: Path) -> None:
    """Takes a file or a folder away, or a link to one, whichever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _seal(made: Path) -> None:
    files = {}
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        found = path.stat()
        files[path.relative_to(made).as_posix()] = (found.st_size, found.st_mtime_ns, file_sha256(path))
    Seal(files=files).write(made / Seal.FILE)


def _is_whole(path: Path, check: Callable[[Path], object], silent: bool = False) -> bool:
    """Whether a folder is there and can be used; says why not."""
    if not os.path.lexists(path):
        return False
    fault = _fault(path, check)
    if fault and not silent:
        _say(path, fault)
    return fault is None


def _fault(path: Path, check: Callable[[Path], object]) -> str | None:
    try:
        if not (path / Seal.FILE).exists():
            return "it is not whole, or of another version"
        for name, sealed in Seal.read(path / Seal.FILE).files.items():
            if _differs(path / name, sealed):
                return f"{name} is not what was written"
        check(path)
    except RunError as error:
        return error.what
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _differs(path: Path, sealed: tuple[int, int, str]) -> bool:
    if not path.is_file():
        return True
    size, changed_ns, digest = sealed
    found = path.stat()
    # A copied cache has other times and the same content.
    return found.st_size != size or (found.st_mtime_ns != changed_ns and file_sha256(path) != digest)


@cache
def _temporary() -> Path:
    made = tempfile.mkdtemp(prefix="hfadapt-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@cache
def _say(path: Path, why: str) -> None:
    """Once for each fault, on standard error unless the program says otherwise."""
    log.warning("%s in the cache is ignored and made anew: %s", path, why.strip())


def _cannot_write(folder: Path, error: OSError) -> None:
    _say_unwritable(folder, error.strerror or str(error))


@cache
def _say_unwritable(path: Path, why: str) -> None:
    log.warning("the cache %s cannot be written (%s): nothing is kept for the next time; see %s", path, why, VARIABLE)
