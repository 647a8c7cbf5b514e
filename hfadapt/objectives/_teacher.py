"""The model that a smaller one learns from: a trained cell, or a whole model with the same head.

Shapes: L labels of a row, C classes, V vocabulary, K of its likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.models.attach import open_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, load_base
from hfadapt.models.manifest import load_base_of
from hfadapt.quants import PLAIN
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import STATE, Cell, Run, find_cell

if TYPE_CHECKING:
    from hfadapt.modalities import Example
    from hfadapt.objectives import Beginning
    from hfadapt.tasks import Task


class Teacher:
    """An opened teacher, in evaluation mode.

    Args:
        base: With its tokenizer.
        max_length: Of the rows that it is given.
        order: For each class of the student the teacher's number of it; None where they are the same.
    """

    def __init__(self, model: Any, base: Base, max_length: int, order: Sequence[int] | None) -> None:
        self.model, self.base, self.max_length, self.order = model.eval(), base, max_length, order

    @classmethod
    def opened(cls, place: str, beginning: Beginning) -> Teacher:
        """Opens a cell's adapter on its base, or a whole model.

        Raises:
            RequestError: there is none, it is of another task, or it knows other labels.
        """
        labels, task = tuple(beginning.labels), beginning.task
        found = cell_at(place, beginning.folder)
        if found is None:
            ref = replace(BaseRef.of(beginning.lock).at(place), quant=PLAIN)
            base = load_base(ref, labels, beginning.device)
            if base.fresh_modules:
                what = f"no head for {', '.join(labels)}" if labels else "no head for this task"
                raise _unfit(place, f"it has {what}", "a model that was trained on this task")
            return cls(base.model, base, beginning.lock.data.max_length, None)
        lock, own = found.lock, found.data.labels
        require_task(found, place, task)
        require_labels(found, place, labels)
        base = load_base_of({found.adapter: own}, lock, beginning.device)
        model = open_adapter(base, found.adapter, lock.adapter.method, beginning.device)
        order = None if own == labels else [own.index(label) for label in labels]
        return cls(model, base, lock.data.max_length, order)

    def tokens(self, beginning: Beginning) -> list[int] | None:
        """For each token of the student the teacher's id of the same one; None where both have the same ids. Models
        often have some more outputs than there are tokens, and of one family not equally many.

        Raises:
            RequestError: the teacher lacks some of them, as it cuts texts in another way.
        """
        modality, student = registry.modality(beginning.task.modality), beginning.base.tokenizer
        sizes = {each.model.config.get_text_config().vocab_size for each in (self.base, beginning.base)}
        if modality.identity(self.base.tokenizer) == modality.identity(student) and len(sizes) == 1:
            return None
        own, other = self.base.tokenizer.get_vocab(), student.get_vocab()
        if not other.keys() <= own.keys():
            raise RequestError(
                "teacher and student cut texts into other tokens, so one cannot learn the other's next tokens",
                place="train.objective_options.teacher",
                got=f"{len(other.keys() - own.keys()):,} of {len(other):,} tokens that the teacher does not have",
                allowed="a teacher with the student's tokens",
                fix="choose a teacher of the same family, or train on texts that it has written",
            )
        found = [0] * (max(other.values()) + 1)
        for name, number in other.items():
            found[number] = own[name]
        return found


def renumbered(example: Example, tokens: Sequence[int]) -> Example:
    """An example of the student's tokens as the teacher reads them; where its labels stand does not change."""
    ids = tuple(tokens[each] for each in example.inputs["input_ids"])
    return replace(example, inputs={**example.inputs, "input_ids": ids})


def cell_at(place: str, folder: Path) -> Cell | None:
    """The trained cell at a path, which is looked for from the cell's folder first; None for what is no run.

    Raises:
        RequestError: several cells match, or it is not trained yet.
    """
    for path in (folder / place, Path(place).expanduser()):
        if path.is_dir() and not (path / "config.json").exists():
            cell = _only_cell(path, place)
            if not cell.has(TrainRecord):
                raise RequestError("the teacher is not trained yet", place=str(path), fix="hfadapt run RECIPE")
            return cell
    return None


def _only_cell(path: Path, place: str) -> Cell:
    cells = [] if (path / STATE).exists() else Run(path).cells()
    if len(cells) > 1:
        raise RequestError(
            "the teacher is one cell of a run",
            place=f"train.objective_options.teacher: {place}",
            got=f"{len(cells)} cells",
            allowed=", ".join(f"{place}/{cell.domain}/{cell.target}" for cell in cells),
            fix=f"teacher: {place}/{cells[0].domain}/{cells[0].target}",
        )
    return find_cell(path.resolve())


def require_task(found: Cell, place: str, task: Task) -> None:
    """Raises RequestError where a trained cell is of another task."""
    if found.lock.task != task.name:
        raise _unfit(place, f"it was trained on {found.lock.task}", task.name)


def require_labels(found: Cell, place: str, labels: Sequence[str]) -> None:
    """Raises RequestError where a trained cell knows other labels."""
    if set(found.data.labels) != set(labels):
        raise _unfit(
            place, f"its labels are {', '.join(found.data.labels) or 'none'}", ", ".join(labels) or "no labels"
        )


def require_head(config: Any, place: str, task: Task) -> None:
    """Raises RequestError where a whole model was saved with another head, as its config tells."""
    import transformers

    mapping = getattr(transformers, task.auto_class)._model_mapping
    known = mapping.get(type(config), None)
    heads = {each.__name__ for each in (known if isinstance(known, tuple) else (known,)) if each is not None}
    # Names that are not transformers' own say nothing, and a model without a head can be had of any.
    saved = [each for each in getattr(config, "architectures", None) or () if hasattr(transformers, each)]
    if saved and heads and not heads & set(saved) and all("For" in each or "Head" in each for each in heads):
        raise _unfit(
            place, f"it was saved as {', '.join(saved)}", f"{', '.join(sorted(heads))}, the head of {task.name}"
        )


def _unfit(place: str, got: str, allowed: str) -> RequestError:
    return RequestError(
        "this teacher cannot teach these rows",
        place=f"train.objective_options.teacher: {place}",
        got=got,
        allowed=allowed,
        fix="name another teacher",
    )
