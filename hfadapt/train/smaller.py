"""Training for which memory ran out goes on from its checkpoint with half the rows at a time, twice at most.

The effective batch, and so what is learned, stays the same. How often it happened is what lies between the rows of the
plan and those of the lock, so that a training that is interrupted meanwhile knows it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hfadapt.core.progress import Progress
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.hardware.processes import World
from hfadapt.run_folder import Cell

HALVINGS = 2
Result = TypeVar("Result")


def halvings(cell: Cell) -> int:
    """How often the rows that go through the model at once were halved since the plan."""
    planned, now = cell.plan.cells[0].value("train.micro_batch_rows"), cell.lock.train.micro_batch_rows
    return int(max(1, planned // now).bit_length() - 1)


def with_less(cells: Sequence[Cell], world: World, progress: Progress, work: Callable[[], Result]) -> Result:
    """Does the work, and where memory runs out does it again with less at a time.

    Args:
        cells: Whose locks say how many rows go through the model at once.
        work: Reads the locks and goes on from the newest checkpoint. Among several processes it is done once: the
            others wait for the one that failed, and their launcher ends them.

    Raises:
        what `work` raises, where memory is not what is missing or there is nothing left to halve.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if world.size > 1 or not is_out_of_memory(error) or not _halve(cells):
                raise
        # Only out of the clause above are the error, its frames and the model in them gone.
        who, rows = ", ".join(dict.fromkeys(cell.domain for cell in cells)), cells[0].lock.train.micro_batch_rows
        several = "s" if rows > 1 else ""
        progress.say(
            f"out of memory: {who} goes on from the last checkpoint with {rows} row{several} at a time, "
            "as many a step as before"
        )


def _halve(cells: Sequence[Cell]) -> bool:
    """Whether there was something to halve in the locks."""
    locks = {cell: cell.lock for cell in cells}
    if any(lock.train.micro_batch_rows < 2 or halvings(cell) >= HALVINGS for cell, lock in locks.items()):
        return False
    for cell, lock in locks.items():
        fewer = {"micro_batch_rows": lock.train.micro_batch_rows // 2}
        changed: dict[str, Any] = {"train": lock.train.model_copy(update=fewer)}
        if lock.pretrain is not None:
            pretrain_rows = max(1, lock.pretrain.micro_batch_rows // 2)
            changed["pretrain"] = lock.pretrain.model_copy(update={"micro_batch_rows": pretrain_rows})
        cell.save_lock(lock.model_copy(update=changed))
    return True
