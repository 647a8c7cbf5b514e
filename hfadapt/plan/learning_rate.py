"""The learning rate that `auto` takes: by the kind and size of the model, the method, and how few steps there are."""

from __future__ import annotations

from hfadapt.adapters import AdapterMethod
from hfadapt.models.facts import ModelFacts

RATE = "train.learning_rate"
SMALL_ENCODER_PARAMETERS = 100_000_000
SMALL_LM_PARAMETERS = 500_000_000
FEW_STEPS, FEW_STEPS_GAIN = 240, 2.0
"""An encoder that is trained for fewer steps gets a higher rate, up to so much. Accuracy of MiniLM after 60 steps, mean
of 3 domains and 2 seeds: 0.541 at 5e-4, 0.657 at 1e-3, 0.614 at 2e-3, 0.581 at 4e-3 (benchmarks/rates.json; heads
started untrained then, and it was not measured again)."""


def learning_rate(facts: ModelFacts, method: AdapterMethod, steps: int) -> tuple[float, str]:
    """The rate for a method and for so many steps, with the reason."""
    rate, reason = _usual(facts)
    measured = method.low_rank and not facts.generates and not facts.pointwise
    gain = min(FEW_STEPS_GAIN, max(1.0, FEW_STEPS / steps)) if measured else 1.0
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
