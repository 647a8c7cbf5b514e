"""What a shell completes: verbs and options come from typer, the rest from here, without torch or transformers.

What can be said in a recipe takes longer to import than a key press may take; it is kept in the cache until a file of
hfadapt or a package beside it changes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from hfadapt.core.errors import RequestError, choice_problem

VARIABLE = "_HFADAPT_COMPLETE"
"""Set by the scripts; typer then prints completions in the place of running a command."""
SCRIPTS = Path(__file__).parent / "shells"
SHELLS = ("bash", "zsh", "fish")
RUNS = "runs"
RUN_FILE, CELL_FILE = "report.json", "cell.json"
YAML = (".yaml", ".yml")
ANY_NAME = "NAME"
LONGEST = 60
"""Characters of what is said of an answer; typer would break a longer line."""
NAMED = {"domains": "domains", "budgets": "targets"}
"""Sections whose names are a recipe's own, and where it has them."""

Answer = tuple[str, str]
"""A completion, and what it is."""
Completer = Callable[[typer.Context, str], list[Answer]]


def begin() -> None:
    """Lets typer answer a shell that asks."""
    from typer.completion import completion_init

    # Typer would take markup out of what is said of each answer; importing rich for that takes longer than all else.
    sys.modules["rich"] = None  # type: ignore[assignment]
    completion_init()


def script(shell: str) -> str:
    """What a shell reads once. Raises RequestError for an unknown one."""
    if shell not in SHELLS:
        problem = choice_problem("there is no completion for this shell", shell, SHELLS)
        raise RequestError(problem.what, problems=[problem])
    return (SCRIPTS / f"hfadapt.{shell}").read_text(encoding="utf-8")


def silent(find: Callable[[typer.Context, str], Iterable[Answer]]) -> Completer:
    """Nothing is offered where a recipe or folder cannot be read: a key press is no place for a message."""

    @functools.wraps(find)
    def answers(ctx: typer.Context, incomplete: str) -> list[Answer]:
        try:
            found = [answer for answer in find(ctx, incomplete) if answer[0].startswith(incomplete)]
        except Exception:
            found = []
        return [(word, about if len(about) <= LONGEST else f"{about[:LONGEST]}…") for word, about in found]

    return answers


# --- files and folders -----------------------------------------------------------------------------------------------


