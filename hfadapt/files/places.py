"""How a row is named to a person: by the line of its file where it has one, else by its number, counted from 1.

Records and files for programs keep `row`, which counts from 0 and goes on through all files of a source, and `line`,
which counts from 1 as an editor does: header, blank lines and line breaks inside of quotation marks count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

COLUMNS = ("source", "row", "line", "in_file")
"""The columns of prepared rows that say where a row is from."""


class Place(NamedTuple):
    """Where a row is from; as text, what a person is told.

    Args:
        source: As the recipe names it.
        row: From 0, through all files of the source; below 0 where it is not known.
        line: Where the row begins in its file, from 1; None where files have no lines.
        in_file: The file, where the source is another name than its.
    """

    source: str
    row: int
    line: int | None = None
    in_file: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any], number: int = -1) -> Place:
        """Of a prepared row, or of a line of dropped.jsonl.

        Args:
            number: Of a row that does not say its own.
        """
        source, found, line = row.get("source") or "", row.get("row", number), row.get("line")
        return cls(str(source), int(found), None if line is None else int(line), row.get("in_file") or "")

    @property
    def columns(self) -> dict[str, Any]:
        """As prepared rows and lines of dropped.jsonl have it; `of` reads it."""
        return {"source": self.source, "row": self.row, "line": self.line, "in_file": self.in_file or None}

    @property
    def _counted(self) -> tuple[str, int | None, str]:
        """What is counted, the number, and of what."""
        if self.line is not None:
            return "line", self.line, self.in_file or self.source
        return "row", self.row + 1 if self.row >= 0 else None, self.source

    def __str__(self) -> str:
        what, number, of = self._counted
        if number is None:
            return f"a row of {of}" if of else "a row"
        return f"{what} {number}" + (f" of {of}" if of else "")


def name_rows(places: Iterable[Place], limit: int = 8) -> str:
    """'lines 3, 9 and 12 more of tweets.csv' for a message."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    for place in places:
        what, number, of = place._counted
        groups.setdefault((what, of), []).append(number)
    parts = []
    for (what, of), numbers in groups.items():
        known = [number for number in numbers if number is not None]
        shown = ", ".join(map(str, known[:limit]))
        more = f" and {len(numbers) - limit:,} more" if len(numbers) > limit else ""
        count = f"{what}{'s' if len(numbers) > 1 else ''} {shown}{more}" if known else f"{len(numbers)} rows"
        parts.append(f"{count} of {of}" if of else count)
    return "; ".join(parts)
