"""Which changes of training rows a task knows, and what they exclude."""

from __future__ import annotations

from collections.abc import Mapping

from hfadapt.core import registry
from hfadapt.recipe.objective_rules import objective_of
from hfadapt.recipe.words import dig, dotted
from hfadapt.recipe.yaml_lines import Tree


def check_augment(tree: Tree) -> None:
    """Changes of another kind of rows would do nothing."""
    task, asked = dig(tree, ("task",)), dig(tree, ("data", "augment"))
    if not isinstance(task, str) or task not in registry.names("tasks") or not isinstance(asked, Mapping):
        return
    learner = registry.task(task)
    kind = registry.modality(learner.modality)
    known = [*kind.operations, *(kind.mixtures if learner.soft_labels else ())]
    given = {name: share for name, share in asked.items() if isinstance(share, (int, float)) and share}
    for name in given.keys() & _all_names() - {*known}:
        at = ("data", "augment", name)
        why = f"what {task} learns cannot be blended" if name in kind.mixtures else f"{task} is about {kind.nouns}"
        tree.report(
            at,
            f"rows of {task} are not changed so",
            got=f"{dotted(at)}: {given[name]}, {why}",
            allowed=", ".join(known),
            fix=f"delete `{dotted(at)}`",
        )
    fast = ("train", "fast", "frozen_cache")
    if given.keys() & _all_names() and dig(tree, fast) is True:
        tree.report(
            ("data", "augment"),
            "rows that change with every epoch have no outputs of frozen layers that could be kept",
            got=f"{dotted(fast)}: true beside data.augment",
            allowed="one of the two",
            fix="delete `train.fast.frozen_cache`, or `data.augment`",
        )
    objective = objective_of(tree)
    if given and objective in registry.names("objectives") and registry.objective(objective).knows:
        tree.report(
            ("data", "augment"),
            f"the objective {objective} learns from what was said of the rows as they are",
            got=f"train.objective: {objective} beside data.augment",
            allowed="one of the two",
            fix="delete `data.augment`",
        )


def _all_names() -> set[str]:
    """The changes that some kind of rows knows."""
    kinds = [registry.modality(each) for each in registry.names("modalities")]
    return {name for kind in kinds for name in (*kind.operations, *kind.mixtures)}
