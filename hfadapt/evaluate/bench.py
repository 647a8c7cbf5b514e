"""The bench: a cell's base, loaded once with its adapter on; every kind of evaluation uses it on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.batches import padded
from hfadapt.data import read_split
from hfadapt.model import Base
from hfadapt.progress import Progress, Silent
from hfadapt.run_folder import Cell
from hfadapt.tasks import Example, Row, Scores

if TYPE_CHECKING:
    from hfadapt.recipe import Lock
    from hfadapt.records import DataRecord


@dataclass
class Bench:
    """A base with a switchable adapter, and the rows of its cell.

    Args:
        model: With the adapter on, in evaluation mode. Switched off, its head is the linear probe's where the baseline
            is one.
        choices: Answers among which a language model chooses, by name: token ids without the end token.
    """

    cell: Cell
    lock: Lock
    data: DataRecord
    task: Any
    base: Base
    model: Any
    device: torch.device
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, or of the answers a language model chooses from."""
        return tuple(self.choices) or self.data.labels

    @cached_property
    def rows(self) -> list[Row]:
        """The test rows."""
        return list(read_split(self.cell.folder, "test"))

    @cached_property
    def test(self) -> list[Example]:
        """The test rows, encoded."""
        return self.encode(self.rows)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Rows as training saw them."""
        found: list[Example] = self.task.encode(
            rows, self.base.tokenizer, max_length=self.lock.data.max_length, labels=self.data.labels
        )
        return found

    def batches(self, examples: Sequence[Example]) -> Any:
        """Batches of similar length on the model's device, as `Task.score` wants them."""
        pad = int(self.base.tokenizer.pad_token_id or 0)
        return padded(self.task, examples, pad, self.device, self.lock.evaluate.batch_rows)

    @contextmanager
    def adapter_off(self) -> Iterator[Any]:
        """The baseline's model."""
        if hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.base.model

    def score(self, examples: Sequence[Example], *, adapter: bool = True, choose: bool = True) -> Scores:
        """Scores examples with the adapter or, with `adapter=False`, the baseline.

        Args:
            choose: Choose among `choices`, where there are any; the examples must then end in one of them.
        """
        ids = tuple(self.choices.values()) if choose else ()
        with torch.inference_mode():
            if adapter:
                scores: Scores = self.task.score(self.model, examples, self.batches, ids)
                return scores
            with self.adapter_off() as model:
                scores = self.task.score(model, examples, self.batches, ids)
                return scores
