"""Other activations for hardware that computes in whole numbers: GELU and SiLU become ReLU, ReLU6 or hard swish.

The config says the new activation, so plain transformers opens the model; which activations that is depends on the
config alone, and those that an architecture has fixed stay. Of gated parts it is the gate that changes. A model that
gets other activations at once forgets; y = (1 - s) old(x) + s new(x), with s from 0 to 1 while it is trained, leads it
over.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.models.said import built
from hfadapt.recipe.student import Activation

if TYPE_CHECKING:
    import torch

NAMES: tuple[str, ...] = get_args(Activation)
"""Of transformers, without exponentials: a comparison, a bound, a product."""
FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
PLACE, FIX = "student.activation", "delete `student.activation`"


class Ramp:
    """A model on the way from the activations that it had to those that its config says.

    Attributes:
        paths: The activations that change.
    """

    def __init__(self, model: Any, old: Mapping[str, Any]) -> None:
        self._model, self.paths = model, tuple(old)
        self._blends = {path: _blend(old[path], model.get_submodule(path)) for path in self.paths}
        for path, blend in self._blends.items():
            model.set_submodule(path, blend)

    def set(self, share: float) -> None:
        """How much of the new activation there is: 0 to 1."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share of {share} is not between 0 and 1")
        for blend in self._blends.values():
            blend.share = share

    def end(self) -> None:
        """Leaves the new activations alone."""
        for path, blend in self._blends.items():
            self._model.set_submodule(path, blend.new)


def activation_of(config: Any) -> str | None:
    """The activation of feed-forward parts that a config names; None where it names none."""
    return next(iter(_named(config).values()), None)


def swap(model: Any, name: str) -> str:
    """Puts another activation in the place of the one that the config names, wherever it stands, and names it there.

    Args:
        name: One of `NAMES`.

    Returns:
        The name of the one before, which `ramp` takes.

    Raises:
        RequestError: there is no such activation, or the config names none.
    """
    if name not in NAMES:
        raise RequestError("", problems=[choice_problem("no such activation for integer hardware", name, NAMES, PLACE)])
    old, new = activation_of(model.config), _others(model, name)
    if old is None or not new:
        raise RequestError(
            "the config of this model says no activation that could become another one",
            place=PLACE,
            got=f"{type(model).__name__}, {old or 'none'}",
            allowed=f"GELU, SiLU or another activation in {', '.join(FIELDS)}",
            fix=FIX,
        )
    for path, module in new.items():
        model.set_submodule(path, module)
    _name(model.config, name)
    return old


def ramp(model: Any, old: str) -> Ramp:
    """A blend of old and new in the place of every activation that the config names; at first it is the old one.

    Args:
        model: Its config names the new activation; adapters may be on it.
        old: What its config named before (`swap`).
    """
    # peft has the model inside.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return Ramp(model, _others(model, old))


def _named(config: Any) -> dict[str, str]:
    """The fields that name one activation."""
    text = config.get_text_config()
    found = {field: value for field in FIELDS if isinstance(value := getattr(text, field, None), str)}
    return {field: value for field, value in found.items() if value == next(iter(found.values()))}


def _name(config: Any, name: str) -> None:
    fields = _named(config)
    for each in (config, config.get_text_config()):
        for field in fields:
            if hasattr(each, field):
                setattr(each, field, name)


def _others(model: Any, name: str) -> dict[str, Any]:
    """The activations that a model would have in other places if its config named that one, by their paths."""
    changed = copy.deepcopy(model.config)
    _name(changed, name)
    said = built(model, model.config, PLACE, FIX), built(model, changed, PLACE, FIX)
    # By name: what is parametrised has a class of its own. One activation may stand in several places.
    before, after = (
        {path: type(each).__name__ for path, each in one.named_modules(remove_duplicate=False)} for one in said
    )
    paths = [path for path, kind in before.items() if after.get(path) != kind]
    return {path: said[1].get_submodule(path).train(model.training) for path in paths}


def _blend(old: torch.nn.Module, new: torch.nn.Module) -> Any:
    from torch import nn

    class Blend(nn.Module):
        """(1 - share) old + share new; at either end only one is computed."""

        share = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.old, self.new = old, new

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            """As large as what is given."""
            if self.share == 0.0 or self.share == 1.0:
                found: torch.Tensor = (self.new if self.share else self.old)(values)
                return found
            return (1 - self.share) * self.old(values) + self.share * self.new(values)

    return Blend()
