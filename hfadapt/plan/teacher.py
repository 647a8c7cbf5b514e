"""What a teacher takes beside the model that learns from it: it answers all rows once, before step 1."""

from __future__ import annotations

from contextlib import suppress

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import show_bytes, show_seconds
from hfadapt.models.facts import ModelFacts, model_facts
from hfadapt.plan.reasons import Work
from hfadapt.recipe.schema import Recipe
from hfadapt.records.plan import CellPlan

WIDE = 4
"""Bytes of a parameter, where it is not held in 16 bits."""


def with_teacher(cell: CellPlan, recipe: Recipe, facts: ModelFacts, work: Work) -> CellPlan:
    """With the memory and time in words, where another model is asked and what it is can be known."""
    with suppress(HfadaptError):
        # What cannot be a teacher is said by the objective's own check.
        said = _said(cell, recipe, facts, work)
        return cell.model_copy(update={"warnings": (*cell.warnings, said)}) if said else cell
    return cell


def _said(cell: CellPlan, recipe: Recipe, facts: ModelFacts, work: Work) -> str | None:
    objective = registry.objective(recipe.train.objective)
    ref = objective.asked(objective.Options.model_validate(recipe.train.objective_options))
    if ref is None:
        return None
    other = model_facts(ref.location, recipe.task, max(1, work.labels))
    each = 2 if ref.dtype.endswith("16") else WIDE
    # The model that learns lies there as when it is evaluated.
    own = next(phase.total_bytes for phase in cell.memory if phase.phase == "evaluate")
    most = own + each * other.parameters
    room = f", more than the {show_bytes(cell.budget_bytes)} there are" if most > cell.budget_bytes else ""
    time = ""
    if cell.predicted_seconds and work.rows:
        steps, rows = recipe.train.max_steps, cell.value("train.batch_rows")
        learned = steps * rows if steps else cell.value("train.epochs") * work.rows
        # A forward pass is a third of what it costs to learn from a row.
        share = (work.rows + work.validation_rows) / (3 * max(1.0, learned)) * other.parameters / facts.parameters
        time = f", and {show_seconds(share * cell.predicted_seconds)} more"
    return (
        f"the teacher ({ref.model}, {other.parameters / 1e6:,.1f} M parameters) answers all rows once before step 1: "
        f"about {show_bytes(most)}{room}, both models counted{time}"
    )
