"""Objects inside rows: their fields are columns, `{review: {body: …}}` has `review.body`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

TURNS = ({"role", "content"}, {"from", "value"}, {"role", "parts"})
"""What an object has that is a turn of a chat."""
DEPTH = 5
"""Objects within objects that are looked into."""
FILE = frozenset({"bytes", "path", "array"})
"""A picture or a recording is an object with one of these."""


def spread(values: Mapping[str, Any], named: Collection[str] = ()) -> dict[str, Any]:
    """The row with a column for each field of an object in it.

    The object itself stays where the recipe names it, where it is a turn or a list in it may be a chat, and where
    it has no text, as one of flags has not; files stay as they are.

    Args:
        named: Columns that the recipe names.
    """
    found: dict[str, Any] = {}
    for column, value in values.items():
        if not isinstance(value, Mapping) or not value or FILE & value.keys():
            found[column] = value
            continue
        leaves = dict(_leaves(value, column, DEPTH))
        whole = column in named or any(isinstance(each, list) for each in value.values())
        whole = whole or any(turn <= value.keys() for turn in TURNS)
        if whole or not any(isinstance(each, str) for each in leaves.values()):
            found[column] = value
        found |= {name: each for name, each in leaves.items() if name not in values}
    return found


def _leaves(value: Mapping[str, Any], name: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        inner = f"{name}.{key}"
        if isinstance(each, Mapping) and each and depth > 1 and not FILE & each.keys():
            yield from _leaves(each, inner, depth - 1)
        else:
            yield inner, each


def field_names(fields: Iterable[Any], above: str = "", depth: int = DEPTH) -> Iterator[str]:
    """Columns of a table with those of its objects: of a schema of pyarrow, or of a struct in it."""
    import pyarrow

    for field in fields:
        name = f"{above}{field.name}"
        yield name
        if pyarrow.types.is_struct(field.type) and depth:
            inner = [field.type.field(place) for place in range(field.type.num_fields)]
            if FILE.isdisjoint(each.name for each in inner):
                yield from field_names(inner, f"{name}.", depth - 1)
