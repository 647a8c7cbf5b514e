"""How a student is trained, and what that takes at most: it is as large as its base before anything was cut."""

from __future__ import annotations

from typing import Any

from hfadapt.core import registry
from hfadapt.core.show import show_bytes, show_seconds
from hfadapt.quants import PLAIN
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.schema import Adapter, Canaries, Recipe
from hfadapt.records.plan import CellPlan

RATES = ((50_000_000, 1e-4), (float("inf"), 5e-5))
"""Learning rates of whole models up to so many parameters, in 32 bits; a tenth and less of what LoRA takes."""


def learning(recipe: Recipe, parameters: int, options: dict[str, Any]) -> Recipe:
    """The recipe by which a student of so many parameters learns: whole, in float32, from the adapted model's answers.

    Args:
        options: Of its objective.
    """
    settings = recipe.student
    assert settings is not None
    rate = next(rate for most, rate in RATES if parameters <= most)
    train = {
        "objective": next(name for name in registry.names("objectives") if registry.objective(name).teaches),
        "objective_options": options,
        "epochs": settings.epochs,
        "max_steps": None if settings.epochs != "auto" else recipe.train.max_steps,
        "learning_rate": rate if settings.learning_rate == "auto" else settings.learning_rate,
        "together": False,
        "shard": False,
        "time": None,
    }
    return recipe.model_copy(
        update={
            "quant": PLAIN,
            "dtype": "float32",
            "adapter": Adapter(method="full"),
            "data": recipe.data.model_copy(update={"augment": Augment(), "canaries": Canaries(count=0)}),
            "train": recipe.train.model_copy(update=train),
            "pretrain": None,
            "student": None,
            "search": None,
        }
    )


def said(cell: CellPlan, tries: int) -> str:
    """What the plan of a student's training takes, for a reader.

    Args:
        cell: Of a model as large as the base.
        tries: Shapes that are trained for a while before.
    """
    peak = show_bytes(max(phase.total_bytes for phase in cell.memory))
    time = f" and {show_seconds(cell.predicted_seconds)}" if cell.predicted_seconds else ""
    before = f", and up to {tries} shapes for a quarter of that before" if tries > 1 else ""
    return (
        f"training the student on {cell.trains_on} takes at most {peak}{time}, as a model as large as the base{before}"
    )
