"""What is minimised: whether it fits the task, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from hfadapt.core import registry
from hfadapt.core.errors import nearest
from hfadapt.recipe.words import dig, show
from hfadapt.recipe.yaml_lines import Tree


def objective_of(tree: Tree) -> str:
    """What is minimised: what the recipe says, else what its task learns by."""
    task = dig(tree, ("task",))
    own = registry.task(task).objective if isinstance(task, str) and task in registry.names("tasks") else "supervised"
    return str(dig(tree, ("train", "objective")) or own)


def check_objective(tree: Tree) -> None:
    """It must fit the rows of the task, and options must be those that it knows."""
    task, given = dig(tree, ("task",)), dig(tree, ("train", "objective_options"))
    options = given if isinstance(given, Mapping) else {}
    task = registry.task(task) if isinstance(task, str) and task in registry.names("tasks") else None
    name = objective_of(tree)
    if name not in registry.names("objectives"):
        return
    if task is not None and registry.objective(name).whole_rows != task.whole_rows:
        able = [each for each in registry.names("tasks") if registry.task(each).objective == name]
        tree.report(
            ("train", "objective"),
            f"the objective {name} does not learn from rows of {task.name}",
            got=f"train.objective: {name} with task: {task.name}",
            allowed=task.objective,
            fix="delete `train.objective`" + (f", or use task: {able[0]}" if able else ""),
        )
        return
    known = registry.objective(name).Options
    fields = tuple(known.model_fields)
    try:
        known.model_validate(dict(options))
    except ValidationError as error:
        for fault in error.errors():
            option = str(fault["loc"][0])
            unknown, close = option not in fields, nearest(option, fields)
            tree.report(
                ("train", "objective_options", *((option,) if option in options else ())),
                f"the objective {name} has no such option" if unknown else f"the objective {name}: {fault['msg']}",
                got=f"{option}: {show(options[option])}" if option in options else "nothing",
                allowed=", ".join(fields) or "no options",
                fix=f"did you mean {close!r}?" if unknown and close else f"correct `{option}`",
            )
