"""Fewer layers and narrower feed-forward parts, so that plain transformers opens the result from its config.

What goes is the last layers (Sajjad et al. 2020, arXiv 2004.03844), and of each feed-forward part the units with the
least mean absolute activation times the norm of their column in the next matrix; all layers keep the same number of
them, as a config has one width.

Shapes: N values of a layer, H hidden, I units of a feed-forward part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError

if TYPE_CHECKING:
    import torch

LAYERS = ("num_hidden_layers", "encoder_layers", "n_layers", "n_layer", "num_layers")
WIDTHS = ("intermediate_size", "encoder_ffn_dim", "ffn_dim", "hidden_dim", "n_inner")
MULTIPLE = 16
"""Widths are multiples of it, which matrix units of processors want."""


def layers_of(model: Any) -> int:
    """How many layers there are to choose from. Raises RequestError where they are not one list of a known number."""
    return len(_stack(model))


def width_of(config: Any) -> int:
    """Units of a feed-forward part, by the config. Raises RequestError where it does not say it."""
    return int(getattr(config, _field(config, WIDTHS, "the width of its feed-forward parts")))


def cut_config(config: Any, layers: int, width: int | None) -> None:
    """Says in a config that there are fewer layers, and of a width where one is given."""
    name = _field(config, LAYERS, "the number of its layers")
    before = int(getattr(config, name))
    for field, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == before and before > 1 and "label" not in field:
            # What each layer is, as in `layer_types`.
            setattr(config, field, value[:layers])
    setattr(config, name, layers)
    if width is not None:
        setattr(config, _field(config, WIDTHS, "the width of its feed-forward parts"), width)


def drop_layers(model: Any, keep: int) -> None:
    """Leaves the first `keep` layers."""
    stack = _stack(model)
    if not 1 <= keep <= len(stack):
        raise RequestError(
            "so many layers cannot be kept",
            place="student.layers",
            got=str(keep),
            allowed=f"1 to {len(stack)}",
            fix=f"choose a number up to {len(stack)}",
        )
    before = len(stack)
    del stack[keep:]
    if keep < before:
        cut_config(model.config, keep, None)


def narrowed(width: int, share: float) -> int:
    """A share of a width, as a multiple of 16."""
    return max(MULTIPLE, min(width, round(width * share / MULTIPLE) * MULTIPLE))


def cut_ffn(model: Any, width: int, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Leaves `width` units of every feed-forward part.

    Args:
        batches: Inputs of training rows, by which units are compared.
    """
    import torch

    before = width_of(model.config)
    if width >= before:
        return
    parts = [_ffn(layer, before) for layer in _stack(model)]
    sums = [torch.zeros(before) for _ in parts]
    hooks = []
    for (_, down), total in zip(parts, sums, strict=True):

        def add(module: Any, inputs: tuple[Any, ...], total: torch.Tensor = total) -> None:
            total += inputs[0].detach().float().abs().flatten(0, -2).sum(0).cpu()

        hooks.append(down.register_forward_pre_hook(add))
    try:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for (ups, down), total in zip(parts, sums, strict=True):
            worth = total * down.weight.float().norm(dim=0).cpu()
            kept = worth.topk(width).indices.sort().values.to(down.weight.device)
            for up in ups:
                up.weight = torch.nn.Parameter(up.weight[kept].clone(), requires_grad=False)
                if up.bias is not None:
                    up.bias = torch.nn.Parameter(up.bias[kept].clone(), requires_grad=False)
                up.out_features = width
            down.weight = torch.nn.Parameter(down.weight[:, kept].clone(), requires_grad=False)
            down.in_features = width
    cut_config(model.config, layers_of(model), width)


def _stack(model: Any) -> Any:
    """The list of layers, as long as the config says."""
    from torch import nn

    count = int(getattr(model.config, _field(model.config, LAYERS, "the number of its layers")))
    found = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    if not found:
        raise RequestError(
            "this model's layers cannot be chosen",
            place="student",
            got=f"{type(model).__name__}, without a list of {count} layers",
            allowed="a model with one list of layers, as transformers for texts, images and sounds have",
            fix="choose another base, or delete `student`",
        )
    return found[0]


def _field(config: Any, names: tuple[str, ...], what: str) -> str:
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


def _ffn(layer: Any, width: int) -> tuple[list[Any], Any]:
    """The matrices into the units of a layer's feed-forward part, and the one that leads out of them."""
    from torch import nn

    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    downs = [each for each in linear if each.in_features == width and each.out_features != width]
    ups = [each for each in linear if each.out_features == width and each.in_features != width]
    if len(downs) != 1 or not 1 <= len(ups) <= 2:
        raise RequestError(
            "the feed-forward parts of this model cannot be told from its other matrices",
            place="student.ffn",
            got=f"{len(ups)} matrices into {width} units and {len(downs)} out of them in a {type(layer).__name__}",
            allowed="one or two, and one",
            fix="delete `student.ffn`",
        )
    return ups, downs[0]
