"""The folder is the registry: tasks/, adapters/, quants/ and formats/ each hold one file per name.

The name in a recipe is the file's name with hyphens (`text_classification.py` is `text-classification`). Other
packages add names through the entry-point groups `hfadapt.tasks`, `hfadapt.adapters`,
`hfadapt.quants` and `hfadapt.formats`, each pointing at an object that fulfils that folder's contract.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hfadapt.core.errors import RequestError, choice_problem

PACKAGE = Path(__file__).parents[1]
KINDS = ("tasks", "adapters", "quants", "formats")


@cache
def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted; imports none of them."""
    folder = PACKAGE / kind
    paths = [*folder.glob("*.py"), *(path.parent for path in folder.glob(f"*/{kind.rstrip('s')}.py"))]
    own = {path.stem.replace("_", "-") for path in paths if not path.stem.startswith("_")}
    return tuple(sorted(own | {entry.name for entry in entry_points(group=f"hfadapt.{kind}")}))


@cache
def load(kind: str, name: str) -> Any:
    """The object behind a name: the single public instance `KIND` in its module.

    Raises:
        RequestError: there is no such name.
    """
    if name not in names(kind):
        problem = choice_problem(f"there is no {kind.rstrip('s')} of that name", name, names(kind))
        raise RequestError(problem.what, problems=[problem])
    path = source(kind, name)
    if path:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        return importlib.import_module(module).KIND
    return next(entry for entry in entry_points(group=f"hfadapt.{kind}") if entry.name == name).load()


def source(kind: str, name: str) -> Path | None:
    """The file of hfadapt's own that holds a name: `NAME.py`, or `NAME/KIND.py` where it needs more than one file."""
    stem = name.replace("-", "_")
    for path in (PACKAGE / kind / f"{stem}.py", PACKAGE / kind / stem / f"{kind.rstrip('s')}.py"):
        if path.exists():
            return path
    return None
