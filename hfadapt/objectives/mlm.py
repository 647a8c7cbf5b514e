"""Hidden words of texts (masked language modelling), for encoders that were saved with the layer that says them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt.objectives import SelfSupervised
from hfadapt.tasks.masked_lm.task import KIND as HIDDEN_WORDS
from hfadapt.tasks.masked_lm.task import SHARE

if TYPE_CHECKING:
    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.tasks import Task


class HiddenWords(SelfSupervised):
    """The loss of `masked-lm`; its output layer stays as it is."""

    name = "mlm"
    title = "hidden words"
    rank = 1
    because = "the base was saved with the layer that says hidden words"
    labelled_share = SHARE

    def unfit(self, facts: ModelFacts) -> str | None:
        """It has no such layer, as far as its config says."""
        from transformers.models.auto import modeling_auto

        known = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(facts.model_type)
        if known is None:
            return f"{facts.model_type} has no layer that says hidden words"
        saved = facts.head.architecture
        # ELECTRA's discriminator tells replaced words instead.
        both = modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(facts.model_type)
        if saved in (None, known) or (saved == both and "electra" not in facts.model_type):
            return None
        return f"it was saved as {saved}, without the layer that says hidden words"

    def loaded_as(self, task: str) -> str:
        """With that layer."""
        return HIDDEN_WORDS.name

    def learner(self, base: Base, seed: int) -> Task:
        """The task itself."""
        return HIDDEN_WORDS


KIND = HiddenWords()
