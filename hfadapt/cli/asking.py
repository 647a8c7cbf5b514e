"""What `hfadapt new` asks in a terminal, and the rows that it shows there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from hfadapt.core import registry
from hfadapt.core.errors import nearest
from hfadapt.core.show import Heading, Table, View
from hfadapt.data.labels import Labels
from hfadapt.data.reading import SourceReader
from hfadapt.data.rows import Row
from hfadapt.data.sources import open_source
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


def preview(path: Path) -> View:
    """Three rows of a recipe's first domain as training will see them: what the model is shown, and what it learns.

    Raises:
        DataError: the source cannot be read.
    """
    recipe = load_recipe(path)
    [domain, *_] = recipe.domains
    asked = recipe.domains[domain]
    source = open_source(asked.all_sources()[0], folder_of(path))
    reader = SourceReader(recipe, domain, source, registry.task(recipe.task).schemas, Labels(asked.labels))
    rows = list(islice((row for row in reader if isinstance(row, Row)), AMONG))
    seen = [_seen(registry.schema(row.form), row.columns) for row in rows]
    different: dict[str, tuple[str, str]] = {}
    for each in seen:
        different.setdefault(each[1], each)
    chosen = [*different.values(), *(each for each in seen if each not in different.values())][:SHOWN_ROWS]
    return View([Heading("Rows as training will see them"), Table(["the model is shown", "and learns"], chosen)])


def _seen(schema: RowSchema, row: Any) -> tuple[str, str]:
    """What the model is shown of a row, and what it learns from it."""
    shown = [str(row["file"])] if schema.media else schema.asked(row)
    learned = schema.answers(row) or [*schema.classes(row)][: None if schema.label_kind == "classes" else 0]
    if not learned and (label := schema.label(row)) is not None:
        learned = [label]
    return _brief(shown), _brief(learned or [text for text in schema.stated(row) if text not in shown])


def _brief(texts: Sequence[str]) -> str:
    text = " ".join(" | ".join(texts).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
