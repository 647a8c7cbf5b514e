"""Pictures of a run on files: some of what was learned from, and the test rows on which the adapters err."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import Block, Sheet, Text
from hfadapt.data import pictures
from hfadapt.report.charts import CellRecords, names

MOST_ERRORS = 12
ERROR_SIDE = 96
"""Pixels of a picture's height."""

Seen = list[tuple[str, list[Block]]]
"""Names and what is to be seen."""


def learned(cells: Sequence[CellRecords]) -> Seen:
    """A contact sheet of the training rows of each domain."""
    found: dict[str, list[Block]] = {}
    for cell in cells:
        if cell.folder and cell.data and cell.report.domain not in found:
            try:
                found[cell.report.domain] = pictures.contact_sheet(cell.folder, cell.data)
            except HfadaptError as error:
                found[cell.report.domain] = [Text(str(error))]
    return [(domain, blocks) for domain, blocks in found.items() if blocks]


def errors(cells: Sequence[CellRecords]) -> Seen:
    """For each cell the test rows on which the adapter is wrong, the surest first, of numbers the farthest off."""
    called, found = names(cells), Seen()
    for cell in cells:
        if not (cell.folder and cell.data and cell.evaluation):
            continue
        captions = {
            one.split_row: f"right: {one.gold}\nadapter: {one.adapter}{_sure(one.confidence)}\n"
            f"{cell.evaluation.baseline}: {one.base}"
            for one in cell.evaluation.failures[:MOST_ERRORS]
        }
        try:
            tiles = pictures.tiles(cell.folder, "test", cell.data.form, captions, ERROR_SIDE)
        except HfadaptError as error:
            found.append((called[id(cell)], [Text(str(error))]))
            continue
        if tiles:
            first = "surest" if cell.evaluation.failures[0].confidence is not None else "farthest off"
            found.append((called[id(cell)], [Sheet(f"{called[id(cell)]}: wrong answers, the {first} first", tiles)]))
    return found


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" ({confidence:.0%})"
