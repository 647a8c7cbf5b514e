"""An estimate of the compute of a training, for cards of records that do not count it."""

from __future__ import annotations

from hfadapt.adapters import AdapterMethod
from hfadapt.card.facts import Facts
from hfadapt.core import registry


def flops_sentence(facts: Facts) -> str:
    """An estimate of the compute, where no record counts it."""
    lock = facts.records.file("lock.yaml")
    factor, words, why = _flops(registry.adapter(lock["adapter"]["method"]), lock["train"]["checkpointing"])
    fields = ["train.json#/total_parameters", "train.json#/tokens"]
    return (
        f"Training compute: about {facts(fields, 'power', 'product', factor)} FLOPs = {words} per parameter and token "
        f"({why}), times {facts(fields[0], 'integer')} parameters, times {facts(fields[1], 'integer')} tokens; an "
        "upper estimate, since embeddings are looked up and not multiplied."
    )


def _flops(method: AdapterMethod, checkpointing: bool) -> tuple[int, str, str]:
    """FLOPs per parameter and token, in words, and why."""
    again = " and once more forward, as activations were recomputed" if checkpointing else ""
    if method.whole_model:
        return (
            (8, "eight", f"forward, and backward for activations and weights{again}")
            if checkpointing
            else (6, "six", "two forward, two each for the gradients of activations and of weights")
        )
    if method.only_head:
        return 2, "two", "forward only: the base is frozen and no gradient passes through it"
    if checkpointing:
        return 6, "six", f"two forward, two for the gradients of activations{again}; the base is frozen"
    return 4, "four", "two forward, two for the gradients of activations; the base is frozen"
