"""The Modality contract: what rows are made of, and the example as which one reaches a model. One file per modality."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

IGNORED = -100
"""A label that carries no loss."""

Row = Mapping[str, Any]
"""A prepared row."""

Operation = Callable[[Any, float, random.Random], Any]
"""Changes one value: the value, how much of it, and a random generator of its own."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as a model takes it.

    Args:
        inputs: What the model is given, without a batch dimension: for texts `input_ids`.
        labels: One entry per token for tasks that learn tokens (`IGNORED` where nothing is learned), else the targets
            of the row, or nothing where it has none.
        size: What batches are measured by: tokens of a text.
        length: The size before any cut.
        row: Number of the row.
    """

    inputs: Mapping[str, Any]
    labels: tuple[Any, ...]
    size: int
    length: int
    row: int

    @property
    def truncated(self) -> bool:
        """Whether the row was cut."""
        return self.length > self.size

    @property
    def label_count(self) -> int:
        """Labels that carry a loss."""
        # A number may be -100.0.
        return sum(label != IGNORED or isinstance(label, float) for label in self.labels)


class Modality:
    """What a modality has to say. The module-level instance is called `KIND`.

    Attributes:
        name: Name that tasks use.
        operations: Changes that leave a label right, by the name of the setting in `data.augment`.
        perturbations: Careless input as users give it, with how much of it is changed.
        tokens: Whether its processor is a tokenizer, each of whose ids needs an embedding of the model.
    """

    name: str
    operations: Mapping[str, Operation]
    perturbations: Mapping[str, tuple[Operation, float]]
    tokens: bool = False

    def load_processor(self, path: str, revision: str | None) -> Any:
        """What turns values into a model's inputs: the tokenizer of texts."""
        raise NotImplementedError
