"""Verbs that start no run: `list`, `show`, `explain`, `schema`, `convert`, `completion`, `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfadapt.cli import completion
from hfadapt.cli.options import Json


def list_(
    what: Annotated[
        str, typer.Argument(help="targets, tasks, adapters, quants, formats, stages, samples or metrics.")
    ] = "",
) -> None:
    """List what can be named in a recipe."""
    from hfadapt.cli.listing import listing

    typer.echo(str(listing(what)))


def show_(
    what: Annotated[str, typer.Argument(help="target, sample or run.")],
    name: Annotated[str, typer.Argument(help="Its name.")],
) -> None:
    """Show one target, sample or run in full."""
    from hfadapt.cli.listing import one

    typer.echo(str(one(what, name)))


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FIELD", help="Such as train.learning_rate, or adapters.dora.", autocompletion=completion.explained
        ),
    ] = "",
) -> None:
    """Say what a field of a recipe does, what it takes, who answers its auto, and what it costs."""
    from hfadapt.recipe.explain import explain as explained

    typer.echo(str(explained(name)))


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON of axolotl, LLaMA-Factory or TRL.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="RECIPE", help="A new file; by default FILE-recipe.yaml, here."),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option("--from", metavar="TOOL", help="Whose file it is, where that cannot be told: trl, axolotl …"),
    ] = None,
    json: Json = False,
) -> None:
    """Make a recipe of another tool's configuration, and say what became of each of its fields."""
    from hfadapt.recipe.convert import convert as converted

    done = converted(file, out, tool)
    typer.echo(done.model_dump_json(indent=1) if json else str(done))


def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it to a file.")] = None,
) -> None:
    """Print the JSON Schema of recipes, with which editors check and complete them."""
    from hfadapt.recipe.json_schema import schema_text

    if out is None:
        typer.echo(schema_text(), nl=False)
        return
    from hfadapt.core.spec import write_text

    write_text(out, schema_text())
    typer.echo(f"{out} written")


def completion_(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=completion.shells)],
) -> None:
    """Print what makes a shell complete verbs, options, recipes, fields, domains, targets and runs.

    bash: eval "$(hfadapt completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit; fish: hfadapt
    completion fish > ~/.config/fish/completions/hfadapt.fish
    """
    typer.echo(completion.script(shell), nl=False)


def doctor(
    json: Json = False,
    report: Annotated[bool, typer.Option("--report", help="Markdown for a bug report, with nothing private.")] = False,
) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    if report:
        from hfadapt.cli.bug_report import bug_report

        typer.echo(bug_report())
        return
    from hfadapt.cli.doctor import examine

    found = examine()
    typer.echo(found.model_dump_json(indent=1) if json else str(found))
