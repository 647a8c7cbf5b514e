"""Brings a cell's rows to what its model can be taught: once the model, and with it the tokenizer, is known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.rows import SPLITS, Dropped
from hfadapt.data.split_files import RECORD, read_split, rewrite
from hfadapt.files.places import Place, name_rows
from hfadapt.records.stages import DataRecord
from hfadapt.schemas import Unusable
from hfadapt.tasks import Task

STEP = "fit"
"""The step in data.json, where one chat or long text became several rows: how many did, and how many rows they are."""


def fits(task: Task, form: str) -> bool:
    """Whether rows of a schema are brought to what the model can be taught."""
    return registry.schema(form).chat or form in task.fits


def fit(
    cell_folder: Path, task: Task, tokenizer: Any, *, max_length: int | None = None, drop_refused: bool = False
) -> DataRecord:
    """Makes each row of a cell the rows as which the task learns it, and leaves out those that it cannot learn.

    A second call changes nothing.

    Args:
        max_length: The most tokens of a row, where longer ones may be divided.
        drop_refused: Leave out rows that cannot be encoded, instead of keeping them for the audit to name.

    Raises:
        RunError: the cell has no prepared data.
        DataError: a split would be empty.
    """
    record = DataRecord.read(cell_folder / RECORD)
    if not fits(task, record.form):
        return record
    kept: dict[str, list[dict[str, Any]]] = {}
    dropped: list[dict[str, Any]] = []
    parted: Counter[str] = Counter()
    for split in SPLITS:
        rows, lost = read_split(cell_folder, split), len(dropped)
        kept[split] = []
        for row in rows:
            try:
                fitted = task.fitted(row, tokenizer, max_length)
            except Unusable as fault:
                dropped.append(_dropped(row, fault.reason, fault.detail))
                continue
            except DataError as error:
                if drop_refused:
                    dropped.append(_dropped(row, "refused", f": {error.what}"))
                    continue
                fitted = [row]
            kept[split].extend(map(dict, fitted))
            if len(fitted) > 1:
                parted.update(parted=1, rows=len(fitted))
        if rows and not kept[split]:
            first = dropped[lost]
            raise DataError(
                f"no row of the {split} split can be learned by this model",
                place=name_rows(map(Place.of, rows)),
                got=f"{first['reason']}, such as {first['detail']}",
                fix="use a model whose chat template takes these rows, or other rows",
            )
    if parted:
        record = record.model_copy(update={"steps": {**record.steps, STEP: dict(parted)}})
    return rewrite(cell_folder, record, kept, dropped) if dropped or parted else record


def _dropped(row: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    return Dropped(Place.of(row), reason, detail=detail).as_json()
