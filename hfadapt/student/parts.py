"""Where the bytes and the arithmetic of a model are, and how much of it a form of 8 bits does in whole numbers.

A dynamic form rounds products with weights (linear layers); norms, softmax, activations and the products of activations
in attention stay in floating point. A static form, which convolutional nets bear, also rounds convolutions and those
products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfadapt.core.spec import Spec
from hfadapt.models.facts import describe, head_names, layer_stacks
from hfadapt.plan.device import multiply_adds_by_kind

if TYPE_CHECKING:
    from hfadapt.models.load import Base


class Part(Spec):
    """One of `embeddings` (with an output layer that is tied to them), `layers`, `head` and `other`."""

    name: str
    parameters: int
    bytes: int


class Parts(Spec):
    """A model by its parts, and the multiply-adds of one answer by kind; none where they cannot be counted."""

    parts: tuple[Part, ...]
    length: int
    multiply_adds: dict[str, int]

    @property
    def integer_share(self) -> float | None:
        """The share of multiply-adds that a dynamic form of 8 bits does in whole numbers."""
        total = sum(self.multiply_adds.values())
        return self.multiply_adds.get("linear", 0) / total if total else None


def parts_of(base: Base, task: str, length: int) -> Parts:
    """Counts a loaded model.

    Args:
        task: Its name.
        length: Units of a row.
    """
    model: Any = base.model
    facts = describe(model, base.source.asked, task, int(model.config.num_labels), model.config)
    return Parts(parts=parts(model), length=length, multiply_adds=multiply_adds_by_kind(facts, length))


def parts(model: Any) -> tuple[Part, ...]:
    """Parameters and bytes of each part; every tensor counts once."""
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    stacks = tuple(f"{path}." for path in layer_stacks(model))
    heads = tuple(f"{name}." for name in head_names(model))
    found: dict[str, list[Any]] = {name: [] for name in ("embeddings", "layers", "head", "other")}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            part = "embeddings"
        elif name.startswith(heads):
            part = "head"
        else:
            part = "layers" if name.startswith(stacks) else "other"
        found[part].append(parameter)
    return tuple(
        Part(
            name=name,
            parameters=sum(each.numel() for each in tensors),
            bytes=sum(each.numel() * each.element_size() for each in tensors),
        )
        for name, tensors in found.items()
    )
