"""What `hfadapt new` asks in a terminal, and the rows that it shows there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

import typer

from hfadapt.cli.new_recipe import NOTHING, guesses, suiting_model, told
from hfadapt.core import registry
from hfadapt.core.errors import DataError, RequestError, nearest
from hfadapt.core.show import Heading, Table, Text, View
from hfadapt.data.labels import Labels, some
from hfadapt.data.pictures import NO_CLASS
from hfadapt.data.reading import SourceReader, no_rows
from hfadapt.data.rows import Row
from hfadapt.data.sources import open_source
from hfadapt.data.unreadable import check_unreadable
from hfadapt.recipe.domain import PATTERNS
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.sources import folder_of
from hfadapt.schemas import RowSchema

SHOWN_ROWS = 3
AMONG = 50
"""Rows among which different ones are looked for: files are often sorted by label."""
LONGEST = 200


def choose(question: str, options: Sequence[str], default: str) -> str:
    """Asks until one of the options is given; Enter takes the default."""
    while True:
        answer: str = typer.prompt(f"{question} ({', '.join(options)})", default=default)
        if answer in options:
            return answer
        close = nearest(answer, options)
        typer.echo(f"there is no {answer!r}" + (f"; did you mean {close!r}?" if close else ""))


def wanted(
    model: str, source: str, data: str, asks: bool, columns: Sequence[str] = (), beside: Mapping[str, str] = NOTHING
) -> tuple[str, str]:
    """The model and the data that `hfadapt new` is told; a model that is left out is asked for.

    Raises:
        RequestError: there are no data, or two different ones, or no model and nobody to ask.
        DataError: the data cannot be read.
    """
    if not (source or data) or (source and data and source != data):
        got = f"{source!r}, and {data!r} with --data" if source else "nothing"
        fix = f"hfadapt new {quote(source or 'data.csv')}"
        allowed = "one file, folder, Hub data set id or sample:NAME"
        raise RequestError("which data to look at is not clear", got=got, allowed=allowed, fix=fix)
    data = source or data
    if model:
        return model, data
    named = [f"--columns {quote(each)}" for each in columns]
    named += [f"--{name} {quote(value)}" for name, value in beside.items()]
    suiting = suiting_model(data, columns, beside)
    if asks:
        return typer.prompt("model (Hub id, folder, GGUF file or sample:NAME)", default=suiting), data
    raise RequestError(
        "there is no model",
        allowed="a Hub id, a folder, a GGUF file or sample:NAME",
        fix=" ".join(["hfadapt new", quote(data), *named, "--model", suiting or "MODEL"]),
    )


def preview(path: Path) -> View:
    """Three rows of a recipe's first domain as training will see them: what the model is shown, and what it learns.

    Raises:
        DataError: the source cannot be read.
    """
    recipe = load_recipe(path)
    [domain, *_] = recipe.domains
    asked = recipe.domains[domain]
    source = open_source(asked.all_sources()[0], folder_of(path))
    reader = SourceReader(
        recipe, domain, source, registry.task(recipe.task).schemas, Labels(asked.labels, asked.no_label)
    )
    rows = list(islice((row for row in reader if isinstance(row, Row)), AMONG))
    seen = [each for row in rows if (each := _seen(registry.schema(row.form), row))[0]]
    different: dict[str, tuple[str, str]] = {}
    for each in seen:
        different.setdefault(each[1], each)
    chosen = [*different.values(), *(each for each in seen if each not in different.values())][:SHOWN_ROWS]
    guessed = guesses(path)
    # What was guessed is said as that, and not as what the recipe says.
    noticed = [each for each in source.noticed if each.code != "encoding" or not guessed]
    return View(
        [
            Heading("Rows as training will see them"),
            Table(["the model is shown", "and learns"], chosen),
            *(Text(told(each)) for each in [*noticed, *reader.of_files]),
            *(Text(f"{each.message}; {each.fix}") for each in reader.left_out),
            *([Text(said)] if (said := _columns_read(reader)) else []),
            *(Text(each, code=True) for each in guessed),
            *_refused(reader, bool(rows)),
        ]
    )


def _columns_read(reader: SourceReader) -> str:
    """Which columns were taken by what they hold, and which are not read."""
    found = reader.source.settings.columns.model_dump(include=set(PATTERNS), exclude_none=True)
    patterns = {name.removesuffix("_pattern"): f"what {pattern!r} finds in " for name, pattern in found.items()}
    said = [f"{part} is {patterns.get(part, '')}{column!r}" for part, column in reader.parts.items() if part != column]
    return "; ".join([*said, *([f"not read: {some(reader.unread, 8)}"] if reader.unread else [])])


def _refused(reader: SourceReader, some_left: bool) -> list[Text]:
    """What a run would refuse in the rows that were read."""
    try:
        check_unreadable(reader.source.split, reader.rows_in, reader.bad)
        if not some_left:
            raise no_rows(reader.source.name, reader.rows_in, reader.bad)
    except DataError as error:
        return [Text(str(error), code=True)]
    return []


def _seen(schema: RowSchema, known: Row) -> tuple[str, str]:
    """What the model is shown of a row, and what it learns from it."""
    row: Any = known.columns
    # A file in a cell of a table may have no name.
    shown = [str(row["file"]) or str(known.where)] if schema.media else schema.asked(row)
    learned = schema.answers(row) or [*schema.classes(row)][: None if schema.label_kind == "classes" else 0]
    if not learned and schema.label_kind == "classes":
        learned = [NO_CLASS]
    if not learned and (label := schema.label(row)) is not None:
        learned = [label]
    return _brief(shown), _brief(learned or [text for text in schema.stated(row) if text not in shown])


def _brief(texts: Sequence[str]) -> str:
    text = " ".join(" | ".join(texts).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
