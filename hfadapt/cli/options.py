"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this at run time on Python 3.10
    typer.Argument(metavar="[FIELD=VALUE]...", help="Settings that replace the recipe's, such as train.epochs=3."),
]
Domains = Annotated[Optional[list[str]], typer.Option("--domain", "-d", help="Only this domain; may be repeated.")]  # noqa: UP045
Targets = Annotated[Optional[list[str]], typer.Option("--target", "-t", help="This target instead; may be repeated.")]  # noqa: UP045
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders are kept.")]
Worse = Annotated[
    bool,
    typer.Option("--fail-if-worse", help="Exit with 1 when the leading metric is surely worse than the baseline's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
CellArgument = Annotated[Path, typer.Argument(metavar="CELL", help="A cell such as runs/NAME/DOMAIN/TARGET, or a run.")]
OneDomain = Annotated[Optional[str], typer.Option("--domain", "-d", help="Which domain of the run.")]  # noqa: UP045
OneTarget = Annotated[Optional[str], typer.Option("--target", "-t", help="Which target of the run.")]  # noqa: UP045
