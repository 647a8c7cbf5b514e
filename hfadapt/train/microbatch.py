"""Micro-batches: rows of one adapter or of several that go through the model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hfadapt.fast import Documents, packed_rows, padded_rows
from hfadapt.modalities import Example
from hfadapt.objectives import KNOWN
from hfadapt.tasks import Task
from hfadapt.train.job import Job


class Row(NamedTuple):
    """A row of a job, and the seed of its dropout in a step; a spare one only keeps step with other processes."""

    job: Job
    example: Example
    seed: int = 0
    spare: bool = False

    @property
    def key(self) -> int:
        """Stands for the example for as long as its job lives."""
        return id(self.example)


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together.

    Args:
        rows: In this order.
        inputs: As the task's model takes them, on the device.
        documents: Where each row's tokens are.
    """

    rows: tuple[Row, ...]
    inputs: Mapping[str, torch.Tensor]
    documents: Documents

    @property
    def counted(self) -> list[Row]:
        """The rows whose losses count."""
        return [row for row in self.rows if not row.spare]

    @property
    def keys(self) -> list[int]:
        """Of the sequences."""
        return [id(part) for row in self.rows for part in row.example.parts]


def collate(
    task: Task, rows: Sequence[Row], pad_token_id: int, device: torch.device, *, packed: bool, drops: bool
) -> MicroBatch:
    """Rows as packed sequences, or padded; all sequences of a row, one after the other.

    Args:
        drops: Whether there is dropout, which needs the rows' seeds.
    """
    examples = [row.example for row in rows]
    sequences = [(row, place, part) for row in rows for place, part in enumerate(row.example.parts)]
    names = [row.job.name for row, _, _ in sequences]
    lengths = [part.size for _, _, part in sequences]
    seeds = [row.seed ^ place for row, place, _ in sequences] if drops else []
    if packed:
        documents = packed_rows(lengths, names, seeds)
        found = task.pack(examples, documents.tokens, pad_token_id)
    else:
        found = task.collate(examples, pad_token_id)
        documents = padded_rows(lengths, max(lengths), names, seeds)
    found = {**found, **_known(examples)}
    # The program does not wait for a GPU to have them.
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in found.items()}
    return MicroBatch(tuple(rows), inputs, documents)


def _known(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """What is known of the rows of a batch, one after the other."""
    names = examples[0].known or {} if examples else {}
    return {
        KNOWN + name: torch.from_numpy(np.concatenate([(example.known or {})[name] for example in examples]))
        for name in names
    }
