"""Where the bytes and the arithmetic of a model are, and how much of it a form of 8 bits does in whole numbers.

A dynamic form rounds products with weights (linear layers); norms, softmax, activations and the products of activations
in attention stay in floating point. A static form, which convolutional nets bear, also rounds convolutions and those
products.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import HfadaptError
from hfadapt.models.activation import activation_of
from hfadapt.models.facts import describe, head_names, layer_stacks
from hfadapt.models.smaller import width_of
from hfadapt.plan.device import multiply_adds_by_kind
from hfadapt.records.student import Part, Shape
from hfadapt.student import shape

if TYPE_CHECKING:
    from hfadapt.models.load import Base


def shape_of(base: Base, task: str, length: int) -> Shape:
    """The size of a loaded model.

    Args:
        task: Its name.
        length: Units of a row.
    """
    from torch import nn

    model: Any = base.model
    layers: int | None = None
    width: int | None = None
    with suppress(HfadaptError):
        layers = shape.layers_of(model)
    with suppress(HfadaptError):
        width = width_of(model.config)
    into, out = None, model.get_output_embeddings()
    with suppress(NotImplementedError):  # Of what reads no table.
        into = model.get_input_embeddings()
    tables = {id(each.weight): each.weight.numel() for each in (into, out) if isinstance(each, nn.Embedding)}
    tables |= {id(out.weight): out.weight.numel()} if isinstance(out, nn.Linear) and into is not None else {}
    facts = describe(model, base.source.asked, task, int(model.config.num_labels), model.config)
    counted = multiply_adds_by_kind(facts, length)
    return Shape(
        layers=layers,
        width=width,
        tokens=into.num_embeddings if isinstance(into, nn.Embedding) else None,
        parameters=sum(each.numel() for each in model.parameters()),
        embeddings=sum(tables.values()),
        activation=activation_of(model.config),
        parts=parts(model),
        multiply_adds=counted,
        integer_share=counted.get("linear", 0) / sum(counted.values()) if counted else None,
    )


def parts(model: Any) -> tuple[Part, ...]:
    """Parameters and bytes of each part; every tensor counts once."""
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    try:
        stacks: tuple[str, ...] = (f"{shape.stack_of(model)[0]}.",)
    except HfadaptError:
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
