"""`hfadapt predict` for many rows: from a file or standard input to the terminal or a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfadapt.core.commands import visible
from hfadapt.core.errors import RequestError

if TYPE_CHECKING:
    from hfadapt.files import Rows
    from hfadapt.serve.adapted import Adapted
    from hfadapt.serve.asked import Answered
    from hfadapt.tasks import Answer

STANDARD_INPUT = STANDARD_OUTPUT = "-"
MOST_FAULTS = 20
"""So many rows without an answer are named on the terminal."""


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
    from hfadapt.core import registry
    from hfadapt.serve.asked import answered

    rows, place = _rows(texts, file)
    shown = output is not None and str(output) == STANDARD_OUTPUT
    if output is not None and not shown and output.exists():
        raise RequestError("the file exists already", place=str(output), fix="give another name with --output")
    adapted = load()
    found = _begun(answered(adapted, rows, source=place, folder=file.parent if file else None))
    # A text is the line that was given; of files a person has no other way to tell which is meant.
    named = bool(registry.modality_of(adapted.task).suffixes)
    counts = Counts()
    said: list[dict[str, Any]] = []
    out = nullcontext(sys.stdout if shown else None) if output is None or shown else output.open("x", encoding="utf-8")
    with out as written:
        for each in found:
            if (fault := counts.add(each.answer, each.fault)) is not None:
                _note(fault)
            if written is not None:
                written.write(json.dumps(each.as_json(), ensure_ascii=False) + "\n")
            elif as_json:
                said.append(each.as_json())
            else:
                name = f"{visible(each.answer.text)}: " if named and each.answer and each.answer.text else ""
                typer.echo(f"{name}{shown_answer(each.answer)}" if each.answer else "")
    if as_json and output is None:
        typer.echo(json.dumps(said, indent=1))
    if output is not None:
        to = "standard output" if shown else output
        _note(f"{counts.rows - counts.faults:,} answers of {counts.rows:,} rows written to {to}")
    counts.end(output is not None)


def _note(text: str) -> None:
    typer.echo(visible(text), err=True)


def _begun(found: Iterator[Answered]) -> Iterator[Answered]:
    """The answers; what is wrong with all rows is raised before anything is written."""
    first = list(islice(found, 1))
    return chain(first, found)


def shown_answer(answer: Answer) -> str:
    """An answer as it is printed, with a word where its row was cut."""
    return visible(f"{answer}  [cut: {answer.cut}]" if answer.cut else str(answer))


@dataclass
class Counts:
    """What became of rows, for the end."""

    rows: int = 0
    faults: int = 0
    cut: int = 0

    def add(self, answer: Answer | None, fault: str | None) -> str | None:
        """Counts a row; returns what is to be said of it now, if anything."""
        self.rows += 1
        self.faults += fault is not None
        self.cut += answer is not None and answer.cut is not None
        if fault is None or self.faults > MOST_FAULTS:
            return None
        more = "; --output FILE has what is wrong with further rows" if self.faults == MOST_FAULTS else ""
        return f"{fault}; it has no answer{more}"

    def end(self, counted: bool = False) -> None:
        """Says how many have no answer or were cut, where some did.

        Args:
            counted: Whether it has been said how many have an answer.

        Raises:
            typer.Exit: with 1 when a row has no answer.
        """
        if self.faults and not counted:
            _note(f"{self.faults:,} of {self.rows:,} rows have no answer")
        if self.cut:
            _note(f"{self.cut:,} of {self.rows:,} rows are longer than the model was trained to take, and were cut")
        if self.faults:
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
