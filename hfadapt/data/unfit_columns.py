"""What helps where the columns of a source do not fit the task."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from hfadapt.core import registry
from hfadapt.schemas import RowSchema

_TWICE = re.compile(r" \(\d+ of \d+\)$")
HEADER_WORDS = 6
"""So many words are hardly the name of a column."""


def remedy(
    columns: Sequence[str],
    parts: Mapping[str, str],
    wanted: Sequence[RowSchema],
    found: RowSchema | None,
    bare: RowSchema | None,
) -> str:
    """The fix for columns that do not fit.

    Args:
        columns: Those of the source.
        parts: The column of each part that is known.
        wanted: What the task learns from.
        found: What the columns are, if anything.
        bare: What of them the task would learn without their labels.
    """
    possible = [each for each in wanted if len(each.parts) <= len(columns)] or wanted
    nearest = max(possible, key=lambda each: (sum(part in parts for part in each.parts), len(each.parts)))
    if twice := [column for column in columns if _TWICE.search(column)]:
        part = nearest.parts[0]
        return f"columns have the same name; say which is meant, such as columns: {{{part}: {_quoted(twice[0])}}}"
    if any(len(column.split()) > HEADER_WORDS or column.isdigit() for column in columns):
        names = ",".join(nearest.parts)
        return f"if the first line is a row, write one above it with the names of the columns, such as {names}"
    writes = any(each.writes for each in wanted)
    if found is not None and found.label_kind != "none" and writes:
        fix = "give the recipe a template, such as prompt: '{text}\\nLabel:' and completion: ' {label}'"
        if bare is not None:
            only = bare.parts[0]
            fix += f"; or set columns: {{{only}: {parts[only]}}} to learn the {only} alone"
        return fix
    if len(columns) < len(nearest.parts):
        needed = " and ".join(nearest.parts)
        fix = f"give a file with a column for each of {needed}, such as CSV whose first line is their names"
    else:
        said = _said(columns, parts, nearest)
        fix = f"say which is which, such as columns: {{{said}}}"
        if writes:
            fix += ", or give the recipe a template"
        elif "text: NAME" in said:
            fix += "; where a row has several texts, join them in one column"
    # Labels or turns are what another task learns from; text alone may only lack its labels.
    if found is not None and (found.chat or found.label_kind != "none"):
        others = [name for name in registry.names("tasks") if found.name in registry.task(name).schemas]
        fix = f"set task: {others[0]}, which learns from such rows; or {fix}" if others else fix
    return fix


def _said(columns: Sequence[str], parts: Mapping[str, str], nearest: RowSchema) -> str:
    """`text: body, label: NAME` with the names that are known, or that can only be one."""
    missing = [part for part in nearest.parts if part not in parts]
    free = [column for column in columns if column not in parts.values()]
    only = {missing[0]: free[0]} if len(missing) == len(free) == 1 else {}
    return ", ".join(f"{part}: {_quoted({**parts, **only}.get(part, 'NAME'))}" for part in nearest.parts)


def _quoted(name: str) -> str:
    """A name as YAML takes it."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else json.dumps(name, ensure_ascii=False)
