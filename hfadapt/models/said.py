"""What a model's config says of it: whoever opens the files builds the model from that, and then loads the weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from hfadapt.core.errors import RequestError

SHOWN = 3
Shapes = Mapping[str, tuple[int, ...]]


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def built(model: Any, config: Any, place: str, fix: str) -> Any:
    """A model of the same class without weights (on the meta device), from a config as it is read from its file.

    Args:
        place: Field of the recipe that asks for it.
        fix: What to set instead.

    Raises:
        RequestError: the config or the model cannot be so.
    """
    import torch

    try:
        again = type(config).from_dict(json.loads(config.to_json_string(use_diff=False)))
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = type(model)(again)
    except Exception as error:
        # Configs and models refuse what they cannot be with errors of every kind.
        raise _unsaid(model, " ".join(str(error).split()) or type(error).__name__, place, fix) from None
    made.tie_weights()
    return made


def require_said(model: Any, config: Any, place: str, fix: str, *, found: Shapes | None = None) -> None:
    """Sees to it that the model a config says has the same parameters.

    Args:
        place, fix: As of `built`.
        found: The shapes of the parameters, if not those of the model.

    Raises:
        RequestError: it has others.
    """
    wanted, found = shapes(built(model, config, place, fix)), shapes(model) if found is None else found
    if names := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
        raise _unsaid(model, ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else ""), place, fix)


def _unsaid(model: Any, got: str, place: str, fix: str) -> RequestError:
    return RequestError(
        "the config of this model cannot say that it is smaller so, and nobody could open it",
        place=place,
        got=f"{type(model).__name__}: {got}"[:300],
        allowed="what plain transformers builds from config.json",
        fix=fix,
    )
