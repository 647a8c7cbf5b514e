"""Base and adapter side by side, on what somebody types, uploads, or picks from the test rows.

The base is the baseline of the evaluation: without an adapter or, where the task has a head, with the linear probe that
is trained as there. Of a run one base is in memory, with the adapters of all its domains where they can share it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.progress import Silent, quiet_libraries
from hfadapt.data import read_split
from hfadapt.files import Unusable
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.serve.adapted import MAX_NEW_TOKENS, Adapted, from_cell
from hfadapt.serve.rows import text_of
from hfadapt.tasks import Answer
from hfadapt.train.batches import padded
from hfadapt.train.probe import put_head, train_probe
from hfadapt.ui.chat import Conversation

if TYPE_CHECKING:
    from hfadapt.serve.bank import Bank


ANSWER_TOKENS = MAX_NEW_TOKENS
"""Of one answer in a conversation."""


@dataclass(frozen=True)
class Pair:
    """What both say of one value."""

    base: Answer
    adapter: Answer


class Opened(Protocol):
    """Models in memory."""

    def adapter(self, cell: Cell) -> Adapted:
        """The adapter of a cell, switched on."""

    def base(self, cell: Cell) -> Any:
        """Context manager: the same with the baseline as its model."""


class Beside:
    """Answers questions about cells, one at a time; keeps the models of the last run and target that was asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] = ()
        self._opened: Opened | None = None

    def ask(self, cell: Cell, values: Sequence[Any]) -> list[Pair]:
        """Both answers to texts or files, as users give them.

        Args:
            values: Texts, or bytes of files.

        Raises:
            RequestError: the cell is not trained yet, or a value cannot be asked.
            RunError: the adapter does not belong to its base.
        """
        return self._ask(cell, lambda adapted: (adapted, list(values)))

    def ask_row(self, cell: Cell, row: dict[str, Any]) -> list[Pair]:
        """Both answers to a prepared row, without its label. Raises as `ask`.

        Where a task compares texts, each text of the row has a pair.
        """

        def given(adapted: Adapted) -> tuple[Adapted, list[Any]]:
            schema = registry.schema(cell.data.form)
            if schema.media:
                return adapted, [bytes(row[schema.media])]
            if registry.task(adapted.task).compares:
                return adapted, [row[name] for name in schema.columns if isinstance(row[name], str)]
            # The recipe's template is in prepared rows already, and their columns have the schema's own names.
            adapted = replace(adapted, prompt=None, columns={})
            try:
                return adapted, [text_of(adapted, row)]
            except Unusable as fault:
                raise RequestError(f"this row cannot be asked: it{fault.detail}", place=str(cell.folder)) from None

        return self._ask(cell, given)

    @quiet_libraries()
    def answer(self, cell: Cell, said: Conversation) -> Conversation:
        """A conversation with the next answer of both, each of which is shown its own earlier ones.

        Raises:
            RequestError: the cell is not trained yet, or the chat is too long.
            DataError: the model's chat template refuses it.
            RunError: the adapter does not belong to its base.
        """
        with self._asked(cell) as (opened, adapted):
            own = adapted.reply(said.of("adapter"), ANSWER_TOKENS)
            with opened.base(cell) as model:
                base = replace(adapted, model=model).reply(said.of("base"), ANSWER_TOKENS)
        return said.answered(base, own)

    def close(self) -> None:
        """Frees the memory of the models."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        from hfadapt.hardware.peak_memory import release_memory

        if self._opened is not None:
            self._key, self._opened = (), None
            release_memory()

    @quiet_libraries()
    def _ask(self, cell: Cell, given: Any) -> list[Pair]:
        with self._asked(cell) as (opened, asked):
            adapted, values = given(asked)
            own = adapted.predict(values)
            with opened.base(cell) as model:
                base = replace(adapted, model=model).predict(values)
        return [Pair(one, other) for one, other in zip(base, own, strict=True)]

    @contextmanager
    def _asked(self, cell: Cell) -> Iterator[tuple[Opened, Adapted]]:
        """The models, and the adapter switched on, for one question."""
        if not cell.has(TrainRecord):
            raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
        with self._lock:
            opened = self._open(cell)
            yield opened, opened.adapter(cell)

    def _open(self, cell: Cell) -> Opened:
        """The models that are there already, or those of this cell's run in their place."""
        run = cell.folder.parents[1]
        cells = [each for each in sorted(run.glob(f"*/{cell.target}")) if Cell(each).has(TrainRecord)]
        trained = tuple((each.name, each.stat().st_mtime_ns) for each in (x / TrainRecord.FILE for x in cells))
        if self._opened is not None and self._key[:2] == (run, (cell.target, trained)):
            alone = self._key[2]
            if alone in (None, cell.domain):
                return self._opened
        self._release()
        self._opened, alone = open_models(run, cell)
        self._key = (run, (cell.target, trained), alone)
        return self._opened


