"""Losses that are kept when training ends, and met again by the adapter that is read back from disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.data import read_split
from hfadapt.train.batches import padded

if TYPE_CHECKING:
    from hfadapt.modalities import Example
    from hfadapt.models.load import Base
    from hfadapt.run_folder import Cell

CHECK_ROWS = 64
"""Validation rows whose losses are kept."""

SAME = 1e-4
"""Largest mean difference of a row's loss between the trained adapter and the one read back, in nats."""

SAME_AFTER_CONVERSION = 0.05
"""The same, where saving moves the update from a changed base onto the original one in 16 bits."""


def check_losses(task: Any, model: Any, examples: Sequence[Example], pad: int, device: torch.device) -> list[float]:
    """Loss of each example without gradients, in a fixed batch order so that it can be met exactly again."""
    model.eval()
    with torch.inference_mode():
        scores = task.score(model, examples, lambda rows: padded(task, rows, pad, device, 16))
    return [float(loss) for loss in np.asarray(scores.losses)]


def rescored(cell: Cell, base: Base, model: Any, device: torch.device, which: str, fix: str) -> float:
    """Scores the rows that were scored when training ended.

    Args:
        base: What `model`, the adapter read back, is on.
        which: Says in the message which adapter it is, after the word.
        fix: What to do when it is another.

    Returns:
        Mean absolute difference of a row's loss, in nats.

    Raises:
        RunError: it is above the tolerance.
    """
    lock, expected = cell.lock, cell.train.check_losses
    task = registry.task(lock.task)
    rows = task.encode(
        read_split(cell.folder, "validation")[:CHECK_ROWS],
        base.tokenizer,
        max_length=lock.data.max_length,
        labels=cell.data.labels,
    )
    found = check_losses(task, model, rows, base.pad_token_id, device)
    difference = float(np.mean(np.abs(np.array(found) - np.array(expected)))) if found else 0.0
    converted = registry.adapter(lock.adapter.method).changes_base and lock.dtype != "float32"
    allowed = SAME_AFTER_CONVERSION if converted else SAME
    if not difference <= allowed:
        raise RunError(
            f"the adapter {which} does not score as the trained one did",
            place=str(cell.folder),
            got=f"mean difference of a row's loss: {difference:.3g}",
            allowed=f"at most {allowed:g}",
            fix=fix,
        )
    return difference
