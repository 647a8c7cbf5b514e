"""Every adapter of the run on every domain's test rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hfadapt.recipe.schema import Recipe
from hfadapt.records.evidence import TransferRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import scoring_seconds


class Transfer(Stage):
    """transfer.json of the run, and in each cell the row of its adapter."""

    name = "transfer"
    title = "cross-domain evaluation"
    verb = "evaluate"
    needs = ("evaluate",)
    scope = "run"
    distributed = True
    may_write = (TransferRecord,)
    gates = ("transfer",)
    card = (Section("Other domains and general text"),)

    def wanted(self, recipe: Recipe) -> bool:
        """`evaluate.transfer`."""
        return recipe.evaluate.transfer

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The evaluations of all cells that are in the matrix."""
        known = {(each.domain, each.target): each.state.stages.get("evaluate") for each in context.all_cells}
        return sorted([*names, known[names]] for names in known if known[names])

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """There is a matrix where a target has two evaluated cells."""
        several = any(count > 1 for count in Counter(cell.target for cell in cells).values())
        rows = all(cell.holds(TransferRecord) for cell in cells if cell.has(TransferRecord))
        return rows and (context.run.transfer is not None or not several)

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Scores what has changed."""
        from hfadapt.evaluate.transfer import write_transfer

        write_transfer(context.run.folder, cells, context.world, context.progress)

    def seconds(self, cell: Cell) -> float | None:
        """About as for one other domain."""
        return scoring_seconds(cell, 1, 3.0)

    def missed(self, cell: Cell, context: Context) -> Sequence[str]:
        """Gains on other domains below the gate on `transfer`."""
        from hfadapt.evaluate.transfer import transfer_gates

        record = context.run.transfer
        message = transfer_gates(record, [cell]).get((cell.domain, cell.target)) if record else None
        return [message] if message else []


KIND: Stage = Transfer()
