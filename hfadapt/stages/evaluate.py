"""Every adapter against its baseline, from the files in its cell."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.recipe.schema import Recipe
from hfadapt.records.evidence import DriftRecord, SecurityRecord
from hfadapt.records.stages import EvaluationRecord
from hfadapt.run_folder import PREDICTIONS, Cell, is_whole
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import renew_evaluation, scoring_seconds


class Evaluate(Stage):
    """evaluation.json and predictions.parquet; security.json and drift.json where they are asked for."""

    name = "evaluate"
    title = "evaluation"
    needs = ("train",)
    settings = ("evaluate",)
    records = (EvaluationRecord,)
    may_write = (SecurityRecord, DriftRecord)
    phases = ("evaluate",)
    distributed = True
    card = (
        Section("Evaluation"),
        Section("Efficiency"),
        Section("Merging and storage"),
        Section("Limits"),
        Section("Robustness"),
        Section("Privacy"),
    )

    def check_recipe(self, recipe: Recipe) -> None:
        """The metrics that are asked for are such as the task's rows have."""
        from hfadapt.evaluate.metrics.rows import require_possible

        require_possible(recipe)

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The predictions lie beside the records."""
        return super().intact(cells, context) and all(is_whole(cell.folder / PREDICTIONS) for cell in cells)

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Scores baseline and adapter."""
        from hfadapt.evaluate.cell import evaluate_cell

        for cell in cells:
            context.world.on_main(lambda cell=cell: renew_evaluation(cell, context))  # type: ignore[misc]
            evaluate_cell(cell, context.world, context.progress, context.recipe_folder)

    def seconds(self, cell: Cell) -> float | None:
        """Baseline and adapter are scored, the adapter also on changed rows; latency is measured."""
        return scoring_seconds(cell, 6, 10.0)

    def missed(self, cell: Cell, context: Context) -> Sequence[str]:
        """Gains below `evaluate.gates`."""
        return cell.evaluation.gates_failed


KIND: Stage = Evaluate()
