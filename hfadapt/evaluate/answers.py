"""The answers among which a language model is asked to choose, where every row ends in one of a few."""

from __future__ import annotations

from hfadapt.data import read_split
from hfadapt.models.load import Base
from hfadapt.records.stages import DataRecord
from hfadapt.run_folder import Cell
from hfadapt.tasks.causal_lm.task import completion_ids

MOST_CHOICES = 20
"""With at most this many different completions, the task is to choose among them."""


def answer_choices(cell: Cell, data: DataRecord, base: Base) -> dict[str, tuple[int, ...]]:
    """`answer_texts` as token ids without the end token."""
    texts = answer_texts(cell, data)
    return {name: tuple(completion_ids(text, base.tokenizer, end=False)) for name, text in texts.items()}


def answer_texts(cell: Cell, data: DataRecord) -> dict[str, str]:
    """The completions among which the model is asked to choose, by name.

    Empty when the rows are not of the kind where every answer is one of a few.
    """
    texts = dict(data.completions)
    if not texts and data.form == "completion":
        seen = sorted({row["completion"] for row in read_split(cell.folder, "train")})
        tested = {row["completion"] for split in ("validation", "test") for row in read_split(cell.folder, split)}
        if 2 <= len(seen) <= MOST_CHOICES and tested <= set(seen):
            names = [text.strip() or text for text in seen]
            # Answers that differ in white space alone keep it in their names.
            texts = dict(zip(seen if len(set(names)) < len(names) else names, seen, strict=True))
    return texts
