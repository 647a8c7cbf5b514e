"""Files that rows and lists name: as seen from their table, or anywhere in the folder of the data."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from hfadapt.files import media

LOOKED_AT = 20
"""Values of a column by which it is told to name files."""
LONGEST = 1_000
"""Characters of the name of a file, with its folders."""


class Named:
    """Images and recordings of a folder, by what tables and lists call them.

    Args:
        files: Lists them, and others, which are left out; once they are needed.
    """

    def __init__(self, files: Callable[[], Iterable[Path]]) -> None:
        self._files = files

    def __call__(self, said: str) -> Path | None:
        """The only file that is called so; None where there is none, or where several are.

        Of folders before the name the last has to be that of the file, unless all files are in one.
        """
        if not said or len(said) > LONGEST:
            return None
        path = PurePosixPath(said.strip().replace("\\", "/"))
        found = self._known.get(_key(path.name), [])
        exact = [each for each in found if path.name in (each.name, each.stem)] or found
        if len(path.parts) > 1 and not self._in_one_folder:
            exact = [each for each in exact if _key(each.parent.name) == _key(path.parent.name)]
        if len(exact) > 1:
            shared = {each: _shared(each.parts, path.parts) for each in exact}
            exact = [each for each in exact if shared[each] == max(shared.values())]
        return exact[0] if len(exact) == 1 else None

    def columns(self, rows: Sequence[Mapping[str, Any]], folder: Path | None = None) -> list[str]:
        """Columns most of whose first values each name a file of their own, or are files.

        Args:
            folder: Of their table, in which names begin.
        """
        found = []
        for column in dict.fromkeys(name for row in rows for name in row):
            values = [row[column] for row in rows if row.get(column) is not None][:LOOKED_AT]
            files = {str(value) for value in values if self._is_name(value, folder)}
            if 2 * len(files) > len(values) or any(isinstance(value, Mapping) and "bytes" in value for value in values):
                found.append(column)
        return found

    def _is_name(self, value: Any, folder: Path | None) -> bool:
        if not isinstance(value, (str, int)) or len(said := str(value)) > LONGEST:
            return False
        here = (
            folder is not None and PurePosixPath(said).suffix.lower() in media.suffixes() and (folder / said).exists()
        )
        return here or self(said) is not None

    @cached_property
    def _known(self) -> dict[str, list[Path]]:
        kinds, known = media.suffixes(), dict[str, list[Path]]()
        for path in self._files():
            if path.suffix.lower() in kinds:
                for name in (path.name, path.stem):
                    known.setdefault(_key(name), []).append(path)
        return known

    @cached_property
    def _in_one_folder(self) -> bool:
        return len({each.parent for own in self._known.values() for each in own}) == 1


def _key(name: str) -> str:
    """A name without case, and with its accents as one character: systems and tables differ in both."""
    return unicodedata.normalize("NFC", name).casefold()


def _shared(one: Collection[str], other: Collection[str]) -> int:
    """How many of the last parts of two paths are the same, the names of the files apart."""
    count = 0
    for a, b in zip(list(one)[-2::-1], list(other)[-2::-1], strict=False):
        if _key(a) != _key(b):
            break
        count += 1
    return count
