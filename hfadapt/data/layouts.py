"""Sources that keep rows in another way than a row schema has them: told by their first rows, and read all the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.columns import Shape
from hfadapt.data.labels import some
from hfadapt.data.rows import Dropped
from hfadapt.data.sources import Reading
from hfadapt.files import Read, Unread
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Columns
from hfadapt.records.stages import Finding
from hfadapt.schemas import Layout, RowSchema

Rows = Sequence[Mapping[str, Any]]


def find(head: Rows, forms: Collection[str], asked: Columns) -> tuple[Layout, Shape] | None:
    """The layout of the first rows of a source, and how what is made of them is read; None where they need none.

    Args:
        head: These rows, with a column for each field of an object.
        forms: Schemas whose layouts are looked for.
        asked: What the recipe says of the columns.
    """
    for schema in registry.schemas():
        if schema.name in forms and head and (layout := schema.layout(head, asked.parts)) is not None:
            return layout, Shape(schema.name, dict(layout.parts), asked.group, asked.group_pattern, asked.split)
    return None


def laid_out(rows: Reading, layout: Layout, place: str) -> Reading:
    """The rows that are made of those of a source; what is no row comes as it is.

    Args:
        place: The source, as rows name it.
    """
    others: deque[Any] = deque()

    def given() -> Iterator[Read]:
        for item in rows:
            if isinstance(item, Read):
                yield item
            else:
                others.append(item)

    try:
        # What was no row stands where it stood, and what ends the source after the last row.
        for made in chain(layout.read(given()), (None,)):
            while others:
                yield others.popleft()
            if isinstance(made, Unread):
                yield Dropped(Place(place, made.row, made.line), made.reason, detail=made.detail)
            elif made is not None:
                yield made
    except DataError as error:
        # What a layout refuses is of this source.
        placed = [replace(each, place=each.place or place) for each in error.problems]
        raise DataError(error.what, problems=placed) from None


def read_so(layout: Layout, place: str) -> Finding:
    """What is said of a source that was read by a layout."""
    fix = f"nothing, where they are; else write rows with {', '.join(layout.parts)}"
    return Finding(code="layout", level="soft", message=f"{place}: the rows are {layout.what}", fix=fix)


def passed_over(head: Rows, shape: Shape, place: str) -> list[Finding]:
    """What is to be said of rows in which a task reads less than another would.

    Args:
        head: The first rows of the source.
        shape: How they are read.
        place: The source, for messages.
    """
    own = registry.schema(shape.form)
    for schema, layout, task in _others(head):
        if _more(layout, schema, shape, own):
            what = f"{place}: the rows seem to be {_briefly(layout)}, of which only "
            what += f"{some(map(repr, shape.used))} {'is' if len(shape.used) == 1 else 'are'} read"
            fix = f"set task: {task}, without columns, to learn from all of it; nothing, if that is not meant"
            return [Finding(code="layout-not-read", level="soft", message=what, fix=fix)]
    return []


def unfit(error: DataError, head: Rows) -> DataError:
    """An error of columns that do not fit the task, with the task that learns from such rows, where there is one."""
    for _, layout, task in _others(head):
        [first, *others] = error.problems
        fix = f"the rows seem to be {_briefly(layout)}: set task: {task}, without columns, to learn from them"
        return DataError(error.what, problems=[replace(first, fix=f"{fix}; or {first.fix}"), *others])
    return error


def _others(head: Rows) -> Iterator[tuple[RowSchema, Layout, str]]:
    """Layouts of the rows, with their schemas and the tasks that learn from these."""
    for schema in registry.schemas():
        if head and (layout := schema.layout(head, {})) is not None:
            able = [task for task in registry.names("tasks") if schema.name in registry.task(task).schemas]
            yield schema, layout, " or ".join(able)


def _briefly(layout: Layout) -> str:
    """What the rows are, without how they would be read."""
    return layout.what.partition(": ")[0]


def _more(layout: Layout, schema: RowSchema, shape: Shape, own: RowSchema) -> bool:
    """Whether a layout reads more than is read."""
    read, used = {*shape.used}, {*layout.used}
    return read < used or (read == used and own.label_kind == "none" != schema.label_kind)
