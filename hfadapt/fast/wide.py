"""Products of bfloat16 numbers on a processor that has no such units: in float32, and rounded once.

Units for bfloat16 multiply its values exactly, sum in float32 and round at the end, and so does this, but for the
order of the sum. torch's own products there take 8 to 100 times as long as those in float32, so that measuring what
becomes of an adapter in 16 bits would take longer than all else. Nothing is timed like this: a latency is the
processor's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hfadapt.hardware.processor import BFLOAT16_UNITS, cpu_features

PRODUCTS = {
    functional.linear,
    functional.scaled_dot_product_attention,
    *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum")),
    *(getattr(torch, name) for name in ("conv1d", "conv2d", "conv3d")),
    *(getattr(torch.Tensor, name) for name in ("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm")),
}


def wide_products() -> AbstractContextManager[Any]:
    """While inside, products of bfloat16 tensors on a CPU without units for them are worked out in float32."""
    return nullcontext() if BFLOAT16_UNITS & set(cpu_features()) else _Wide()


class _Wide(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(_narrow(value) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        found = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        return found.to(torch.bfloat16)


def _narrow(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_narrow, value))
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _widened(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_widened(each) for each in value]
    return value.float() if _narrow(value) else value
