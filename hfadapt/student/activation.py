"""Other activations for hardware that computes in whole numbers: GELU and SiLU become ReLU, ReLU6 or hard swish.

A model that gets other activations at once forgets; y = (1 - s) old(x) + s new(x), with s from 0 to 1 while it is
trained, leads it over. Of gated parts it is the gate that changes. At the end the config says the new activation, so
plain transformers opens the model; which activations that is depends on the config alone, and those that an
architecture has fixed stay.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.student.said import built

if TYPE_CHECKING:
    import torch

NAMES = ("relu", "relu6", "hardswish")
"""Of transformers, without exponentials: a comparison, a bound, a product."""
FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
PLACE, FIX = "student.activation", "delete `student.activation`"


class Ramp:
    """A model on the way from one activation to another.

    Attributes:
        paths: The activations that change.
    """

    def __init__(self, model: Any, name: str, fields: dict[str, str], old: dict[str, Any], new: dict[str, Any]) -> None:
        self.paths = tuple(old)
        self._model, self._name, self._fields, self._new = model, name, fields, new
        self._blends = {path: _blend(old[path], new[path]) for path in self.paths}
        for path, blend in self._blends.items():
            model.set_submodule(path, blend)

    def set(self, share: float) -> None:
        """How much of the new activation there is: 0 to 1."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a share of {share} is not between 0 and 1")
        for blend in self._blends.values():
            blend.share = share

    def finish(self) -> None:
        """Leaves the new activations alone, and says them in the config."""
        for path in self.paths:
            self._model.set_submodule(path, self._new[path])
        for config in (self._model.config, self._model.config.get_text_config()):
            for field in self._fields:
                if hasattr(config, field):
                    setattr(config, field, self._name)


def swap(model: Any, name: str) -> Ramp:
    """Puts a blend of old and new in the place of every activation that the config says; at first it is the old one.

    Args:
        name: One of `NAMES`.

    Raises:
        RequestError: there is no such activation, or the config says none.
    """
    if name not in NAMES:
        raise RequestError("", problems=[choice_problem("no such activation for integer hardware", name, NAMES, PLACE)])
    changed = copy.deepcopy(model.config)
    text = changed.get_text_config()
    fields = {field: value for field in FIELDS if isinstance(value := getattr(text, field, None), str)}
    for field in fields:
        setattr(text, field, name)
    said = built(model, model.config, PLACE, FIX), built(model, changed, PLACE, FIX)
    # By name: what is parametrised has a class of its own. One activation may stand in several places.
    before, after = (
        {path: type(each).__name__ for path, each in one.named_modules(remove_duplicate=False)} for one in said
    )
    paths = [path for path, kind in before.items() if after.get(path) != kind]
    if not paths:
        raise RequestError(
            "the config of this model says no activation that could become another one",
            place=PLACE,
            got=f"{type(model).__name__}, {', '.join(f'{key}: {value}' for key, value in fields.items()) or 'none'}",
            allowed=f"GELU, SiLU or another activation in {', '.join(FIELDS)}",
            fix=FIX,
        )
    new = {path: said[1].get_submodule(path).train(model.training) for path in paths}
    return Ramp(model, name, fields, {path: model.get_submodule(path) for path in paths}, new)


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
