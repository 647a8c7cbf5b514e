"""What a device need not compute: gates that are always open, and windows far larger than what they look at.

A layer whose weights are all zero answers with its bias, whatever it is given. A module around such a layer may do no
more than multiply by fixed numbers, which is asked of it with random inputs; it is replaced by just that. An average
over a window that is larger than the picture is the average over the picture; a converter may fill the window up
(EfficientNet's last one is as wide as it has channels: 1280 x 1280 x 1280 numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCALES = (1.0, 100.0, 0.01)
"""Sizes of the random numbers that a module is asked with."""


def simplify(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Replaces in place modules that multiply by fixed numbers only, and averages over all that they are given.

    Gates that are always open become nothing. A model for pictures is afterwards one for those of the batch's size.

    Args:
        model: In evaluation mode, its adapter merged.
        batch: What it is called with; shows the shapes that modules see.

    Returns:
        Paths of the modules that were replaced.
    """
    import torch
    from torch import nn

    pools = {path: each for path, each in model.named_modules() if isinstance(each, nn.AvgPool2d)}
    around = {path: model.get_submodule(path) for deaf in _deaf(model) for path in _around(deaf)}
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [each.register_forward_hook(_look(path, seen), with_kwargs=True) for path, each in (pools | around).items()]
    found: dict[str, torch.nn.Module] = {}
    with torch.no_grad():
        if hooks:
            model(**batch)
        for hook in hooks:
            hook.remove()
        for path in sorted(seen, key=lambda path: path.count("."), reverse=True):
            given, answer = seen[path]
            if path in pools:
                if _averages_all(given, answer):
                    found[path] = nn.AdaptiveAvgPool2d(1)
            elif given.shape == answer.shape and not any(inner.startswith(f"{path}.") for inner in found):
                factor = _factor(around[path], given.shape)
                if factor is not None:
                    found[path] = _replacement(factor)
    for path, module in found.items():
        model.set_submodule(path, module)
    return tuple(found)


def _averages_all(given: torch.Tensor, answer: torch.Tensor) -> bool:
    """Whether an average (B, C, 1, 1) is that over all places (B, C, H, W)."""
    import torch

    mean = given.mean((-2, -1), keepdim=True)
    return answer.shape == mean.shape and torch.allclose(answer, mean, rtol=1e-5, atol=1e-6)


def _deaf(model: Any) -> list[str]:
    """Linear and convolutional layers that answer with their bias alone."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [path for path, each in model.named_modules() if isinstance(each, kinds) and not each.weight.any()]


def _around(path: str) -> list[str]:
    """The modules in which a layer lies, without the model itself."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _look(path: str, seen: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A hook that keeps what a module is given and answers, where both are one tensor."""

    def look(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        import torch

        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor)
        if alone and args[0].is_floating_point():
            seen[path] = args[0], output

    return look


def _factor(module: Any, shape: torch.Size) -> torch.Tensor | None:
    """What a module multiplies by, if it does only that, with a size of 1 where it is the same along an axis."""
    import torch

    some = next(module.parameters())
    ones = torch.ones(shape, dtype=some.dtype, device=some.device)
    factor = module(ones)
    draw = torch.Generator().manual_seed(0)
    for scale in SCALES:
        given = (torch.randn(shape, generator=draw) * scale).to(ones)
        if not torch.equal(module(given), given * factor):
            return None
    for axis in range(factor.dim()):
        first = factor.narrow(axis, 0, 1)
        factor = first if bool((factor == first).all()) else factor
    # The rows of a batch, and the places of a picture, are not told apart.
    return factor.clone() if sum(size > 1 for size in factor.shape) <= 1 else None


def _replacement(factor: torch.Tensor) -> torch.nn.Module:
    """A module that multiplies by fixed numbers."""
    import torch

    if bool((factor == 1).all()):
        return torch.nn.Identity()

    class Scale(torch.nn.Module):
        """Multiplies."""

        factor: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", factor)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            """As large as what is given."""
            return values * self.factor

    return Scale()
