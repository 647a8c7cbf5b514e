"""Rounding to 8 bits while a model learns, so that its weights settle where a dynamic form of 8 bits leaves them.

Weights of linear layers are rounded by a step for each output, tables of embeddings by one for all, and what goes into
a linear layer by the range of its values, as ONNX Runtime's and LiteRT's dynamic forms do. Gradients pass as if nothing
had been rounded (straight-through, Bengio et al. 2013, arXiv 1308.3432). Parameters stay what they are, and so do their
names.

Shapes: O outputs, I inputs of a linear layer, V rows of a table, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError

if TYPE_CHECKING:
    import torch

STEPS, FEWER = 127, 64
"""Steps from zero to the largest weight, of 8 bits and of 7."""
LEVELS = 255


class Rounded:
    """A model whose products are rounded, until `remove`; also a context."""

    def __init__(self, modules: list[Any]) -> None:
        self._modules = modules

    def remove(self) -> None:
        """Leaves plain modules; a second time changes nothing."""
        while self._modules:
            del self._modules.pop().forward

    def __enter__(self) -> Rounded:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def fake_quantise(model: Any, *, reduce_range: bool = False, each_row: bool = False) -> Rounded:
    """Rounds weights and inputs of all linear layers, and embeddings, in every forward pass.

    Args:
        reduce_range: Weights of linear layers in 7 bits, as ONNX Runtime has them for x86 processors before VNNI.
        each_row: A range for each row of an input and of a table, as LiteRT has; else one for all that goes in at once.

    Raises:
        RequestError: an adapter is not merged, or its base is quantised: what would be rounded is not what is exported.
    """
    from torch import nn

    def kinds(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if isinstance(module, nn.Linear):
            return partial(_by_output, axis=1, steps=FEWER if reduce_range else STEPS)
        if hasattr(module, "nf"):
            # GPT-2's Conv1D has its weight the other way round.
            return partial(_by_output, axis=0, steps=FEWER if reduce_range else STEPS)
        if isinstance(module, nn.Embedding):
            return partial(_by_output, axis=1, steps=STEPS) if each_row else _by_range
        return None

    wrong = [
        path
        for path, each in model.named_modules()
        if hasattr(each, "base_layer") or (kinds(each) and not each.weight.is_floating_point())
    ]
    if wrong:
        raise RequestError(
            "8 bits are tried on a model in 16 or 32 bits into which its adapter is merged",
            place="student.int8",
            got=f"{type(model).__name__}, with {wrong[0]} beside an adapter or quantised",
            fix="merge the adapter first",
        )
    rounded = [module for module in model.modules() if kinds(module)]
    for module in rounded:
        of_input = None if isinstance(module, nn.Embedding) else partial(_by_range, each_row=each_row)
        module.forward = partial(_forward, module, module.forward, kinds(module), of_input)
    return Rounded(rounded)


def _forward(module: Any, plain: Any, of_weight: Any, of_input: Any, given: torch.Tensor) -> torch.Tensor:
    """What a module answers with a rounded weight, and a rounded input where it multiplies."""
    weight = module._parameters["weight"]
    module._parameters["weight"] = of_weight(weight)
    try:
        found: torch.Tensor = plain(given if of_input is None else of_input(given))
    finally:
        module._parameters["weight"] = weight
    return found


def _straight(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded values, with the gradient of the others."""
    return values + (rounded - values).detach()


def _by_output(weight: torch.Tensor, *, axis: int, steps: int) -> torch.Tensor:
    """(O, I), or whatever lies along an axis, in so many steps of its own from zero to its largest."""
    step = weight.detach().abs().amax(axis, keepdim=True) / steps
    step = step.where(step > 0, 1.0)
    return _straight(weight, (weight / step).round() * step)


def _by_range(values: torch.Tensor, *, each_row: bool = False) -> torch.Tensor:
    """In steps from the least to the largest of all values, or of each row; zero stays zero."""
    fixed = values.detach()
    low, high = (fixed.amin(-1, keepdim=True), fixed.amax(-1, keepdim=True)) if each_row else fixed.aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low) / LEVELS
    step = step.where(step > 0, 1.0)
    zero = (-low / step).round()
    return _straight(values, (((values / step).round() + zero).clamp(0, LEVELS) - zero) * step)
