"""What learners from texts have in common: words of a text by token, and the vector of a text.

Shapes: B texts, T tokens, D hidden.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.core.hashing import stable_hash
from hfadapt.modalities import Row
from hfadapt.modalities.text import cut, pieces
from hfadapt.tasks import Task

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base

FIXED = (-1, -1)
"""The draw of what is always the same: what `encode` gives, by which the loss before and after is measured."""


class Learner(Task):
    """A task of texts alone, whose model is a base's body: it ends in vectors of tokens.

    Attributes:
        module: What is trained beside the adapter, and left behind.
    """

    title = "texts without labels"
    schemas = frozenset({"text"})
    redraws = True

    def __init__(self, base: Base) -> None:
        self.base = base
        self.module: torch.nn.Module | None = None

    def fitted(self, row: Row, tokenizer: Any, max_length: int | None = None) -> list[Row]:
        """A long text in pieces."""
        if max_length is None:
            return [row]
        return [{**row, "text": piece} for piece in pieces(row["text"], tokenizer, max_length)]

    def vectors(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean of the vectors of each text's tokens, (B, D) in float32."""
        model: Any = self.base.model
        body = getattr(model, model.base_model_prefix, model)
        mask = inputs["attention_mask"]
        hidden = body(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None].float()
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def chance(row: Row, draw: tuple[int, int], *more: object) -> random.Random:
    """A random generator of a row's own; pieces of one text are told apart by what is in them."""
    return random.Random(stable_hash(*draw, row.get("source"), row.get("row"), row["text"], *more))


def tokenised(
    rows: Sequence[Row], tokenizer: Any, max_length: int
) -> Iterator[tuple[list[int], list[int | None], int]]:
    """Of each row's text the token ids, the word of each (None for special tokens), and the uncut length."""
    texts = [str(row["text"]) for row in rows]
    whole = tokenizer(texts, verbose=False) if texts else None
    for number, text in enumerate(texts):
        assert whole is not None
        ids, words = list(whole["input_ids"][number]), list(whole.word_ids(number))
        length = len(ids)
        if length > max_length:
            ids = list(cut(text, ids, tokenizer, max_length))
            words = list(tokenizer(text, truncation=True, max_length=max_length).word_ids())
        yield ids, words, length


def no_texts(facts: ModelFacts) -> str | None:
    """Why a base has no vectors of texts of its own, or None."""
    if not facts.vocab_size:
        return "it reads no text"
    return "a language model learns texts by writing them" if facts.generates else None
