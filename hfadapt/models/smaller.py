"""A smaller model, said by its config alone: fewer layers, and narrower feed-forward parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hfadapt.core.errors import RequestError
from hfadapt.models.facts import first

LAYERS = ("num_hidden_layers", "encoder_layers", "n_layers", "n_layer", "num_layers")
WIDTHS = ("intermediate_size", "encoder_ffn_dim", "ffn_dim", "hidden_dim", "n_inner", "d_ff")
RATIO = "mlp_ratio"
"""The width as a multiple of the hidden size, in some models for images."""
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
OF_LAYERS = ("layer", "block", "types")
"""In names of lists that say of each layer what it is, as `layer_types`."""
MULTIPLE = 16
"""Widths are multiples of it, which matrix units of processors want."""
NUMBER = "the number of its layers"
WIDTH = "the width of its feed-forward parts"
FIX = "delete `student.ffn`"


def width_of(config: Any) -> int:
    """Units of a feed-forward part, by the config. Raises RequestError where it does not say it."""
    if getattr(config, "n_inner", 0) is None:
        # GPT-2, where nothing else is said.
        return 4 * int(first(config, *HIDDEN, default=0))
    if isinstance(ratio := getattr(config, RATIO, None), (int, float)):
        return int(first(config, *HIDDEN, default=0) * ratio)
    return int(getattr(config, field_of(config, WIDTHS, WIDTH)))


def cut_config(config: Any, layers: int, width: int | None, kept: Sequence[int] | None = None) -> None:
    """Says in a config that there are fewer layers, and of a width where one is given.

    Args:
        kept: Which layers these are; the first ones where it is not said.

    Raises:
        RequestError: it does not say either, or has no such width.
    """
    name = field_of(config, LAYERS, NUMBER)
    before = int(getattr(config, name))
    for each, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == before and any(part in each for part in OF_LAYERS):
            setattr(config, each, [value[number] for number in kept or range(layers)])
    setattr(config, name, layers)
    if layers != before and hasattr(config, "stage_names"):
        # Of models for images, which answer as a part of others with what one of their layers says.
        config.stage_names = config.stage_names[: layers + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)
    if width is None or width == width_of(config):
        return
    if getattr(config, "n_inner", 0) is None:
        config.n_inner = width
    elif getattr(config, RATIO, None) is not None:
        setattr(config, RATIO, _ratio(config, width))
    else:
        setattr(config, field_of(config, WIDTHS, WIDTH), width)


def sayable(config: Any, width: int) -> bool:
    """Whether a config can say so many units: as a multiple of the hidden size it may not."""
    try:
        cut_config(copy.deepcopy(config), int(getattr(config, field_of(config, LAYERS, NUMBER))), width)
    except RequestError:
        return False
    return True


def narrowed(width: int, share: float) -> int:
    """A share of a width, as a multiple of 16."""
    return max(MULTIPLE, min(width, round(width * share / MULTIPLE) * MULTIPLE))


def field_of(config: Any, names: tuple[str, ...], what: str) -> str:
    """Which of these fields a config has. Raises RequestError where it has none, and so does not say `what`."""
    for name in names:
        if isinstance(getattr(config, name, None), int):
            found: str = config.attribute_map.get(name, name)
            return found
    raise RequestError(
        f"this model's config does not say {what}, so a smaller one could not be opened",
        place="student",
        got=config.model_type,
        allowed=", ".join(names),
        fix="choose another base, or leave this part of it as it is",
    )


def _ratio(config: Any, width: int) -> int | float:
    """Of a width to the hidden size. Raises RequestError where the config takes whole numbers alone."""
    hidden = int(first(config, *HIDDEN, default=1))
    if width % hidden == 0:
        return width // hidden
    if isinstance(now := getattr(config, RATIO), int):
        raise RequestError(
            "the config of this model says the width of feed-forward parts in whole multiples of its hidden size",
            place="student.ffn",
            got=f"{width:,} units",
            allowed=", ".join(f"{hidden * ratio:,}" for ratio in range(1, now + 1)),
            fix="set student.ffn to " + " or ".join(f"{ratio / now:.2g}" for ratio in range(1, now))
            if now > 1
            else FIX,
        )
    # What is rounded down must not lose a unit.
    return next(ratio for ratio in (width / hidden, (width + 0.5) / hidden) if int(hidden * ratio) == width)
