"""What a model's config says of it: whoever opens the files builds the model from that, and then loads the weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from hfadapt.core.errors import RequestError

SHOWN = 3


def built(model: Any, config: Any) -> Any:
    """A model of the same class on the meta device, from a config as it is read from its file.

    Raises:
        ValueError, TypeError, …: as configs and models refuse what they cannot be.
    """
    import torch

    again = type(config).from_dict(json.loads(config.to_json_string(use_diff=False)))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = type(model)(again)
    made.tie_weights()
    return made


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def require_said(
    model: Any, place: str, fix: str, *, found: Mapping[str, tuple[int, ...]] | None = None, config: Any = None
) -> Any:
    """Builds what a config says; by default that of the model.

    Args:
        place: Field of the recipe that asked for a change.
        fix: What to set instead.
        found: Shapes of the parameters there are, if not those of the model.

    Raises:
        RequestError: the model has other parameters.
    """
    said: Any = None
    try:
        said = built(model, model.config if config is None else config)
        wanted = shapes(said)
        found = shapes(model) if found is None else found
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        got = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    except Exception as error:
        # Configs and models refuse what they cannot be with errors of every kind.
        names, got = [""], (" ".join(str(error).split()) or type(error).__name__)[:200]
    if names:
        raise RequestError(
            "the config of this model cannot say that it is smaller so, and nobody could open it",
            place=place,
            got=f"{type(model).__name__}: {got}",
            allowed="what plain transformers builds from config.json",
            fix=fix,
        )
    return said
