"""What can be tried while training, and what says the same twice."""

from __future__ import annotations

from collections.abc import Mapping

from hfadapt.recipe.names import AUTO, FIND
from hfadapt.recipe.rules import is_lock
from hfadapt.recipe.schema import Adapter, Data, Train
from hfadapt.recipe.search import PLACES, Search
from hfadapt.recipe.words import dig, dotted, show
from hfadapt.recipe.yaml_lines import Tree

SHARED = {
    "schedule": "all tries are compared at a constant rate",
    "time": "all tries are compared after as many steps",
    "method": "all tries are adapters of one method on one base",
}
"""Why a setting cannot be tried, where it is not that all tries see the same rows."""
SAME_ROWS = "all tries see the same rows in the same order, side by side on one base"


def check_tried(tree: Tree) -> None:
    """Settings that all tries have alike; to be called before the recipe is validated, which knows no reasons."""
    asked = dig(tree, ("search",))
    others = {*Train.model_fields, *Adapter.model_fields, *Data.model_fields} - {*Search.model_fields}
    for name in [key for key in asked if key in others] if isinstance(asked, Mapping) else ():
        tree.report(
            ("search", name),
            f"`{name}` cannot be tried: {SHARED.get(name, SAME_ROWS)}",
            got=f"{name}: {show(asked[name])}",
            allowed=", ".join(PLACES),
            fix="delete it; to compare such settings, make a run for each",
            final=True,
        )


def check_search(tree: Tree) -> None:
    """A setting has one value or several, and training ends after a number of steps or a time."""
    if is_lock(tree):
        return  # which answers every field
    asked, rate = dig(tree, ("search",)), dig(tree, ("train", "learning_rate"))
    lists = [name for name in PLACES if asked.get(name)] if isinstance(asked, Mapping) else []
    for name in lists:
        given = dig(tree, at := tuple(PLACES[name].split(".")))
        if given not in (None, AUTO):
            tree.report(
                ("search", name),
                f"the values to try are said twice: here and in `{dotted(at)}`",
                got=f"{PLACES[name]}: {show(given)}, search.{name}: {show(asked[name])}",
                allowed="one of the two",
                fix=f"delete `{dotted(at)}`",
            )
    if isinstance(asked, Mapping) and not lists and rate != FIND:
        tree.report(
            ("search",),
            "there is nothing to try",
            got=show(asked),
            allowed=f"lists of {', '.join(PLACES)}",
            fix="add some, such as rank: [8, 32], or write train: {learning_rate: find}",
        )
    time, steps = (dig(tree, ("train", name)) for name in ("time", "max_steps"))
    if time is not None and steps is not None:
        tree.report(
            ("train", "time"),
            "the end of training is said twice",
            got=f"time: {show(time)}, max_steps: {show(steps)}",
            allowed="one of the two",
            fix="delete one of them",
        )
