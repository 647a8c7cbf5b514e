"""Evaluation, card and plots join the training's curves in its trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hfadapt.core.hashing import file_sha256
from hfadapt.records.evidence import DriftRecord
from hfadapt.records.stages import EvaluationRecord
from hfadapt.run_folder import CARD, LOCK, Cell
from hfadapt.stages import Context, Stage

FILES = (CARD, EvaluationRecord.FILE, "card.json", "plan.json", "train.json", DriftRecord.FILE, LOCK, "loss.svg")
"""Of a cell; what is not there is left out."""


class Track(Stage):
    """Nothing in the cell; figures and files in the trackers."""

    name = "track"
    title = "tracking"
    verb = "card"
    needs = ("card",)

    def wanted(self, recipe: Any) -> bool:
        """Where there are trackers."""
        return bool(recipe.train.trackers)

    def check(self, context: Context) -> None:
        """They are installed."""
        from hfadapt.train.trackers import require_trackers

        require_trackers(context.recipe.train.trackers)

    def inputs(self, cell: Cell, context: Context) -> Any:
        """Which trackers, and what they are to get."""
        paths = [cell.folder / name for name in FILES]
        sent = {path.name: file_sha256(path) for path in paths if path.is_file()}
        return [sorted(context.recipe.train.trackers), sent]

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """The leading figures and the files of each cell, with the page of the run as it stands."""
        from hfadapt.report.run_view import Run
        from hfadapt.report.write import write_report
        from hfadapt.train.trackers import FOLDER, keep, run_name

        write_report(Run(context.run.folder), context.recipe)
        for cell in cells:
            record = cell.read(EvaluationRecord)
            trained = cell.train
            prefix = f"{cell.domain}/" if trained.together else ""
            values = {f"{prefix}test/{each.name}": each.adapter for each in record.metrics if each.adapter is not None}
            paths = [cell.folder / name for name in FILES] + [context.run.folder / "report.html"]
            run = run_name(trained.together or (cell.domain,), trained.same_as or cell.target)
            files, names = [each for each in paths if each.is_file()], context.recipe.train.trackers
            for said in keep(context.run.folder / FOLDER, run, names, values, files):
                context.progress.say(f"{cell.domain}: {said}")


KIND: Stage = Track()
