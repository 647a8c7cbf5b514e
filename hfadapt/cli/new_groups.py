"""Which rows of own data are of one origin, such as a speaker, for `hfadapt new`: they stay in one split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hfadapt.cli.new_columns import GUESSED, NO_COLUMN, Ask, Rows, columns_of
from hfadapt.cli.new_names import ABOVE, LEAST_GROUPS, NAME, ORIGINS, Names, above, names_of
from hfadapt.core import registry
from hfadapt.data.columns import Shape
from hfadapt.recipe.schema import Columns

_ORIGIN = re.compile(
    # An e-mail has a subject, too.
    rf"({ORIGINS}|subject(?=[\W_]*id))[\W_]*(id|name|nr)?|client_id",
    re.IGNORECASE,
)
"""Names of columns that say of whom or what a row is, or with which others it is held back."""
_OTHERWISE = ". Otherwise take `group` out of the recipe."
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
            told = f"{GUESSED}rows alike in {column!r} stay in one split{_OTHERWISE}"
            return _with(said, {"group": column}), [] if ask is not None else [told]
    if not schema.media:
        return said, []
    column = shape.parts[schema.media]
    in_table = column != schema.media or NAME not in columns_of(rows)
    known = [(str(row[column]), row.get(label)) for row in rows if row.get(column)]
    if not in_table:
        known = [(name, said.class_in(name) if said.label_pattern else above(name)) for name in names_of(data, rows)]
    names = [name for name, _ in known]
    if said.label_pattern and _tells([(above(name), each) for name, each in known], len(known)):
        told = f"{GUESSED}files of a folder, such as {above(names[0])}, stay in one split."
        return _with(said, {"group": NAME, "group_pattern": ABOVE}), [
            f"{told} Otherwise take `group` out of the recipe."
        ]
    for found in Names.all_of(names):
        for field in found.fields[:-1]:
            values = found.column(field)
            if not _tells([(value, each) for value, (_, each) in zip(values, known, strict=True)], len(known)):
                continue
            option = {"group": column if in_table else NAME, "group_pattern": found.pattern(field)}
            told = f"files alike in {field} of names such as {found.example} stay in one split"
            return _with(said, option), [f"{GUESSED}{told}{_OTHERWISE}"]
    return said, []


def _with(said: Columns, more: Mapping[str, str]) -> Columns:
    return Columns(**{**said.model_dump(exclude_none=True), **more})


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
