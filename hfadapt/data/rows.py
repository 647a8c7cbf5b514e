"""A row on its way from a source to a split, the ledger of what was dropped, and what two texts have to share.

Every step is a function rows -> rows that writes what it removes into a `Ledger`, so that rows in = rows kept + rows
dropped by reason, exactly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hfadapt.core import registry
from hfadapt.core.hashing import fold, stable_hash, text_key
from hfadapt.files import places
from hfadapt.files.places import Place

__all__ = [
    "GROUP",
    "PRIORITY",
    "SPLITS",
    "Dropped",
    "Ledger",
    "Row",
    "arrow_schema",
    "as_line",
    "as_row",
    "fold",
    "stable_hash",
    "text_key",
    "tokens",
]

SPLITS = ("train", "validation", "test")
# Test rows win over validation rows, and these over training rows, whenever two rows collide.
PRIORITY = {"test": 0, "validation": 1, "train": 2}
GROUP = "group"
"""The column of prepared rows that says what must stay together, where the recipe has named one."""


@dataclass(slots=True)
class Row:
    """One row in canonical columns.

    Args:
        source: The source as the recipe names it.
        row: Its 0-based row in that source.
        columns: As they will be written.
        text: What is compared with other rows: the row's own words, without the boilerplate of a template.
        label: The class, by name, where rows have classes; else what rows of the same words must agree in.
        prompt: What a model is shown; rows with the same prompt stay in one split.
        split: The split it was given in, or "" while none is chosen.
        form: Name of its schema.
        several: Its classes, where it may have none or more than one.
        group: What it has in common with rows that must stay in one split, such as their speaker; "" for none.
        shared: Further texts of which rows with the same one stay in one split, such as what is to be found.
        line: Where it begins in its file, from 1, where files have lines.
        in_file: Its file, where the source has another name.
        asked: What it asks, column by column, where that stands in more than one: a question, and the text it is about.
    """

    source: str
    row: int
    columns: dict[str, Any]
    text: str
    label: str | None = None
    prompt: str = ""
    split: str = ""
    form: str = "text"
    several: tuple[str, ...] | None = None
    shared: tuple[str, ...] = ()
    group: str = ""
    line: int | None = None
    in_file: str = ""
    asked: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it has."""
        return self.several if self.several is not None else () if self.label is None else (self.label,)

    @property
    def stratum(self) -> str:
        """Rows of which splits and samples keep the share."""
        return self.classes[0] if len(self.classes) == 1 else ""

    @property
    def place(self) -> tuple[str, int]:
        """Source and row, by which it is known among others."""
        return self.source, self.row

    @property
    def where(self) -> Place:
        """Its place, as a person is told it."""
        return Place(self.source, self.row, self.line, self.in_file)


@dataclass(slots=True, frozen=True)
class Dropped:
    """Why one row is not used.

    Args:
        where: Its place.
        reason: In one word.
        duplicate_of: The row that stays.
        similarity: How alike they are.
        detail: What was found; it follows the name of the row, so it begins with a space or a colon.
    """

    where: Place
    reason: str
    duplicate_of: Place | None = None
    similarity: float | None = None
    detail: str = ""

    @property
    def said(self) -> str:
        """The row, and what was found, if anything."""
        return f"{self.where}{self.detail}"

    def as_json(self) -> dict[str, Any]:
        """One line of dropped.jsonl."""
        twin = None if self.duplicate_of is None else self.duplicate_of.columns
        line = {**self.where.columns, "reason": self.reason, "duplicate_of": twin}
        line["similarity"] = None if self.similarity is None else round(self.similarity, 4)
        if self.detail:
            line["detail"] = self.said
        return line


@dataclass(slots=True)
class Ledger:
    """All dropped rows of one domain, and what each step reports."""

    dropped: list[Dropped] = field(default_factory=list)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(
        self,
        row: Row,
        reason: str,
        twin: Row | None = None,
        similarity: float | None = None,
        detail: str = "",
    ) -> None:
        """Notes that `row` is out."""
        place = None if twin is None else twin.where
        self.dropped.append(Dropped(row.where, reason, place, similarity, detail))

    def counts(self) -> dict[str, int]:
        """Dropped rows by reason, most frequent first."""
        return dict(Counter(each.reason for each in self.dropped).most_common())


def as_row(row: Mapping[str, Any], form: str, split: str = "") -> Row:
    """Canonical columns with `source` and `row`, as the steps of preparing see them.

    Args:
        form: Name of the schema.
    """
    schema = registry.schema(form)
    apart = (*places.COLUMNS, GROUP)
    where = Place.of(row)
    columns = {name: value for name, value in row.items() if name not in apart and value is not None}
    return Row(
        where.source,
        where.row,
        columns,
        schema.words(columns),
        schema.label(columns),
        schema.shown(columns),
        split,
        form,
        schema.classes(columns) if schema.label_kind not in ("none", "class") else None,
        schema.shared(columns),
        str(row.get(GROUP) or ""),
        where.line,
        where.in_file,
    )


def as_line(row: Row) -> dict[str, Any]:
    """A row as it is written."""
    line = {**row.columns, **row.where.columns}
    return {**line, GROUP: row.group} if row.group else line


def arrow_schema(form: str, labelled: bool, grouped: bool = False) -> Any:
    """The Parquet schema of prepared rows; fixed, so that an empty column does not change its type.

    Args:
        labelled: Whether they have classes.
        grouped: Whether they have groups.
    """
    import pyarrow as pa

    fields = [*registry.schema(form).fields(labelled), ("source", pa.string()), ("row", pa.int64())]
    fields += [("line", pa.int64()), ("in_file", pa.string())]
    return pa.schema([*fields, (GROUP, pa.string())] if grouped else fields)


# Scripts that are written without spaces: each character counts as a token.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f])"
)
_MARKS = re.compile(r"[^\w]+")


def tokens(text: str) -> list[str]:
    """Words without case and punctuation; a token of marks alone, such as `:(`, stays what it is."""
    folded = fold(text)
    if not folded.isascii():
        folded = _UNSPACED.sub(r" \1 ", folded)
    return [_MARKS.sub("", word) or word for word in folded.split()]
