"""What a device need not compute: modules whose weights their input never reaches, such as gates that are always open.

A layer whose weights are all zero answers with its bias, whatever it is given. A module around such a layer may do no
more than multiply by fixed numbers, which is asked of it with random inputs; it is replaced by just that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCALES = (1.0, 100.0, 0.01)
"""Sizes of the random numbers that a module is asked with."""


def fold_constants(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Replaces in place modules that multiply by fixed numbers only; gates that are always open become nothing.

    Args:
        model: In evaluation mode, its adapter merged.
        batch: What it is called with; shows the shapes that modules see.

    Returns:
        Paths of the modules that were replaced.
    """
    import torch

    shapes: dict[str, torch.Size] = {}
    suspects = {path for deaf in _deaf(model) for path in _around(deaf)}
    modules = {path: model.get_submodule(path) for path in suspects}
    hooks = [
        module.register_forward_hook(_shape_of(path, shapes), with_kwargs=True) for path, module in modules.items()
    ]
    with torch.no_grad():
        if hooks:
            model(**batch)
        for hook in hooks:
            hook.remove()
        found: dict[str, torch.nn.Module] = {}
        for path in sorted(shapes, key=lambda path: path.count("."), reverse=True):
            if not any(inner.startswith(f"{path}.") for inner in found):
                factor = _factor(modules[path], shapes[path])
                if factor is not None:
                    found[path] = _replacement(factor)
    for path, module in found.items():
        model.set_submodule(path, module)
    return tuple(found)


def _deaf(model: Any) -> list[str]:
    """Linear and convolutional layers that answer with their bias alone."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [path for path, each in model.named_modules() if isinstance(each, kinds) and not each.weight.any()]


def _around(path: str) -> list[str]:
    """The modules in which a layer lies, without the model itself."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _shape_of(path: str, shapes: dict[str, torch.Size]) -> Any:
    """A hook that keeps the shape of what a module is given, where that is one tensor and it gives one like it."""

    def look(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        import torch

        alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor)
        if alone and args[0].shape == output.shape and args[0].is_floating_point():
            shapes[path] = output.shape

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

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", factor)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            """As large as what is given."""
            return values * self.factor

    return Scale()
