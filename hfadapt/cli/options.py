"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfadapt.cli import completion

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", autocompletion=completion.recipes)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIELD=VALUE]...",
        help="Settings that replace the recipe's, such as train.epochs=3.",
        autocompletion=completion.settings,
    ),
]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domain", "-d", help="Only this domain; may be repeated.", autocompletion=completion.domains),
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", help="This target instead; may be repeated.", autocompletion=completion.targets),
]


def folder(said: str) -> Path:
    """A folder on the command line. Its own words are needed: `Path` changes those of an address."""
    from hfadapt.run_folder import local_folder

    return local_folder(said)


Runs = Annotated[Path, typer.Option("--runs", parser=folder, metavar="FOLDER", help="Where run folders are kept.")]
Worse = Annotated[
    bool,
    typer.Option("--fail-if-worse", help="Exit with 1 when the leading metric is surely worse than the baseline's."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and the result only.")]
JsonEvents = Annotated[
    Path | None,
    typer.Option(
        "--json-lines", metavar="FILE", help="Write what happens as JSON, one event a line; - for standard error alone."
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="PLACE",
        help="Do cells as jobs of their own: local (one on each GPU), slurm, or ray[://HOST:PORT].",
        autocompletion=completion.backends,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        parser=folder, metavar="RUN", help="A run folder such as runs/NAME.", autocompletion=completion.runs
    ),
]
CellArgument = Annotated[
    Path,
    typer.Argument(
        parser=folder,
        metavar="CELL",
        help="A cell such as runs/NAME/DOMAIN/TARGET, or a run.",
        autocompletion=completion.cells,
    ),
]
OneDomain = Annotated[
    str | None, typer.Option("--domain", "-d", help="Which domain of the run.", autocompletion=completion.domains)
]
OneTarget = Annotated[
    str | None, typer.Option("--target", "-t", help="Which target of the run.", autocompletion=completion.targets)
]
