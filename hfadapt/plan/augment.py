"""Which changes of training rows `data.augment: auto` tries, and where it tries none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hfadapt.core import registry
from hfadapt.recipe.schema import Recipe
from hfadapt.records.augment import named

MOST_ROWS = 1000
"""With more training rows changes are left out: what they gain falls with the rows (of texts from 3.0 points with 500
rows to 0.8 with all, Wei and Zou 2019, arXiv 1901.11196), and what a trial costs grows with them."""
SEEDS = 3
"""Each setting is trained with as many, unless it is worse with one of them before."""
MOST_STEPS = 300
"""A trial lasts as long as the training, and at most so many steps."""

Shares = Mapping[str, float]


def to_try(recipe: Recipe, rows: int | None, labels: Sequence[str]) -> tuple[list[Shares], str]:
    """The settings that are compared with no change, and why these, or why none.

    Args:
        rows: Training rows; None where they were not counted yet.
        labels: The classes.
    """
    task = registry.task(recipe.task)
    kind = registry.modality(task.modality)
    if recipe.train.fast.frozen_cache is True:
        return [], "train.fast.frozen_cache keeps outputs of rows that are the same in every epoch"
    if rows is not None and rows > MOST_ROWS:
        return [], f"{rows:,} training rows are more than {MOST_ROWS:,}: changes of them gain little"
    if registry.objective(recipe.train.objective).knows:
        return [], f"the objective {recipe.train.objective} learns from what was said of the rows as they are"
    known = {*kind.operations, *(kind.mixtures if task.soft_labels else ())}
    found: list[Shares] = []
    for setting in kind.trials:
        safe = {name: share for name, share in setting.items() if name in known and not kind.mislabels(name, labels)}
        found += [safe] if safe and safe not in found else []
    if not found:
        return [], f"{kind.nouns} have no changes that could be tried"
    names = " | ".join(named(dict(each)) for each in found)
    few = f"{MOST_ROWS:,} training rows or fewer" if rows is None else f"{rows:,} training rows are few"
    most = SEEDS * (1 + len(found))
    return found, f"{few}: off | {names} are tried before training, in at most {most} short trainings"
