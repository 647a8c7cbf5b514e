"""What the layouts of row schemas have in common: columns that are found by name or by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hfadapt.files import Read, Unread, Unusable
from hfadapt.schemas import Columns, read_list

Rows = Sequence[Columns]


def columns_of(head: Rows) -> list[str]:
    """The columns that any of the rows has, in their order."""
    return list(dict.fromkeys(str(name) for row in head for name in row))


def named(columns: Collection[str], names: Iterable[str], said: str | None = None) -> str | None:
    """The column that is said, else the first with one of these names, fields of objects by their own: `data.text`."""
    if said is not None:
        return said if said in columns else None
    lower = {column.lower().rpartition(".")[2]: column for column in reversed(list(columns))}
    lower |= {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)


def filled(head: Rows, column: str) -> list[Any]:
    """What the rows have in a column, but for nothing."""
    return [value for row in head if (value := row.get(column)) is not None and value != ""]


def listed(value: Any) -> list[Any]:
    """A list, also where it is written as text; of anything else an empty one."""
    found = read_list(value)
    return found if isinstance(found, list) else []


def texts(value: Any) -> list[str]:
    """A list that holds texts alone, else an empty one."""
    found = listed(value)
    return found if all(isinstance(each, str) for each in found) else []


def each(make: Callable[[Columns], Iterable[dict[str, Any]]]) -> Callable[[Iterable[Read]], Iterator[Read | Unread]]:
    """A reader that makes rows of each row by itself.

    Args:
        make: The rows of one; raises Unusable where it is none.
    """

    def read(rows: Iterable[Read]) -> Iterator[Read | Unread]:
        for row in rows:
            try:
                made = list(make(row.values))
            except Unusable as fault:
                yield Unread(row.row, fault.reason, fault.detail, row.line)
            else:
                yield from (row._replace(values=values) for values in made)

    return read


def without(values: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    """A row less some columns, less the fields of objects in them, and less the objects whose fields they are."""

    def same(name: str, column: str) -> bool:
        return name == column or name.startswith(f"{column}.") or column.startswith(f"{name}.")

    return {name: value for name, value in values.items() if not any(same(name, each) for each in columns)}
