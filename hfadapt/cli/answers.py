"""`hfadapt predict` for many rows: from a file or standard input to the terminal or a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfadapt.core.errors import RequestError

if TYPE_CHECKING:
    from hfadapt.files import Rows
    from hfadapt.serve.adapted import Adapted

STANDARD_INPUT = STANDARD_OUTPUT = "-"


def answer_rows(
    load: Callable[[], Adapted], texts: Sequence[str], file: Path | None, output: Path | None, as_json: bool
) -> None:
    """Prints or writes an answer for each row, in order; those that have none are named on standard error.

    Args:
        load: Loads the adapter, once all else is found to be right.
        texts: Of the command line, or `-` alone.
        output: A new file for JSON Lines, or `-`, where nothing else is printed then.
        as_json: Print one JSON list.

    Raises:
        RequestError: there is nothing to answer, or two things; the output is there already.
        typer.Exit: with 1 when a row has no answer.
    """
    from hfadapt.serve.asked import answered

    rows, place = _rows(texts, file)
    shown = output is not None and str(output) == STANDARD_OUTPUT
    if output is not None and not shown and output.exists():
        raise RequestError("the file exists already", place=str(output), fix="give another name with --output")
    adapted = load()
    count, bad = 0, 0
    said: list[dict[str, Any]] = []
    out = nullcontext(sys.stdout if shown else None) if output is None or shown else output.open("x", encoding="utf-8")
    with out as written:
        for each in answered(adapted, rows, source=place):
            count += 1
            if each.fault is not None:
                bad += 1
                typer.echo(f"{each.fault}; it has no answer", err=True)
            if written is not None:
                written.write(json.dumps(each.as_json(), ensure_ascii=False) + "\n")
            elif as_json:
                said.append(each.as_json())
            else:
                typer.echo(str(each))
    if output is not None:
        typer.echo(
            f"{count - bad:,} answers of {count:,} rows written to {'standard output' if shown else output}", err=True
        )
    elif as_json:
        typer.echo(json.dumps(said, indent=1))
    if bad:
        raise typer.Exit(1)


def _rows(texts: Sequence[str], file: Path | None) -> tuple[Rows, str]:
    """What is asked, and what it stands in."""
    from hfadapt.files import Read
    from hfadapt.serve.asked import file_rows, lines_of

    if file is not None and texts:
        raise RequestError("texts come from the command line or from a file", got="both", fix="leave one of them out")
    if file is not None:
        return file_rows(file), str(file)
    if not texts:
        raise RequestError(
            "there is nothing to answer",
            allowed="one or more texts, - for standard input, or --file FILE",
            fix='hfadapt predict CELL "text", or hfadapt predict CELL --file rows.txt',
        )
    if list(texts) == [STANDARD_INPUT]:
        return lines_of(sys.stdin.buffer), "standard input"
    return (Read(number, {"text": text}) for number, text in enumerate(texts)), "the command line"
