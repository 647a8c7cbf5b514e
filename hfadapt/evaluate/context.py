"""The context: a cell's base, loaded once with its adapter on; every kind of evaluation uses it on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.adapters import DEFAULT
from hfadapt.core import registry
from hfadapt.core.progress import Progress, Silent
from hfadapt.data import read_split
from hfadapt.hardware.processes import World
from hfadapt.modalities import Example, Row
from hfadapt.models.attach import go_on, open_adapter, trained_layers
from hfadapt.models.load import Base
from hfadapt.models.manifest import load_base_of
from hfadapt.run_folder import Cell
from hfadapt.schemas import RowSchema
from hfadapt.tasks import Scores, Task
from hfadapt.train.batches import padded
from hfadapt.train.probe import probe_of, put_head

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import DataRecord

SHARED_ROWS = 8
"""Fewer rows for each process are scored by all of them."""


@dataclass
class EvaluationContext:
    """A base with a switchable adapter, and the rows of its cell.

    Args:
        model: With the adapter on, in evaluation mode. Switched off, its head is the linear probe's where the baseline
            is one.
        choices: Answers among which a language model chooses, by name: token ids without the end token.
        world: The processes that score the rows together, where all of them have this context.
    """

    cell: Cell
    lock: Lock
    data: DataRecord
    task: Task
    base: Base
    model: Any
    device: torch.device
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    world: World | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, or of the answers a language model chooses from."""
        return tuple(self.choices) or self.data.labels

    @cached_property
    def schema(self) -> RowSchema:
        """What its rows look like."""
        return registry.schema(self.data.form)

    @property
    def measures(self) -> Mapping[str, str]:
        """Measures of rows that are files, with their units; none of texts."""
        return registry.modality(self.schema.modality).facts

    @cached_property
    def rows(self) -> list[Row]:
        """The test rows."""
        return list(read_split(self.cell.folder, "test"))

    @cached_property
    def test(self) -> Sequence[Example]:
        """The test rows, encoded."""
        return self.referred(self.encode(self.rows))

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Rows as training saw them."""
        found: list[Example] = self.task.encode(
            rows, self.base.tokenizer, max_length=self.lock.data.max_length, labels=self.data.labels
        )
        return found

    def referred(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples with what the model said of them before training, for tasks that are scored against that."""
        if not self.task.refers or all(example.known is not None for example in examples):
            return examples
        with torch.inference_mode(), self.as_begun() as model:
            return self.task.referred(examples, self.task.score(model, examples, self.batches))

    @contextmanager
    def as_begun(self) -> Iterator[Any]:
        """The model as it stood before training: with the weights that an earlier stage left, or without an adapter."""
        begun = self.cell.train.begun
        if begun is None:
            with self.adapter_on(False) as model:
                yield model
            return
        layers = trained_layers(self.model, self.base, DEFAULT)
        kept = {name: each.detach().clone() for name, each in layers.items()}
        go_on(self.model, self.base, DEFAULT, self.cell.folder / begun)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, each in layers.items():
                    each.copy_(kept[name])

    def batches(self, examples: Sequence[Example], batch_rows: int | None = None) -> Any:
        """Batches of similar length on the model's device, as `Task.score` wants them."""
        rows = batch_rows or self.lock.evaluate.batch_rows
        return padded(self.task, examples, self.base.pad_token_id, self.device, rows)

    @contextmanager
    def adapter_on(self, on: bool = True) -> Iterator[Any]:
        """The model with the adapter, or the baseline's."""
        if on:
            yield self.model
        elif hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.base.model

    def score(self, examples: Sequence[Example], *, adapter: bool = True, choose: bool = True) -> Scores:
        """Scores examples with the adapter or, with `adapter=False`, the baseline.

        Args:
            choose: Choose among `choices`, where there are any; the examples must then end in one of them.
        """
        known = self.referred(examples)
        choices = tuple(self.choices.values()) if choose else ()
        with torch.inference_mode(), self.adapter_on(adapter) as model:
            return score_together(
                self.world, self.task, known, lambda own: self.task.score(model, own, self.batches, choices), self.base
            )


def score_together(
    world: World | None,
    task: Task,
    examples: Sequence[Example],
    score: Callable[[Sequence[Example]], Scores],
    base: Base,
) -> Scores:
    """Scores of examples that the processes share, where there are several and rows are scored one by one.

    Args:
        score: Scores some of them on a model of the base.
    """
    if world is None or world.size == 1 or task.joint or len(examples) < SHARED_ROWS * world.size:
        return score(examples)

    def work(own: range) -> Scores:
        share = [examples[number] for number in own]
        return score(share) if base.shards is None else base.shards.in_step(lambda: score(share))

    return Scores.joined(world.shared(len(examples), work))


def open_context(
    cell: Cell,
    device: torch.device,
    progress: Progress,
    room: dict[int, int] | None = None,
    *,
    baseline: bool = True,
    world: World | None = None,
    divided: bool = False,
) -> EvaluationContext:
    """The cell's base with its adapter from disk on it, and the linear probe as its head where that is the baseline.

    Args:
        baseline: Without it the adapter alone is asked, and no probe is trained.
        world: The processes that score together, where all of them open this.
        divided: Divide the base over them.

    Raises:
        RunError: the folder or its manifest does not fit the base.
    """
    lock, data = cell.lock, cell.data
    task = registry.task(lock.task)
    base = load_base_of({cell.adapter: data.labels}, lock, device, max_memory=room, divided=divided)
    choices = task.choices(task.answer_texts(data.form, data.completions, cell.read_split), base.tokenizer)
    context = EvaluationContext(cell, lock, data, task, base, base.model.eval(), device, choices, progress, world)
    if baseline and task.baseline == "linear probe":
        train, validation = (
            [part for example in context.encode(read_split(cell.folder, split)) for part in example.parts]
            for split in ("train", "validation")
        )
        with torch.inference_mode(False):
            put_head(base.model, base.head_modules, probe_of(cell, base, train, validation, context.batches))
    context.model = open_adapter(base, cell.adapter, lock.adapter.method, device).eval()
    return context


def spread(rows: int, most: int) -> list[int]:
    """At most `most` of `rows` row numbers, spread evenly."""
    count = min(most, rows)
    return [i * rows // count for i in range(count)]
