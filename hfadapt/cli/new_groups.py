"""Which rows of own data are of one origin, such as a speaker, for `hfadapt new`: they stay in one split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hfadapt.cli.new_columns import GUESSED, NO_COLUMN, Ask, Rows, columns_of
from hfadapt.cli.new_names import LEAST_GROUPS, NAME, Names, names_of
from hfadapt.core import registry
from hfadapt.data.columns import Shape
from hfadapt.recipe.schema import Columns

_ORIGIN = re.compile(
    # An e-mail has a subject, too.
    r"(speaker|spk|singer|patient|participant|recording|session|kit|donor|animal|subject(?=[\W_]*id))[\W_]*(id|name|nr)?"
    r"|client_id",
    re.IGNORECASE,
)
"""Names of columns that say of whom or what a row is."""
LEAST_OF_CLASS = 2
"""Groups of each class: of one alone its rows would all be in one split."""


def with_groups(data: str, rows: Rows, shape: Shape, said: Columns, ask: Ask | None) -> tuple[Columns, list[str]]:
    """What is said of the columns, with the group of rows where a column or the names of files tell it; and what was
    taken."""
    schema = registry.schema(shape.form)
    if said.group is not None or schema.label_kind == "none":
        return said, []
    label = shape.parts.get("label", "")
    for column in columns_of(rows):
        if column not in shape.parts.values() and _ORIGIN.fullmatch(column):
            if not _tells([(str(row[column]), row.get(label)) for row in rows if row.get(column)], len(rows)):
                continue
            if ask is not None and ask("column whose rows stay in one split", [column, NO_COLUMN], column) != column:
                return said, []
            told = f"{GUESSED}rows alike in {column!r} stay in one split. Otherwise take `group` out of the recipe."
            return _with(said, {"group": column}), [] if ask is not None else [told]
    # Of names that tell the class, they tell the group, too.
    if not schema.media or said.label_pattern is not None:
        return said, []
    column = shape.parts[schema.media]
    in_table = column != schema.media or NAME not in columns_of(rows)
    known = [(str(row[column]), row.get(label)) for row in rows if row.get(column)] if in_table else _files(data, rows)
    names = [name for name, _ in known]
    for found in Names.all_of(names):
        for field in found.fields[:-1]:
            values = [PurePosixPath(name).stem.split(found.separator)[field.number] for name in names]
            if not _tells([(value, each) for value, (_, each) in zip(values, known, strict=True)], len(known)):
                continue
            option = {"group": column if in_table else NAME, "group_pattern": found.pattern(field)}
            told = f"files alike in {field} of names such as {found.example} stay in one split"
            return _with(said, option), [f"{GUESSED}{told}. Otherwise take `group` out of the recipe."]
    return said, []


def _with(said: Columns, more: Mapping[str, str]) -> Columns:
    return Columns(**{**said.model_dump(exclude_none=True), **more})


def _files(data: str, rows: Rows) -> list[tuple[str, Any]]:
    """Names of files in class folders, with their classes."""
    return [(name, PurePosixPath(name).parent.name) for name in names_of(data, rows)]


def _tells(groups: Sequence[tuple[str, Any]], rows: int) -> bool:
    """Whether groups, each beside a label, are as many as splits need, of several rows, and none has a class alone."""
    different = {group for group, _ in groups}
    if len(groups) < rows or not LEAST_GROUPS <= len(different) <= rows // 2:
        return False
    classes: dict[str, set[str]] = {}
    for group, label in groups:
        for name in label if isinstance(label, list) else [label]:
            classes.setdefault(str(name), set()).add(group)
    # Numbers are no classes.
    return len(classes) > rows // 2 or min(map(len, classes.values())) >= LEAST_OF_CLASS
