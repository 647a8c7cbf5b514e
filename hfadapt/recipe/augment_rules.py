"""Which changes of training rows a task's modality knows."""

from __future__ import annotations

from collections.abc import Mapping

from hfadapt.core import registry
from hfadapt.recipe.words import dig, dotted
from hfadapt.recipe.yaml_lines import Tree


def check_augment(tree: Tree) -> None:
    """Changes of another kind of rows would do nothing."""
    task, asked = dig(tree, ("task",)), dig(tree, ("data", "augment"))
    if not isinstance(task, str) or task not in registry.names("tasks") or not isinstance(asked, Mapping):
        return
    kind = registry.modality(registry.task(task).modality)
    others = {name for each in registry.names("modalities") for name in registry.modality(each).operations}
    for name, share in asked.items():
        if name in others - {*kind.operations} and isinstance(share, (int, float)) and share:
            at = ("data", "augment", name)
            tree.report(
                at,
                f"rows of {task} are not changed so",
                got=f"{dotted(at)}: {share}, {task} is about {kind.name}",
                allowed=", ".join(kind.operations),
                fix=f"delete `{dotted(at)}`",
            )