@silent
def recipes(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """YAML files, and the folders on the way to them."""
    typed = incomplete.rpartition("/")[0]
    for path in sorted(Path(typed or ".").iterdir()):
        shown = f"{typed}/{path.name}" if typed else path.name
        if not path.name.startswith(".") and (path.suffix in YAML or path.is_dir()):
            yield (f"{shown}/", "folder") if path.is_dir() else (shown, "recipe")


@silent
def runs(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Run folders."""
    for path in sorted(Path(RUNS).glob(f"*/{RUN_FILE}")):
        yield path.parent.as_posix(), "run"


@silent
def cells(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Runs, and the cells in them."""
    yield from runs(ctx, incomplete)
    for path in sorted(Path(RUNS).glob(f"*/*/*/{CELL_FILE}")):
        yield path.parent.as_posix(), "cell"


# --- names on the line -----------------------------------------------------------------------------------------------


@silent
def domains(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Domains of the recipe or run that the line names."""
    yield from ((name, "domain") for name in _names("domains"))


@silent
def targets(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Targets of the recipe or run that the line names, and for a recipe then all others."""
    own = _names("targets")
    yield from ((name, "target") for name in own)
    if _on_the_line().is_file():
        yield from ((name, "target of the catalogue") for name in _known()["targets"][0] if name not in own)


def _names(what: str) -> list[str]:
    """Names of domains or targets, as the recipe on the line has them or as folders of the run."""
    path = _on_the_line()
    if path.is_file():
        listed = _recipe(path).get(what) or {}
        return [str(next(iter(name)) if isinstance(name, dict) else name) for name in listed]
    found = [cell.parent for cell in sorted(path.glob(f"*/*/{CELL_FILE}"))]
    return list(dict.fromkeys(cell.name if what == "targets" else cell.parent.name for cell in found))


def _on_the_line() -> Path:
    """The recipe or run that is named: typer does not know it where an option without its value is the last word."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    paths = [Path(word) for word in line.split()[1:]]
    return next(path for path in paths if (path.suffix in YAML and path.is_file()) or path.is_dir())


def _recipe(path: Path) -> dict[str, Any]:
    from hfadapt.recipe.yaml_lines import LIMIT_BYTES, Tree, read_into

    with path.open(encoding="utf-8") as file:
        found = read_into(Tree(str(path)), file.read(LIMIT_BYTES))
    return found if isinstance(found, dict) else {}


# --- fields and values -----------------------------------------------------------------------------------------------


@silent
def settings(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """`train.` → `train.quant=` → `quant=nf4`: fields one level at a time, then the values they know."""
    place, sign, _ = incomplete.partition("=")
    if sign:
        choices, _ = _known()[_general(place)]
        yield from ((f"{place}={choice}", "") for choice in choices)
        return
    above, dot, _ = place.rpartition(".")
    for name, (_, about) in _below(_general(above)):
        for own in _names(NAMED[above]) if name == ANY_NAME else [name]:
            opens = any(True for _ in _below(".".join(filter(None, (_general(above), name)))))
            yield f"{above}{dot}{own}{'.' if opens else '='}", about


@silent
def explained(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Every field by its place, and names of tasks, methods and the like."""
    from hfadapt.core import registry

    kind = incomplete.partition(".")[0]
    if kind in registry.KINDS:
        yield from ((f"{kind}.{name}", registry.KINDS[kind]) for name in registry.names(kind))
        return
    yield from ((place, about) for place, (_, about) in _known().items())
    yield from ((f"{each}.", f"names of {each}") for each in registry.KINDS)


@silent
def columns(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """`text=`, then the columns of the data on the line; the same after a comma."""
    from hfadapt.files import folders, reading
    from hfadapt.recipe.domain import PATTERNS, Columns

    *_, last = re.split(r",(?=\s*\w*=?[^,]*$)", incomplete)
    before = incomplete.removesuffix(last)
    part, sign, _ = last.partition("=")
    if not sign:
        yield from ((f"{before}{name}=", "part of a row") for name in Columns.model_fields if name not in PATTERNS)
        return
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    data = next(Path(word) for word in line.split()[2:] if not word.startswith("-") and Path(word).exists())
    found = reading.column_names(folders.find(data).data[0]) or ()
    yield from ((f"{before}{part}={name}", "column") for name in found if " " not in name)


@silent
def shells(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Shells that there is a script for."""
    yield from ((name, "shell") for name in SHELLS)


@silent
def formats(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Formats of exports."""
    yield from ((name, "") for name in _known()["export.format"][0])


@silent
def backends(ctx: typer.Context, incomplete: str) -> Iterator[Answer]:
    """Where jobs can be done."""
    from hfadapt.core import registry

    yield from ((name, "") for name in registry.names("backends"))


def _general(place: str) -> str:
    """The place with any name of a domain or target as `NAME`."""
    parts = place.split(".")
    return ".".join([parts[0], ANY_NAME, *parts[2:]] if parts[0] in NAMED and len(parts) > 1 else parts)


def _below(section: str) -> Iterator[tuple[str, tuple[list[str], str]]]:
    """The next words of places in a section, once each."""
    prefix = f"{section}." if section else ""
    words = [place.removeprefix(prefix).partition(".")[0] for place in _known() if place.startswith(prefix)]
    for word in dict.fromkeys(words):
        yield word, _known().get(prefix + word, ([], ""))


@functools.cache
def _known() -> dict[str, tuple[list[str], str]]:
    """The words that each field of a recipe knows, and what it does: from the cache, else from the classes."""
    from hfadapt.core import cache
    from hfadapt.core.spec import Record

    class Words(Record):
        """Of the fields of a recipe; `made_of` tells one state of hfadapt from another."""

        made_of: str
        fields: dict[str, tuple[list[str], str]]

    path, state = cache.folder() / "completion.json", _state()
    kept = cache.read(path, Words)
    if kept is None or kept.made_of != state:
        from hfadapt.recipe.explain import words_of_fields

        kept = Words(made_of=state, fields=words_of_fields())
        cache.write(path, kept)
    return kept.fields


def _state() -> str:
    """When hfadapt's files and the folders that packages are installed to have changed last."""
    package = Path(__file__).parents[1]
    files = [*package.glob("recipe/*.py"), *package.glob("targets/*"), *(path for path in package.iterdir())]
    places = [*files, *(Path(entry) for entry in sys.path if entry)]
    stamps = [f"{path} {path.stat().st_mtime_ns}" for path in sorted(places) if path.exists()]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()
