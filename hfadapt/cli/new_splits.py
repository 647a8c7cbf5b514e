"""Splits that data bring along, for `hfadapt new`: a folder with train, validation and test, a file that holds them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from hfadapt.cli.new_columns import Rows, columns_of
from hfadapt.core.errors import DataError
from hfadapt.data.columns import Shape
from hfadapt.data.sources import local_path, open_source
from hfadapt.data.unreadable import UNREADABLE_LIMIT
from hfadapt.files import Read, folders, reading, split_of
from hfadapt.files.nested import spread
from hfadapt.recipe.schema import Columns, Source

_NAMES = re.compile(r"(data[\W_]*)?(split|subset|set|partition|usage|phase)", re.IGNORECASE)
"""Names of columns that say for what a row is."""
LOOKED_AT = 100
"""Rows of a split by which it is told to have what is learned; tests of contests come without their labels."""


def split_column(rows: Rows, shape: Shape) -> str | None:
    """The column that says of each row for which split it is; None where there is none."""
    for column in columns_of(rows):
        said = [split_of(row[column]) if _NAMES.fullmatch(column) and row.get(column) else None for row in rows]
        # The first rows may all be of one.
        if column not in shape.parts.values() and all(said):
            return column
    return None


def given_splits(
    data: str, beside: Mapping[str, str], shape: Shape, said: Columns, classes: Collection[str]
) -> dict[str, str]:
    """Fields of a domain for the validation and test rows that its source has, where these are whole.

    Args:
        beside: What the recipe says of the source; where that names a split, nothing is said of the others.
        shape: How its training rows are read.
        said: What is said of its columns.
        classes: Those that a pattern finds in the training rows: in names of test files without classes it may find
            others.
    """
    found: dict[str, str] = {}
    path = local_path(data, Path())
    if path is None or "split" in beside:
        return found
    # Classes that have a column each are the label.
    needed = {*shape.used, *said.classes} - {shape.parts["label"]} if said.classes else {*shape.used}
    inside = reading.split_names(path) if path.is_file() else {each: each for each in folders.chosen(path).others}
    for key, split in inside.items():
        if split in ("validation", "test"):
            with suppress(DataError):
                rows = open_source(Source(source=data, **{**beside, "split": key}), Path()).read()
                values = [spread(each.values) for each in islice(rows, LOOKED_AT) if isinstance(each, Read)]
                full = [row for row in values if all(row.get(column) is not None for column in needed)]
                label = said.label if said.label_pattern else None
                whole = sum(label is None or said.class_in(row[label]) in classes for row in full)
                if values and whole >= (1 - UNREADABLE_LIMIT) * len(values):
                    found[split] = key
    return found
