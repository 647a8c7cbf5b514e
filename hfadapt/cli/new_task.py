"""Which task own data and a model are for, for `hfadapt new`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hfadapt.cli.new_columns import Ask, Rows, columns_of, files_of, ways
from hfadapt.cli.new_model import made_for
from hfadapt.core import registry
from hfadapt.core.errors import DataError, RequestError
from hfadapt.data import layouts
from hfadapt.data.columns import Shape, recognise
from hfadapt.data.labels import some
from hfadapt.files import Read, media
from hfadapt.recipe.schema import Columns
from hfadapt.tasks import Task


def modality_of(rows: Rows, model: str, place: str, said: Columns, noticed: Sequence[str] = ()) -> str:
    """What is learned from: what the model is made for, where the rows have it.

    Args:
        noticed: What is to be said of the data, such as of files beside it.

    Raises:
        RequestError: they do not go together.
        DataError: the rows are files without classes.
    """
    if [column for column in columns_of(rows) if media.kind_of(column)]:
        raise DataError(
            "the first line of the table is a row: it names a file",
            place=place,
            got=f"columns {', '.join(columns_of(rows)[:4])}",
            allowed="names of columns",
            fix="write a line above it with the names of the columns, such as file_name,label",
        )
    files = files_of(rows)
    texts = set(columns_of(rows)) - {*files, *(["file"] if files else [])}
    have = [*dict.fromkeys(files.values())]
    # A column of names of files may stand beside texts; what is beside a file itself says its class.
    have += ["text"] if not files or len(texts) > 1 else []
    # Or they hold files in another way, which is found out again when they are read.
    have += [each.modality for each in registry.schemas() if each.media and each.layout(rows, said.parts) is not None]
    kinds = made_for(model)
    found = next((name for name in have if name in kinds or not kinds), None)
    if found is None:
        rows_are, model_is = (registry.modality(name).nouns for name in (have[0], kinds[0]))
        raise RequestError(
            f"the rows are {rows_are}, and the model is one of {model_is}",
            place=model,
            got="; ".join([f"columns {some(columns_of(rows))}", *noticed]),
            fix=f"name a model of {rows_are} with --model, or data of {model_is} with --data",
        )
    if found in files.values() and not texts and said.label is None:
        kind = registry.modality(found)
        raise DataError(
            f"the {kind.nouns} have no classes",
            place=place,
            got="; ".join([f"a folder or archive of {kind.nouns} alone", *noticed]),
            fix=f"move them into a folder for each class, such as CLASS/1{kind.suffixes[0]}, or give a table with the "
            "columns file_name and label; or name what finds the class in their names: --columns "
            "'label=file,label_pattern=_(\\w+)_'; boxes round objects, as of COCO, VOC or YOLO, are not learned from: "
            "cut the objects out",
        )
    return found


class Fit(NamedTuple):
    """The task that fits the columns and the model, how the columns are read, and the rows with their labels.

    `laid_out` where these rows were made of others, which says what the columns are; `classes` are the columns of 0 and
    1 of which the labels were made.
    """

    task: str
    shape: Shape
    rows: Rows
    laid_out: bool = False
    classes: tuple[str, ...] | None = None


def fit_of(rows: Rows, modality: str, generates: bool, place: str, ask: Ask | None, said: Columns) -> Fit:
    """The task that fits the columns and the model, and how the rows are read."""
    known = [task for task in map(registry.task, registry.names("tasks")) if task.modality == modality]
    files = files_of(rows)
    if modality not in files.values():
        rows = [{column: value for column, value in row.items() if column not in files} for row in rows]
    # Those that write first, where the model does; then by the schemas that come first.
    order = sorted(
        (task for task in known if generates or not task.writes),
        key=lambda task: (not task.writes, min(registry.schema(form).rank for form in task.schemas)),
    )
    refused: DataError | None = None
    fitting: list[tuple[str, Shape]] = []
    plain: tuple[list[tuple[str, Shape]], Rows] = [], rows
    told = rows
    if laid_out := _laid_out(rows, order, place, said):
        return laid_out
    for told, asked in ways(rows, order, place, ask, said):
        for task in order:
            try:
                fitting.append((task.name, recognise(columns_of(told), asked, task.schemas, place, False)))
            except DataError as error:
                refused = refused or error
        if any(registry.task(name).writes or labelled(shape) for name, shape in fitting):
            break
        # Texts alone are learned from where nothing else is found in them.
        plain, fitting = (plain if plain[0] and ask is None else (fitting, told)), []
    if not fitting:
        fitting, told = plain
    if not fitting:
        assert refused is not None
        raise _untaught(said, order, place) if said.parts else refused
    likely = [each for each in fitting if _is_likely(each[1], told)]
    best = next((each for each in likely if not _rivalled(each[1], fitting, told)), fitting[0])
    # Texts of which the labels are left out are nobody's first thought.
    choices = {name: shape for name, shape in (best, *likely) if labelled(shape) or not labelled(best[1])}
    if ask is not None and len(choices) > 1:
        name = ask("task", [*choices], best[0])
        best = name, choices[name]
    return Fit(*best, told, classes=asked.classes if labelled(best[1]) else None)


def _laid_out(rows: Rows, tasks: Sequence[Task], place: str, said: Columns) -> Fit | None:
    """The first task for which rows can be made of these, which keep them in another way; and these rows.

    None where a task before it learns to write from them as they are.
    """
    for task in tasks:
        if (found := layouts.find(rows, task.schemas, said)) is not None:
            layout, shape = found
            items = (Read(number, dict(row)) for number, row in enumerate(rows))
            made = layouts.laid_out(items, layout, place)
            return Fit(task.name, shape, [item.values for item in made if isinstance(item, Read)], True)
        with suppress(DataError):
            if task.writes and len(recognise(columns_of(rows), said, task.schemas, place, False).parts) > 1:
                return None
    return None


def _untaught(said: Columns, tasks: Sequence[Task], place: str) -> RequestError:
    """The error for columns that are said, of which no task that the model can do makes rows."""
    forms = {task.name: [" + ".join(registry.schema(form).parts) for form in sorted(task.schemas)] for task in tasks}
    return RequestError(
        "no task of this model learns from rows of these parts alone",
        place=f"--columns, {place}",
        got=" + ".join(said.parts),
        allowed="; ".join(f"{name}: {' or '.join(parts)}" for name, parts in forms.items()),
        fix="name the parts of one of these, or another model with --model",
    )


def _labels(shape: Shape, rows: Rows) -> list[Any]:
    column = shape.parts.get("label")
    return [row[column] for row in rows if column is not None and row.get(column) is not None]


def _is_likely(shape: Shape, rows: Rows) -> bool:
    return registry.schema(shape.form).likely(_labels(shape, rows))


def _rivalled(shape: Shape, fitting: Sequence[tuple[str, Shape]], rows: Rows) -> bool:
    """Whether another schema reads more of the row, or its labels, which could be classes, rather as its kind."""
    labels, others = _labels(shape, rows), [other for _, other in fitting if other.form != shape.form]
    # What is found without what it is searched with is half of the row.
    if any({*shape.used} <= {*other.used[1:]} and _is_likely(other, rows) for other in others):
        return True
    # A field of an object, as the text of an answer, tells less than columns with names of their own.
    if len(shape.used) == 1 and "." in shape.used[0] and any("." not in "".join(other.used[:2]) for other in others):
        return True
    if registry.schema(shape.form).label_kind not in ("none", "class"):
        return False
    return any(
        each.likely(labels)
        for each in (registry.schema(other.form) for other in others if set(other.parts) == set(shape.parts))
        if each.label_kind not in ("none", "class")
    )


def labelled(shape: Shape) -> bool:
    """Whether rows that are read so have labels."""
    return registry.schema(shape.form).label_kind != "none"
