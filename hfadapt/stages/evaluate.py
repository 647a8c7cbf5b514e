"""Every adapter against its baseline, from the files in its cell."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from hfadapt.core.hashing import kept_sha256
from hfadapt.core.spec import Record
from hfadapt.data.rows import SPLITS
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
            if not context.world.on_main(lambda cell=cell: self._taken(cell, context)):  # type: ignore[misc]
                evaluate_cell(cell, context.world, context.progress, context.recipe_folder)

    def _taken(self, cell: Cell, context: Context) -> bool:
        """Takes what was found for another target with the same adapter, where the rows and settings are the same."""
        other = next((each for each in context.cells if self._is_same(cell, each, context)), None)
        if other is None:
            return False
        if not take_evaluation(cell, other):
            return False
        context.progress.say(
            f"{cell.domain} on {cell.target}: the evaluation of {other.target} is taken, which has the same adapter, "
            "rows and settings"
        )
        return True

    def _is_same(self, cell: Cell, other: Cell, context: Context) -> bool:
        """Whether another cell has been evaluated as this one would be."""
        return (
            (other.domain, other.target != cell.target) == (cell.domain, True)
            and other.state.stages.get(self.name) == context.hashes(other)[self.name]
            and self.intact([other], context)
            and (other.train.same_as or other.target) == (cell.train.same_as or cell.target)
            and scores_alike(cell, other)
        )

    def seconds(self, cell: Cell) -> float | None:
        """Baseline and adapter are scored, the adapter also on changed rows; latency is measured."""
        return scoring_seconds(cell, 6, 10.0)

    def missed(self, cell: Cell, context: Context) -> Sequence[str]:
        """Gains below `evaluate.gates`."""
        return cell.evaluation.gates_failed


def scores_alike(cell: Cell, other: Cell) -> bool:
    """Whether the evaluation of one is that of the other: the same files, rows and settings."""
    return other.manifest.files == cell.manifest.files and _scored_by(other) == _scored_by(cell)


def _scored_by(cell: Cell) -> list[object]:
    """What decides the scores of an adapter."""
    from hfadapt.train.sharing import settled

    lock = settled(cell, {"targets", "budgets", "export", "student"})
    return [lock, *(kept_sha256(cell.folder / "data" / f"{split}.parquet") for split in SPLITS)]


def take_evaluation(cell: Cell, other: Cell) -> bool:
    """Gives a cell the evaluation of another target, unless that lacks forms which this target can hold."""
    records: list[Record] = [other.evaluation.model_copy(update={"target": cell.target})]
    if other.has(SecurityRecord):
        records.append(other.read(SecurityRecord).model_copy(update={"target": cell.target}))
    if other.has(DriftRecord):
        from hfadapt.evaluate.drift import on_target

        drift = on_target(other.read(DriftRecord), cell.lock)
        if drift is None:
            return False
        records.append(drift)
    for kind in (SecurityRecord, DriftRecord):
        (cell.folder / kind.FILE).unlink(missing_ok=True)
    shutil.copy(other.folder / PREDICTIONS, cell.folder / PREDICTIONS)
    for record in reversed(records):
        cell.write(record)
    return True


KIND: Stage = Evaluate()
