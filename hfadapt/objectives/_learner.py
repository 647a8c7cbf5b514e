"""What learners from texts have in common: long ones are divided, and each has a vector.

Shapes: B texts, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Row
from hfadapt.modalities.text import in_pieces
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
        return in_pieces(row, tokenizer, max_length)

    def vectors(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean of the vectors of each text's tokens, (B, D) in float32."""
        model: Any = self.base.model
        body = getattr(model, model.base_model_prefix, model)
        mask = inputs["attention_mask"]
        hidden = body(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None].float()
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def no_texts(facts: ModelFacts) -> str | None:
    """Why a base has no vectors of texts of its own, or None."""
    if not facts.vocab_size:
        return "it reads no text"
    return "a language model learns texts by writing them" if facts.generates else None
