"""Which cells can be trained on one base at the same time, and which would come to the same adapter."""

from __future__ import annotations

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
    return json_sha256([cell.lock.model_dump(mode="json", exclude=for_later), rows])
