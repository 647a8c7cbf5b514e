"""Which cells can be trained on one base at the same time, and which would come to the same adapter."""

from __future__ import annotations

import shutil
from collections.abc import Set
from typing import Any

from hfadapt.core.hashing import json_sha256, kept_sha256
from hfadapt.models.base import BaseRef
from hfadapt.run_folder import Cell


def can_share(one: Cell, other: Cell) -> bool:
    """Whether two cells can be trained on one base at the same time."""
    mine, theirs = one.lock, other.lock
    same = BaseRef.of(mine).key == BaseRef.of(theirs).key and all(
        getattr(mine, name) == getattr(theirs, name) for name in ("task", "quant", "dtype", "processes")
    )
    alike = (
        mine.train.checkpointing == theirs.train.checkpointing
        and mine.train.fast.without == theirs.train.fast.without
        and mine.train.fast.bfloat16 == theirs.train.fast.bfloat16
        and mine.data.packing == theirs.data.packing
        and mine.adapter.method == theirs.adapter.method
        and mine.train.seed == theirs.train.seed
    )
    return one.target == other.target and same and alike and one.data.labels == other.data.labels


def learned_from(cell: Cell) -> str:
    """SHA-256 of all that decides what the training of a planned cell comes to."""
    for_later = {"targets", "budgets", "evaluate", "export", "student"}
    rows = [kept_sha256(cell.folder / "data" / f"{split}.parquet") for split in ("train", "validation")]
    return json_sha256([settled(cell, for_later), rows])


def settled(cell: Cell, without: Set[str]) -> dict[str, Any]:
    """The lock of a cell without some sections, as it is wherever the cell lies: of a base that a stage made its hash
    tells all, and its folder is the cell's own."""
    found: dict[str, Any] = cell.lock.model_dump(mode="json", exclude={*without})
    if found.get("base"):
        del found["base"]["folder"]
    return found


def take_training(cell: Cell, other: Cell) -> None:
    """Gives a cell what the training of another target came to, as its own would."""
    ready = cell.adapter.with_name(f".{cell.adapter.name}.tmp")
    for each in (ready, cell.adapter):
        shutil.rmtree(each, ignore_errors=True)
    shutil.copytree(other.adapter, ready)
    ready.rename(cell.adapter)
    shutil.copy(other.folder / "metrics.jsonl", cell.folder / "metrics.jsonl")
    record = other.train
    cell.write(record.model_copy(update={"target": cell.target, "same_as": record.same_as or other.target}))