def open_models(run: Path, cell: Cell) -> tuple[Opened, str | None]:
    """The models that answer for a cell, and its domain where they are for it alone.

    Raises:
        RunError: an adapter does not belong to its base.
    """
    from hfadapt.serve.bank import load_bank

    try:
        return Shared(load_bank(run, target=cell.target)), None
    except RequestError:
        # Heads of different sizes, or a method that has the base for itself.
        return Alone(cell), cell.domain


class Alone:
    """The models of one cell as its evaluation opens them."""

    def __init__(self, cell: Cell) -> None:
        from hfadapt.evaluate.context import open_context
        from hfadapt.models.load import default_device

        self.context = open_context(cell, default_device(), Silent())

    def adapter(self, cell: Cell) -> Adapted:
        """The adapter."""
        return replace(from_cell(cell, self.context.base), model=self.context.model)

    @contextmanager
    def base(self, cell: Cell) -> Iterator[Any]:
        """The baseline."""
        with self.context.adapter_on(False) as model:
            yield model


class Shared:
    """One base with the adapters of several domains; a domain's linear probe is trained when it is first asked."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.heads = _heads(bank.model)
        inner = bank.model.get_base_model()
        self.fresh = copy.deepcopy(torch.nn.Sequential(*map(inner.get_submodule, self.heads)))
        self.probes: dict[str, torch.nn.Sequential] = {}

    def adapter(self, cell: Cell) -> Adapted:
        """The adapter."""
        return self.bank.use(cell.domain)

    @contextmanager
    def base(self, cell: Cell) -> Iterator[Any]:
        """The baseline."""
        model, task = self.bank.model, registry.task(cell.lock.task)
        inner = model.get_base_model()
        with model.disable_adapter():
            if task.baseline == "linear probe":
                if cell.domain not in self.probes:
                    # From where the evaluation starts, not from the probe of another domain.
                    put_head(inner, self.heads, self.fresh)
                    self.probes[cell.domain] = _probe(cell, self.bank.adapter(cell.domain), self.heads)
                put_head(inner, self.heads, self.probes[cell.domain])
            yield model


def _heads(model: Any) -> list[str]:
    """Paths of the base's own head, of which every adapter has a copy."""
    from peft.utils.other import ModulesToSaveWrapper

    inner = model.get_base_model()
    return [f"{n}.original_module" for n, m in inner.named_children() if isinstance(m, ModulesToSaveWrapper)]


def _probe(cell: Cell, adapted: Adapted, heads: Sequence[str]) -> Any:
    """The linear probe on the rows that the evaluation trains it on."""

    lock, task, model = cell.lock, registry.task(cell.lock.task), adapted.model

    def examples(split: str) -> list[Any]:
        rows, length, labels = read_split(cell.folder, split), lock.data.max_length, cell.data.labels
        encoded = task.encode(rows, adapted.tokenizer, max_length=length, labels=labels)
        return [part for each in encoded for part in each.parts]

    def batches(examples: Any, rows: int | None = None) -> Any:
        return padded(task, examples, adapted.pad_token_id, model.device, rows or lock.evaluate.batch_rows)

    inner = model.get_base_model()
    modules = [inner.get_submodule(name) for name in heads]
    return train_probe(task, inner, modules, examples("train"), examples("validation"), batches)
