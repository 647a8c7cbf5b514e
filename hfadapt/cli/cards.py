"""`hfadapt card`: model cards, written and checked."""

from __future__ import annotations

from typing import Annotated

import typer

from hfadapt.cli.options import CellArgument, OneDomain, OneTarget

card_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write and check model cards.")


@card_app.command("build")
def card_build(cell: CellArgument, domain: OneDomain = None, target: OneTarget = None) -> None:
    """Write the card of a cell again from its records."""
    from hfadapt.card.build import build_card
    from hfadapt.run_folder import find_cell

    found = find_cell(cell, domain, target)
    build_card(found)
    typer.echo(str(found.folder / "README.md"))


@card_app.command("check")
def card_check(
    cell: CellArgument,
    domain: OneDomain = None,
    target: OneTarget = None,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The licence, where the records cannot say what holds."),
    ] = None,
) -> None:
    """Check a card: metadata, licences, placeholders, sound records, and that every number equals its record."""
    from hfadapt.card.check import check_card
    from hfadapt.publish.staging import check_license
    from hfadapt.run_folder import find_cell

    if license is not None:
        check_license(license)
    problems = check_card(find_cell(cell, domain, target).folder, license)
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo("the card is in order")
