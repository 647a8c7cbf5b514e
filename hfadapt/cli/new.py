"""The verb `new`: its options, and what it shows of the recipe that it has written."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hfadapt.cli import completion


def new(  # noqa: PLR0913 - the options of the command
    source: Annotated[str, typer.Argument(metavar="DATA", help="File, folder, Hub data set id or sample:NAME.")] = "",
    model: Annotated[str, typer.Option("--model", help="Hub id, folder, GGUF file or sample:NAME.")] = "",
    data: Annotated[str, typer.Option("--data", help="The same as DATA.")] = "",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="PART=COLUMN,...",
            help="Which column holds what, such as text=body,label=mood; see hfadapt explain domains.NAME.columns.",
            autocompletion=completion.columns,
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encoding", metavar="NAME", help="Of texts that are not UTF-8, such as windows-1251."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="NAME", help="Of a data set on the Hub or a JSON file; of a workbook, the sheet."
        ),
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
    license: Annotated[str, typer.Option("--license", help="Of the data, such as cc-by-4.0.")] = "",
) -> None:
    """Look at a file of data and write a commented recipe for it; in a terminal it asks what the data leave open."""
    from hfadapt.cli.asking import choose, preview, wanted
    from hfadapt.cli.new_recipe import write_recipe
    from hfadapt.cli.terminal import is_live
    from hfadapt.core.errors import DataError

    ask = choose if is_live(sys.stdin, sys.stdout) else None
    beside = {name: value for name, value in (("encoding", encoding), ("split", split)) if value}
    model, data = wanted(model, source, data, ask is not None, columns or (), beside)
    path = write_recipe(model, data, output, ask, license, columns or (), beside)
    try:
        typer.echo(str(preview(path)))
    except DataError as error:
        typer.echo(str(error), err=True)
    typer.echo(f"{path} written; look at it, then: hfadapt run {shlex.quote(str(path))}")
