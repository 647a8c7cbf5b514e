"""Which rows go together: a pure function of (seed, epoch), so any step of any run can be made again.

Nothing here draws from a global random state; resuming, evaluating in between and the number of processes leave the
order alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hfadapt.modalities import Example
from hfadapt.tasks import Task

if TYPE_CHECKING:
    import torch

MEGA_BATCHES = 16


def epoch_batches(lengths: Sequence[int], batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch as effective batches of row numbers.

    Rows are shuffled, sorted by length within windows of 16 batches to avoid padding, and the batches shuffled again;
    every row appears once. The last batch of a window may be smaller only at the end of the epoch.
    """
    order = list(range(len(lengths)))
    shuffle = random.Random(f"{seed}/{epoch}")
    shuffle.shuffle(order)
    window = batch_rows * MEGA_BATCHES
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        if len({lengths[row] for row in rows}) > 1:
            # Rows of one length stay shuffled: in their own order those of a class may follow each other.
            rows.sort(key=lambda row: (lengths[row], row))
        batches += [rows[i : i + batch_rows] for i in range(0, len(rows), batch_rows)]
    shuffle.shuffle(batches)
    return batches


def micro_batches(rows: Sequence[int], lengths: Sequence[int], budget_tokens: int, *, padded: bool) -> list[list[int]]:
    """Rows in order, in as few micro-batches as keep within a number of tokens; a longer row stands alone.

    Args:
        lengths: Tokens of each row.
        padded: Count padding to the longest row of the micro-batch.
    """
    found: list[list[int]] = []
    tokens = longest = 0
    for row, length in zip(rows, lengths, strict=True):
        more = max(longest, length) * (len(found[-1]) + 1) if padded and found else tokens + length
        if not found or more > budget_tokens:
            found.append([])
            tokens, longest = 0, 0
        found[-1].append(row)
        tokens, longest = tokens + length, max(longest, length)
    return found


def padded(
    task: Task, examples: Sequence[Example], pad_token_id: int, device: torch.device, batch_rows: int
) -> Iterator[tuple[list[int], Mapping[str, torch.Tensor]]]:
    """All examples in batches of similar length, for scoring: positions in `examples`, and the batch on the device."""
    order = sorted(range(len(examples)), key=lambda i: (examples[i].size, i))
    for start in range(0, len(order), batch_rows):
        numbers = order[start : start + batch_rows]
        batch = task.collate([examples[i] for i in numbers], pad_token_id)
        yield numbers, {name: tensor.to(device) for name, tensor in batch.items()}
