"""Columns that cannot be what they were taken for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.rows import Row
from hfadapt.data.values import IDENTIFIERS, counted, label_fault, shown_fault
from hfadapt.files.places import name_rows
from hfadapt.recipe.schema import Columns, Recipe
from hfadapt.schemas import RowSchema


def check_columns(
    rows: Sequence[Row],
    columns: Mapping[str, str],
    others: Collection[str],
    place: str,
    *,
    named: Collection[str] = (),
    allow: Collection[str] = (),
) -> None:
    """Refuses columns that were evidently mistaken: constant, or an identifier in each row.

    A few test rows may well be of a class each.

    Args:
        rows: Of one source.
        columns: The column of each part.
        others: All columns of the source.
        place: The source, for messages.
        named: Parts whose column the recipe names.
        allow: `data.allow`.

    Raises:
        DataError: names the column, what it holds and the columns there are.
    """
    if len(rows) < 8:
        return
    schema = registry.schema(rows[0].form)
    for fault in mistaken(rows, schema, [row.label for row in rows if _one_class(row) and row.label is not None]):
        if schema.chat or fault.code in allow or (fault.meant and fault.part in named):
            continue
        column = columns.get(fault.part) or ", ".join(columns.values())
        held = [(row.label if fault.part == "label" else row.prompt or row.text) or "" for row in rows[:3]]
        raise DataError(
            f"column {column!r} cannot be the {fault.part}: {fault.what}",
            place=place,
            got=f"{name_rows(row.where for row in rows[:3])} hold " + ", ".join(repr(each)[:40] for each in held),
            allowed=f"columns {', '.join(others)}",
            fix=(f"give several {_nouns(schema)} of each class; or " if schema.media else "")
            + f"set columns: {{{fault.part}: NAME}} to the column with the {fault.part}"
            + (f", {column} if it is meant" if fault.meant else "")
            + f"; or set data.allow: [{fault.code}]",
        )


def _nouns(schema: RowSchema) -> str:
    return registry.modality(schema.modality).nouns


@dataclass(frozen=True)
class Mistaken:
    """A column that cannot be what it was taken for.

    Args:
        code: Of the finding.
        part: What it was taken for.
        what: What it holds.
        meant: Whether it can be meant, as codes can that are to be classified; a column that counts rows cannot.
    """

    code: str
    part: str
    what: str
    meant: bool = False


def mistaken(rows: Sequence[Row], schema: RowSchema, labels: Sequence[str]) -> list[Mistaken]:
    """The columns of rows that cannot be what they were taken for."""
    values = ["\n".join(schema.asked(row.columns)) if schema.chat else row.prompt or row.text for row in rows]
    found = []
    fault = None if schema.media else shown_fault(values, repeats=schema.writes)
    ids = fault == IDENTIFIERS
    # What a chat asks has no column of its own, and may be in figures.
    if fault and not (schema.chat and ids):
        part = "prompt" if schema.chat else schema.asks
        found.append(Mistaken("identifiers" if ids else "wrong-column", part, fault, ids and not counted(values)))
    if fault := label_fault(labels):
        found.append(Mistaken("identifiers", "label", fault))
    return found


def named_parts(columns: Columns, templated: bool) -> frozenset[str]:
    """The parts whose column the recipe itself names; a template names all that it uses."""
    if templated:
        return frozenset(part for schema in registry.schemas() for part in schema.parts)
    return frozenset(columns.parts)


def named_in(recipe: Recipe, domain: str) -> frozenset[str]:
    """The parts whose column the recipe names in every source of a domain."""
    templated = recipe.template_of(domain) is not None
    return frozenset.intersection(
        *(named_parts(source.columns, templated) for source in recipe.domains[domain].all_sources())
    )


def _one_class(row: Row) -> bool:
    return row.several is None and row.split in ("", "train")
