"""The next token of texts (causal language modelling), for decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt.objectives import SelfSupervised
from hfadapt.tasks.causal_lm.task import KIND as NEXT_TOKENS

if TYPE_CHECKING:
    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.tasks import Task


class NextTokens(SelfSupervised):
    """The loss of `causal-lm` on plain text; its output layer stays as it is."""

    name = "clm"
    title = "next tokens"
    own_loss = True
    rank = 2
    because = "the base writes text"
    labelled_share = 1.0
    generates = True

    def unfit(self, facts: ModelFacts) -> str | None:
        """It does not write, as far as its config says."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        )

        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(facts.model_type)
        if facts.generates:
            return None
        if known is None or facts.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return f"{facts.model_type} does not write one token after the other"
        saved = facts.head.architecture
        return None if saved in (None, known) else f"it was saved as {saved}, without its output layer"

    def loaded_as(self, task: str) -> str:
        """With its output layer."""
        return NEXT_TOKENS.name

    def learner(self, base: Base, seed: int) -> Task:
        """The task itself."""
        return NEXT_TOKENS


KIND = NextTokens()
