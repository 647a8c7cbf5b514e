"""The commands that take a recipe through the stages: what they all do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Recipe


def load(recipe: Path, overrides: list[str] | None, domains: list[str] | None, targets: list[str] | None) -> Recipe:
    """The recipe with what the command line changes and chooses."""
    from hfadapt.recipe.reading import load_recipe

    return load_recipe(recipe, overrides or (), domains=domains, targets=targets)


def through(  # noqa: PLR0913 - options of the command
    stage: str,
    recipe: Path,
    overrides: list[str] | None,
    domains: list[str] | None,
    targets: list[str] | None,
    runs: Path,
    watch: tuple[bool, Path | None],
    fresh: bool = False,
    fail_if_worse: bool = False,
    publish: str | None = None,
    on: str | None = None,
) -> None:
    """Runs the pipeline up to a stage and prints the report; exit code 1 when a cell failed or is, if asked, worse.

    Args:
        watch: `--quiet` and `--json-lines`.
        publish: Where all finished adapters are sent at the end.
        on: Where cells are done as jobs of their own.
    """
    from hfadapt.cli.watched import Watch
    from hfadapt.core.progress import Failed
    from hfadapt.pipeline.run import run_recipe
    from hfadapt.records.report import show_gain

    with Watch(*watch).open() as (terminal, progress):
        asked = load(recipe, overrides, domains, targets)
        run = run_recipe(
            asked,
            folder=runs / asked.name,
            until=stage,
            fresh=fresh,
            on=on,
            progress=progress,
        )
        report = run.report
        terminal.report(run)
        mine = [cell for cell in report.cells if (cell.domain, cell.target) in asked.cells()]
        worse = [cell for cell in mine if cell.metrics and cell.metrics[0].worse] if fail_if_worse else []
        for cell in worse:
            what = (
                f"{cell.domain} on {cell.target}: the adapter is worse than the {cell.baseline}: "
                f"{cell.metrics[0].name} {show_gain(cell.metrics[0])}"
            )
            progress.tell(Failed(what, None, what, cell=f"{cell.domain}/{cell.target}"))
        if worse or any(cell.status in ("failed", "does-not-fit") for cell in mine):
            raise typer.Exit(1)
        if publish:
            from hfadapt.publish.publish import publish as publish_cells

            domains, targets = list(asked.chosen), list(asked.targets)
            typer.echo(publish_cells(run.folder, publish, yes=True, domains=domains, targets=targets, say=progress.say))
