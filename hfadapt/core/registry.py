"""The folder is the registry: tasks/, adapters/, quants/, formats/, stages/ … hold one file, or one folder, per name.

The name in a recipe is the file's with hyphens: `adapters/lora.py` is `lora`; `tasks/text_classification/task.py` is
`text-classification`. Other packages add names through the entry-point groups `hfadapt.tasks`, `hfadapt.adapters` …,
each pointing at an object that fulfils the folder's contract, which is in its `__init__`. In hfadapt's own files that
object is called `KIND`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from contextlib import suppress
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError, choice_problem

if TYPE_CHECKING:
    from hfadapt.adapters import AdapterMethod
    from hfadapt.backends import Backend
    from hfadapt.converters import Converter
    from hfadapt.formats import Format
    from hfadapt.modalities import Modality
    from hfadapt.objectives import Objective
    from hfadapt.quants import Quant
    from hfadapt.schemas import RowSchema
    from hfadapt.stages import Stage
    from hfadapt.tasks import Task

PACKAGE = Path(__file__).parents[1]
KINDS = {
    "tasks": "task",
    "schemas": "schema",
    "modalities": "modality",
    "adapters": "adapter",
    "quants": "quant",
    "formats": "format",
    "objectives": "objective",
    "stages": "stage",
    "converters": "converter",
    "backends": "backend",
}
"""The open folders, each with the word for one thing in it."""
EVERY = "*"
"""In `Stage.after`: every stage that does not itself come after this one."""


@cache
def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted; imports none of them."""
    folder = PACKAGE / kind
    paths = [*folder.glob("*.py"), *(path.parent for path in folder.glob(f"*/{KINDS[kind]}.py"))]
    own = {path.stem.replace("_", "-") for path in paths if not path.stem.startswith("_")}
    return tuple(sorted(own | set(_added(kind))))


@cache
def load(kind: str, name: str) -> Any:
    """The object behind a name; the functions below give it its type.

    Raises:
        RequestError: there is no such name.
    """
    if name not in names(kind):
        problem = choice_problem(f"there is no {KINDS[kind]} of that name", name, names(kind))
        raise RequestError(problem.what, problems=[problem])
    path = source(kind, name)
    if path:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        return importlib.import_module(module).KIND
    return _added(kind)[name].load()


def task(name: str) -> Task:
    """What is learned. Raises RequestError for an unknown name."""
    found: Task = load("tasks", name)
    return found


def schema(name: str) -> RowSchema:
    """What a prepared row looks like. Raises RequestError for an unknown name."""
    found: RowSchema = load("schemas", name)
    return found


def modality(name: str) -> Modality:
    """What rows are made of. Raises RequestError for an unknown name."""
    found: Modality = load("modalities", name)
    return found


def modality_of(task_name: str) -> Modality:
    """What the rows of a task are made of. Raises RequestError for an unknown name."""
    return modality(task(task_name).modality)


@cache
def schemas() -> tuple[RowSchema, ...]:
    """All row schemas, the one that is taken first where several fit first."""
    return tuple(sorted(map(schema, names("schemas")), key=lambda each: (each.rank, each.name)))


@cache
def row_files() -> dict[str, RowSchema]:
    """Suffixes of files that a row schema reads itself, in lower case."""
    return {suffix: each for each in schemas() for suffix in each.files}


def adapter(name: str) -> AdapterMethod:
    """How the base is adapted. Raises RequestError for an unknown name."""
    found: AdapterMethod = load("adapters", name)
    return found


def quant(name: str) -> Quant:
    """How the base is stored. Raises RequestError for an unknown name."""
    found: Quant = load("quants", name)
    return found


def format(name: str) -> Format:
    """How a finished adapter leaves the run folder. Raises RequestError for an unknown name."""
    found: Format = load("formats", name)
    return found


def objective(name: str) -> Objective:
    """What training minimises. Raises RequestError for an unknown name."""
    found: Objective = load("objectives", name)
    return found


def converter(name: str) -> Converter:
    """How another tool's configurations are read. Raises RequestError for an unknown name."""
    found: Converter = load("converters", name)
    return found


def backend(name: str) -> Backend:
    """Where the jobs of a run are done. Raises RequestError for an unknown name."""
    found: Backend = load("backends", name)
    return found


def stage(name: str) -> Stage:
    """A part of a run. Raises RequestError for an unknown name."""
    found: Stage = load("stages", name)
    return found


def stages() -> tuple[Stage, ...]:
    """All stages in the order in which they are done.

    Raises:
        RequestError: a stage needs one that there is not, or two wait for each other.
    """
    known = {name: stage(name) for name in names("stages")}
    waits: dict[str, set[str]] = {name: {*each.needs, *each.after} - {EVERY} for name, each in known.items()}
    for name, each in known.items():
        for other in each.before:
            waits.setdefault(other, set()).add(name)
        if missing := sorted(set(each.needs) - known.keys()):
            problem = choice_problem("there is no stage of that name", missing[0], known, f"stage {name}")
            raise RequestError(problem.what, problems=[problem])
    last = {name for name, each in known.items() if EVERY in each.after}
    for name in last:
        waits[name] |= known.keys() - last - {other for other in known if name in waits[other]}
    sorter = TopologicalSorter({name: sorted(waits[name] & known.keys()) for name in sorted(known)})
    try:
        return tuple(known[name] for name in sorter.static_order())
    except CycleError as error:
        raise RequestError("stages wait for each other", got=" → ".join(error.args[1])) from None


def source(kind: str, name: str) -> Path | None:
    """The file of hfadapt's own that holds a name; None for one that another package adds."""
    stem = name.replace("-", "_")
    for path in (PACKAGE / kind / f"{stem}.py", PACKAGE / kind / stem / f"{KINDS[kind]}.py"):
        if path.exists():
            return path
    return None


def about(kind: str, name: str) -> str:
    """What the file that holds a name says of it at its beginning; of hfadapt's own without importing them."""
    path = source(kind, name)
    if path is not None:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return inspect.getdoc(importlib.import_module(_added(kind)[name].module)) or ""


@cache
def made_by(kind: str, name: str) -> str:
    """Distribution, version and SHA-256 of the package that adds a name; "" for hfadapt's own."""
    entry = None if source(kind, name) else _added(kind).get(name)
    if entry is None:
        return ""
    files: list[Path] = []
    with suppress(ImportError, ValueError):
        spec = find_spec(entry.module.partition(".")[0])
        # While a package is being written its code changes and its version does not.
        files = (
            [path for place in spec.submodule_search_locations or () for path in Path(place).rglob("*.py")]
            if spec
            else []
        )
        files += [Path(spec.origin)] if spec and spec.origin and Path(spec.origin).is_file() else []
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted({*files}))).hexdigest()
    return f"{entry.dist.name} {entry.dist.version} {digest}" if entry.dist else digest


def _added(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"hfadapt.{kind}")}
