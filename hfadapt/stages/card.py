"""The card of a cell, made from its records once all of them are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hfadapt import __version__
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.recipe.schema import NOTES
from hfadapt.records.stages import CardRecord
from hfadapt.run_folder import CARD, Cell
from hfadapt.stages import Context, Stage


class CardStage(Stage):
    """README.md, card.json and loss.svg."""

    name = "card"
    title = "model card"
    needs = ("evaluate",)
    after = (registry.EVERY,)
    version = __version__
    records = (CardRecord,)

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The records of all other stages, and the recipe's notes."""
        kinds = [kind for stage in registry.stages() for kind in (*stage.records, *stage.may_write)]
        paths = [cell.folder / kind.FILE for kind in kinds if kind not in self.records and cell.has(kind)]
        domain = context.recipe.domains[cell.domain]
        notes = {name: value for name in NOTES if (value := getattr(domain, name))}
        return {**{path.name: file_sha256(path) for path in paths}, **notes}

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The card itself lies beside its record and beside the adapter, to its last line."""
        return super().intact(cells, context) and not any(map(_is_cut_off, cells))

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Writes it, and runs its loading snippet."""
        from hfadapt.card.build import build_card

        for cell in cells:
            renew_notes(cell, context)
            build_card(cell)


def renew_notes(cell: Cell, context: Context) -> None:
    """Brings what the recipe notes of the sources into the records of a cell, which are not made again for that."""
    lock, notes = cell.lock, {name: getattr(context.recipe.domains[cell.domain], name) for name in NOTES}
    domain = lock.domains[cell.domain].model_copy(update=notes)
    if domain != lock.domains[cell.domain]:
        cell.save_lock(lock.model_copy(update={"domains": {**lock.domains, cell.domain: domain}}))
    prepared = context.prepared.get(cell.domain)
    if prepared is not None and prepared.record.sources != cell.data.sources:
        cell.write(cell.data.model_copy(update={"sources": prepared.record.sources}))


def _is_cut_off(cell: Cell) -> bool:
    from hfadapt.card.build import is_cut_off

    try:
        return any(is_cut_off(folder / CARD, cell.folder) for folder in (cell.folder, cell.adapter))
    except RunError:
        return True  # what a record lacks is said when the card is made


KIND: Stage = CardStage()
