"""The rows of a cell, as they were prepared for all domains at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.data.fit import fits
from hfadapt.data.rows import SPLITS
from hfadapt.records.stages import DataRecord
from hfadapt.run_folder import Cell, is_whole
from hfadapt.stages import Context, Section, Stage


class Prepare(Stage):
    """Splits, dropped rows and data.json.

    Its result depends on the rows of the splits alone, so that another domain in the recipe leaves finished cells as
    they are unless it takes rows from them.
    """

    name = "prepare"
    title = "data preparation"
    records = (DataRecord,)
    card = (Section("Data"), Section("Licence"), Section("Sources to cite"))

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The rows; where the plan changes those of the cell, also what that depends on.

        It takes out those that are too long, and fits chats and long texts to the model.
        """
        recipe = context.recipe_of(cell)
        thinned = recipe.data.too_long == "drop"
        form = context.prepared[cell.domain].record.form
        task = registry.task(recipe.task)
        asked: Any = [recipe.model, list(recipe.data.allow)] if fits(task, form) else None
        if form in task.fits:
            asked = [*asked, recipe.data.max_length]
        if thinned:
            asked = recipe.without_notes().model_dump(mode="json", exclude={"evaluate"})
        return [context.rows_of(cell.domain), asked]

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The splits lie beside the record."""
        paths = [cell.folder / "data" / f"{split}.parquet" for cell in cells for split in SPLITS]
        return super().intact(cells, context) and all(is_whole(path) for path in paths)

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Copies them out of the cache."""
        for cell in cells:
            context.prepared[cell.domain].copy_into(cell.folder)


KIND: Stage = Prepare()
