"""Texts that list images or recordings with what is known of each: `a.png 3`, `b.wav,4.5`, `c.jpg<tab>cat`.

So the sets of many papers say their labels, mostly without a line of names above.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from hfadapt.files import Read, Rows, Unread, media
from hfadapt.files.opening import lines

LOOKED_AT, LISTED = 200, 0.9
"""Lines by which a text is told to be a list, and the share of them that names a file with something behind it."""
NAME, LABEL = "file_name", "label"
LEAST = 3
LONGEST = 4_000
"""Characters of a line."""
ABOVE = 2
"""Lines above the first file: how many there are, and the names of what is known."""


@dataclass(frozen=True)
class Layout:
    """How a list is read.

    Args:
        separator: Between a name and what follows; None for white space.
        fields: How many values follow; 0 where the rest of a line is one.
        names: Of the values.
        first: The line of the first file, from 0.
    """

    separator: str | None
    fields: int
    names: tuple[str, ...]
    first: int

    def values(self, line: str) -> dict[str, str] | None:
        """The row of a line; None for one that is no part of the list."""
        if (found := _found(line)) is None:
            return None
        rest = _values(found["rest"], self.separator) if self.fields else [_value(found["rest"], self.separator)]
        if len(rest) != len(self.names):
            return None
        return {NAME: found["name"].strip("\"'"), **dict(zip(self.names, rest, strict=True))}


def layout_of(path: Path, encoding: str | None = None) -> Layout | None:
    """How a text lists files; None for one that does not."""
    head = list(islice((item[1] for item in lines(path, encoding) if not isinstance(item, Unread)), LOOKED_AT))
    found = [(number, match) for number, line in enumerate(head) if (match := _found(line))]
    if len(found) < LEAST or len({match["name"] for _, match in found}) < LISTED * len(found):
        return None
    first, start = found[0][0], found[0][1]["rest"]
    if first > ABOVE or len(found) < LISTED * len([line for line in head[first:] if line.strip()]):
        return None
    separator = start.lstrip(" ")[:1]
    separator = separator if separator in ("\t", ",", ";", "|") else None
    above = [line for line in head[:first] if line.strip() and not line.strip().isdecimal()]
    values = [_values(match["rest"], separator) for _, match in found]
    fields, count = Counter(map(len, values)).most_common(1)[0]
    names = _split(above[-1], separator) if above else []
    words = separator is None and len(names) == 2 and any(not _is_number(each) for own in values for each in own)
    if words or count < LISTED * len(values):
        # A class of several words.
        fields = 0
    return Layout(separator, fields, _names(names, max(1, fields)), first)


def read(path: Path, layout: Layout, encoding: str | None = None) -> Rows:
    """A row for each file, by its name."""
    for item in lines(path, encoding):
        if isinstance(item, Unread):
            yield item
        elif item[0] >= layout.first and item[1].strip():
            values = layout.values(item[1])
            if values is None:
                yield Unread(item[0], "wrong-fields", f" is not as the others: {item[1][:40]!r}", item[0] + 1)
            else:
                yield Read(item[0], values, item[0] + 1)


def _names(above: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of the values: those of a line above, with or without one for the files."""
    if len(above) - count in (0, 1) and len({*above}) == len(above):
        return tuple(above[-count:])
    return (LABEL,) if count == 1 else tuple(f"value_{number}" for number in range(1, count + 1))


def _split(line: str, separator: str | None) -> list[str]:
    return [each.strip().strip("\"'") for each in line.split(separator)]


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _values(rest: str, separator: str | None) -> list[str]:
    return rest.split() if separator is None else _split(rest.lstrip(" ").removeprefix(separator), separator)


def _value(rest: str, separator: str | None) -> str:
    rest = rest.strip()
    return rest.removeprefix(separator).strip() if separator else rest


def _found(line: str) -> re.Match[str] | None:
    return _line().match(line) if len(line) <= LONGEST else None


@cache
def _line() -> re.Pattern[str]:
    endings = "|".join(re.escape(ending) for ending in sorted(media.suffixes()))
    return re.compile(rf"(?P<name>\S.*?(?:{endings})[\"']?)(?P<rest>\s*[\s,;|]\s*\S.*)$", re.IGNORECASE)
