"""Room on the disk that a cell takes in its run folder, beside its rows."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.plan.memory.predict import OPTIMIZER_BYTES
from hfadapt.records.plan import PlannedExport

KEPT = 2
"""Checkpoints that stay; a third one is written before the oldest goes."""
SINGLE = 4
"""Bytes of a trained parameter: they are kept in 32 bits."""


def checkpoint_bytes(trained: int, optimizer: str) -> int:
    """Of all checkpoints that there are at once, for so many trained parameters."""
    return (KEPT + 1) * int(trained * (SINGLE + OPTIMIZER_BYTES[optimizer]))


def disk_bytes(trained: int, optimizer: str, parameters: int, exports: Sequence[PlannedExport]) -> dict[str, int]:
    """By part.

    Args:
        parameters: Of the whole model, which is merged in 32 bits before it is exported.
        exports: The forms that may be written.
    """
    found = {"checkpoints": checkpoint_bytes(trained, optimizer), "adapter": trained * SINGLE}
    if exports:
        found["export"] = max(each.bytes for each in exports) + parameters * SINGLE
    return found
