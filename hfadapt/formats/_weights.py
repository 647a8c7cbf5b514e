"""The numbers in a file that a runtime of its own reads, held against the model that was to be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MOST_DENORMAL = 0.01
SAME, MOST_STEPS = 1e-5, 1.01
"""What float32 may differ by, of the largest, and how many steps what is rounded may."""
FITTED = 0.5
"""By how many steps more a scale that is fitted to rounded numbers may be wrong."""


@dataclass(frozen=True)
class Weights:
    """Numbers that are part of a file.

    Args:
        values: As the file means them: unpacked where they are rounded.
        step: What they are rounded to, as wide as `values` or 1; 0 where they are not rounded.
    """

    values: np.ndarray
    step: np.ndarray


def faults(found: Iterable[tuple[str, Weights]], model: Any) -> Iterator[str]:
    """NaN, matrices that are none of the model's, and numbers so small that processors compute with them slowly.

    Args:
        model: Of torch; each matrix of the file has to be one of its.
    """
    import numpy as np

    own = [tensor.double().cpu().numpy() for tensor in model.state_dict().values() if tensor.ndim == 2]
    small = total = 0
    foreign = {}
    for name, each in found:
        if not np.isfinite(each.values).all():
            # A mask may be filled with minus infinity, which is one number.
            if each.values.size > 1 or np.isnan(each.values).any():
                yield f"the weights of {_short(name)} hold NaN or Inf"
            continue
        size = np.abs(each.values)
        small += int(((size > 0) & (size < np.finfo(np.float32).tiny)).sum())
        total += size.size
        if (steps := _away(each, own)) > MOST_STEPS:
            foreign[name] = steps
    if foreign:
        name, steps = max(foreign.items(), key=lambda found: found[1])
        yield (
            f"{len(foreign)} of its matrices are none of the model's: the nearest one to {_short(name)} is {steps:.3g} "
            "steps of rounding away"
        )
    if small > MOST_DENORMAL * max(total, 1):
        yield f"{small:,} of {total:,} weights are denormal numbers"


def other_head(found: Iterable[tuple[str, Weights]], model: Any) -> Iterator[str]:
    """Whether the bias of a model's last linear layer, which rounding leaves in 32 bits, is not in the file."""
    import numpy as np

    own = model.state_dict()
    weight = {name: own.get(f"{name[:-4]}weight") for name in own if name.endswith(".bias")}
    biases = [name for name, each in weight.items() if each is not None and each.ndim == 2]
    bias = own[biases[-1]].double().cpu().numpy() if biases else np.zeros(1)
    least = SAME * max(1.0, float(np.abs(bias).max()))
    # Some graphs add a bias as a row.
    steps = [
        float((np.abs(each.values.ravel() - bias) / np.maximum(each.step.ravel(), least)).max())
        for _, each in found
        if each.values.size == bias.size and each.step.size in (1, bias.size)
    ]
    if bias.any() and not min(steps, default=np.inf) <= MOST_STEPS:
        yield f"the bias {biases[-1]} is not in the file"


def _short(name: str) -> str:
    """The last module in a name, which LiteRT's converter makes of all that it has put together."""
    return name.partition(";")[0].rpartition("/")[2] or name[:80]


def _away(each: Weights, own: Sequence[np.ndarray]) -> float:
    """The largest difference from the nearest matrix of a model, in steps of rounding; 0 where none has its shape.

    A converter may multiply a layer by the scales of the norm before it, one for each input: these are left out.
    """
    import numpy as np

    step = np.maximum(each.step, SAME * max(1.0, float(np.abs(each.values).max())))
    values, found = each.values / step, []
    for matrix, axis in ((matrix, axis) for one in own for matrix, axis in ((one, 0), (one.T, 1))):
        if matrix.shape == values.shape:
            found.append(float(np.abs(matrix / step - values).max()))
            found.append(float(np.abs(_scaled(matrix / step, values, axis) - values).max()) - FITTED)
    return min(found, default=0.0)


def _scaled(matrix: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """A matrix with each of its inputs scaled as in another one, both in steps; its outputs lie along `axis`."""
    import numpy as np

    size = (matrix**2).sum(axis, keepdims=True)
    factor = (matrix * like).sum(axis, keepdims=True) / np.maximum(size, np.finfo(np.float64).tiny)
    return np.asarray(matrix * factor)
