"""Which tokens of a vocabulary a cell's rows need, and how many test rows need others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.data import read_split
from hfadapt.recipe.names import AUTO
from hfadapt.student import vocabulary

if TYPE_CHECKING:
    from hfadapt.recipe.student import Student
    from hfadapt.run_folder import Cell

MOST_CUT_OTHERWISE = 0.01
"""Share of test rows that a smaller vocabulary may cut into other tokens."""
TRIED = (0.0, 0.125, 0.25, 0.5, 0.75, 0.875)
"""Shares of the vocabulary that are tried for the smallest which cuts validation rows as before."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a planned cell's rows.

    Args:
        rows: The folder of the rows that are learned.
        tokenizer: Of the adapted model.
    """

    cell: Cell
    rows: Path
    tokenizer: Any

    def ids(self, split: str, tokenizer: Any = None) -> list[tuple[int, ...]]:
        """Of each sequence of a split, as a tokenizer cuts it."""
        lock, task = self.cell.lock, registry.task(self.cell.lock.task)
        options: dict[str, Any] = {"max_length": lock.data.max_length, "labels": self.cell.data.labels}
        examples = task.encode(list(read_split(self.rows, split)), tokenizer or self.tokenizer, **options)
        return [tuple(part.inputs["input_ids"]) for example in examples for part in example.parts]

    def kept(self, asked: Student) -> list[int] | None:
        """Ids of the tokens of the training rows and of the answers, and those that stay in any case; None for all."""
        if asked.vocabulary == "all" or not registry.modality_of(self.cell.lock.task).tokens:
            return None
        task, data = registry.task(self.cell.lock.task), self.cell.data
        used = {token for ids in self.ids("train") for token in ids}
        texts = task.answer_texts(data.form, data.completions, self.cell.read_split)
        used |= {token for ids in task.choices(texts, self.tokenizer).values() for token in ids}
        if asked.vocabulary != AUTO:
            share = asked.vocabulary if isinstance(asked.vocabulary, float) else 0.0
            return vocabulary.kept_tokens(self.tokenizer, used, share)
        rows = self.ids("validation")
        for share in TRIED:
            kept = vocabulary.kept_tokens(self.tokenizer, used, share)
            if _others(rows, kept) <= MOST_CUT_OTHERWISE:
                return kept
        return None

    def require(self, asked: Student) -> None:
        """Raises RunError where more test rows have other tokens than may be."""
        kept = self.kept(asked)
        if kept is not None:
            require_few(_others(self.ids("test"), kept), asked)


def require_few(share: float, asked: Student) -> None:
    """Raises RunError where this share of the test rows is more than may be cut into other tokens."""
    if share > MOST_CUT_OTHERWISE:
        raise RunError(
            "too many test rows have words that the training rows do not have, for a vocabulary of these alone",
            place="student.vocabulary",
            got=f"{share:.1%} of the test rows are cut into other tokens",
            allowed=f"{MOST_CUT_OTHERWISE:.0%}",
            fix="set student.vocabulary: all, or more validation rows (data.validation), whose tokens decide"
            if asked.vocabulary == AUTO
            else "set student.vocabulary: auto, which keeps what rows of validation need",
        )


def _others(rows: Collection[tuple[int, ...]], kept: Collection[int]) -> float:
    """The share of sequences that have other tokens: these, and no others, are cut in another way."""
    known = set(kept)
    return sum(not known.issuperset(row) for row in rows) / max(1, len(rows))
