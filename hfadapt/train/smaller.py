"""Training for which memory ran out goes on from its checkpoint with half the rows at a time, twice at most.

The effective batch, and so what is learned, stays the same. How often it happened is what lies between the rows of the
plan and those of the lock, so that a training that is interrupted meanwhile knows it too, and so that of several
processes, which their launcher ends and starts again together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hfadapt.core.progress import Progress
from hfadapt.hardware.peak_memory import OneOfSeveral, is_out_of_memory
from hfadapt.hardware.processes import World
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock

HALVINGS = 2
Result = TypeVar("Result")


def halvings(cell: Cell, processes: int) -> int:
    """How often the rows that go through the model at once were halved since the plan."""
    lock = cell.lock
    planned = _at_once(cell.plan.cells[0].value("train.micro_batch_rows"), lock, processes)
    return int(max(1, planned // lock.train.micro_batch_rows).bit_length() - 1)


def _at_once(rows: int, lock: Lock, processes: int) -> int:
    """No process has more rows than its share of a batch."""
    return min(rows, -(-lock.train.batch_rows // processes))


def with_less(cells: Sequence[Cell], world: World, progress: Progress, work: Callable[[], Result]) -> Result:
    """Does the work, and where memory runs out does it again with less at a time.

    Args:
        cells: Whose locks say how many rows go through the model at once.
        work: Reads the locks and goes on from the newest checkpoint. Among several processes it is done once: the
            others wait in a step for the one that failed, so that it has to end, and the launcher ends them all.

    Raises:
        what `work` raises, where memory is not what is missing, there is nothing left to halve, or several processes
        have to start again.
    """
    while True:
        locks = {cell: cell.lock for cell in cells}
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error) or not _halve(locks, world.size):
                raise
            who, rows = ", ".join(dict.fromkeys(cell.domain for cell in cells)), cells[0].lock.train.micro_batch_rows
            several = "s" if rows > 1 else ""
            goes_on = f"goes on from the last checkpoint with {rows} row{several} at a time, as many a step as before"
            if world.size > 1:
                again = f"the same command {goes_on}; torchrun --max-restarts {HALVINGS} gives it by itself"
                raise OneOfSeveral(f"{who}: out of memory in one of {world.size} processes; {again}") from error
        # Only out of the clause above are the error, its frames and the model in them gone.
        progress.say(f"out of memory: {who} {goes_on}")


def _halve(locks: Mapping[Cell, Lock], processes: int) -> bool:
    """Whether there was something to halve in the locks, as they were read: two processes that are short of memory at
    the same time write the same."""
    rows = {cell: _at_once(lock.train.micro_batch_rows, lock, processes) for cell, lock in locks.items()}
    if any(count < 2 or halvings(cell, processes) >= HALVINGS for cell, count in rows.items()):
        return False
    for cell, lock in locks.items():
        fewer = {"micro_batch_rows": rows[cell] // 2}
        changed: dict[str, Any] = {"train": lock.train.model_copy(update=fewer)}
        if lock.pretrain is not None:
            pretrain_rows = max(1, lock.pretrain.micro_batch_rows // 2)
            changed["pretrain"] = lock.pretrain.model_copy(update={"micro_batch_rows": pretrain_rows})
        cell.save_lock(lock.model_copy(update=changed))
    return True
