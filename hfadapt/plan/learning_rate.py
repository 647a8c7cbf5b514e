"""The learning rate that `auto` takes: by the kind and size of the model, the method, and how few steps there are."""

from __future__ import annotations

from hfadapt.adapters import AdapterMethod
from hfadapt.models.facts import ModelFacts

RATE = "train.learning_rate"
SMALL_ENCODER_PARAMETERS = 100_000_000
SMALL_LM_PARAMETERS = 500_000_000
FEW_STEPS, FEW_STEPS_GAIN = 240, 2.0
"""An encoder that is trained for fewer steps gets a higher rate, up to so much. Accuracy of MiniLM with heads that
start untrained, after 60 steps, mean of 3 domains and 2 seeds: 0.541 at 5e-4, 0.657 at 1e-3, 0.614 at 2e-3."""
TRAINED_HEAD_RATE, TRAINED_HEAD_FEW_STEPS = 1e-3, 120
"""Of small encoders of texts whose heads start trained. Accuracy, or micro-F1, of MiniLM, mean of 4 domains and up to 2
seeds: after 60 steps 0.654 at 5e-4, 0.678 at 1e-3, 0.698 at 2e-3; after 120 steps 0.707, 0.747, 0.730; after 240 steps
0.761 at 5e-4, 0.775 at 1e-3; one domain after 480 steps 0.810 at both (benchmarks/rates.json)."""


def learning_rate(facts: ModelFacts, method: AdapterMethod, steps: int, trained_head: bool) -> tuple[float, str]:
    """The rate for a method and for so many steps, with the reason.

    Args:
        trained_head: Whether texts are read, and a new head is trained before the adapter is.
    """
    rate, reason = _usual(facts)
    measured = method.low_rank and not facts.generates and not facts.pointwise
    few = FEW_STEPS
    if measured and trained_head and facts.parameters < SMALL_ENCODER_PARAMETERS:
        rate, few = TRAINED_HEAD_RATE, TRAINED_HEAD_FEW_STEPS
        reason = "better than 5e-4 where the head starts trained"
    gain = min(FEW_STEPS_GAIN, max(1.0, few / steps)) if measured else 1.0
    if gain > 1:
        reason = f"{gain:.2g} times {rate:g} for only {steps:,} steps, in which less teaches little"
    return float(f"{rate * gain:.2g}"), reason


def _usual(facts: ModelFacts) -> tuple[float, str]:
    """For LoRA, after hundreds of steps."""
    if facts.pointwise:
        return 2e-3, "1x1 convolutions take more: better than 5e-4 after as many steps"
    if facts.generates and facts.parameters < SMALL_LM_PARAMETERS:
        return 5e-4, "models under 500 M parameters tolerate more than 2e-4"
    if facts.generates:
        return 2e-4, "usual for LoRA on language models"
    if facts.parameters < SMALL_ENCODER_PARAMETERS:
        return 5e-4, "as good as 1e-3, where some domains collapse to one class"
    return 3e-4, "usual for LoRA on encoders of 100 M parameters and more"
