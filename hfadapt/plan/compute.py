"""Floating-point operations of tuning, from tokens and parameters, and of making the base where that is published.

A weight of a linear layer costs 2 operations per token in the forward pass, 2 for the gradient of its input, and 2 for
its own gradient, which a frozen weight does not need; recomputing activations repeats the forward pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry, resources
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, model_facts
from hfadapt.records.evidence import Compute

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import DataRecord


def training_compute(
    lock: Lock,
    data: DataRecord,
    tokens: int,
    labelled_tokens: int,
    trained_parameters: int,
    hub_id: str | None,
    frozen_tokens: int | None = None,
) -> Compute:
    """`tuning_compute` of a cell that was trained on `data`; arguments as there."""
    mean = data.lengths["train"].mean if "train" in data.lengths else lock.data.max_length
    mean = data.augmented.lengths.mean if data.augmented else mean
    return tuning_compute(
        model_facts(BaseRef.of(lock).location, lock.task, max(1, len(data.labels))),
        lock,
        tokens=tokens,
        labelled_tokens=labelled_tokens,
        trained_parameters=trained_parameters,
        mean_tokens=min(mean, lock.data.max_length),
        hub_id=hub_id,
        frozen_tokens=frozen_tokens,
    )


def tuning_compute(  # noqa: PLR0913 - counts by name
    facts: ModelFacts,
    lock: Lock,
    *,
    tokens: int,
    labelled_tokens: int,
    trained_parameters: int,
    mean_tokens: float,
    hub_id: str | None = None,
    frozen_tokens: int | None = None,
) -> Compute:
    """The operations of a training run.

    Args:
        tokens: All tokens that went through the model in training, over all epochs.
        labelled_tokens: Those whose logits were computed; for classification the rows.
        trained_parameters: Parameters with a gradient.
        mean_tokens: Tokens of a row, which attention looks at.
        hub_id: The base's name on the Hub, under which its own compute may be known.
        frozen_tokens: Tokens that went through the layers below the first trained one, where that is not all.
    """
    method = registry.adapter(lock.adapter.method)
    full, only_head = method.whole_model, method.only_head
    again = 2 if lock.train.checkpointing and not only_head else 0
    body, attention = (6 if full else 4) + again, 12 + 2 * again
    below = facts.layers if only_head else facts.layers - min(facts.layers, lock.adapter.layers or facts.layers)
    frozen = 0 if full else below * facts.linear_parameters // facts.layers
    trained = facts.linear_parameters - frozen
    passed = tokens if frozen_tokens is None else frozen_tokens
    head = facts.head_parameters
    if facts.predicts_tokens and facts.tied:
        head = facts.vocab_size * facts.hidden_size
    head_trained = full or only_head or not facts.predicts_tokens
    # Forward, gradient of its input where something below is trained, and of its weight where it is.
    each = 6 if head_trained and not only_head else 4
    adapter = 0 if full or only_head else trained_parameters - (facts.head_parameters if head_trained else 0)
    parts = {
        "linear layers": body * trained * tokens + 2 * frozen * passed,
        "attention": (attention * (facts.layers - below) * tokens + 4 * below * passed)
        * facts.hidden_size
        * mean_tokens,
        "adapter": (6 + again) * max(0, adapter) * tokens,
        "head": each * head * labelled_tokens,
    }
    base = base_compute(hub_id) if hub_id else None
    products, unit = [], registry.modality_of(lock.task).unit
    if trained:
        more = f" + {6 + again} x {adapter:,} of the adapter" if adapter > 0 else ""
        products.append(f"{tokens:,} {unit} x ({body} x {trained:,} weights of linear layers{more})")
    if frozen:
        products.append(f"{passed:,} {unit} x 2 x {frozen:,} weights of linear layers below all that is trained")
    how = (
        f"{' + '.join(products)} + {each} x {head:,} weights of the head x "
        f"{labelled_tokens:,} labels + attention over {mean_tokens:.0f} {unit} a row"
        f"{'; activations recomputed' if again else ''}; validation and the start of the adapter not counted"
    )
    return Compute(
        tuning_flops=float(sum(parts.values())),
        how=how,
        base_flops=base[0] if base else None,
        base_source=base[1] if base else None,
    )


def base_compute(hub_id: str) -> tuple[float, str] | None:
    """Operations of making a base and where the figures come from, or None where nobody says."""
    for name, entry in _bases().items():
        if hub_id == name or hub_id in entry.get("also", ()):
            flops = 6.0 * entry["parameters"] * entry["tokens"]
            return flops, f"6 x {entry['parameters']:,} parameters x {entry['tokens']:.4g} tokens: {entry['source']}"
    return None


def _bases() -> dict[str, dict[str, Any]]:
    return resources.toml(Path(__file__).with_name("base_compute.toml"))
