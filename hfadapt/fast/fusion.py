"""torch.compile for element-wise passes that have no kernels of hfadapt's own: on GPUs.

The functions of kernels.py are compiled once for all layers, forward and backward, so that a GPU makes one pass over
memory where torch's operations make five to fifteen. Nothing is compiled outside of `fusing`; the plan decides whether
it is worth its time. Whole layers are left as they are: on CPUs they were slower compiled than in these parts, see
benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

from hfadapt.fast.compiled import is_fake

Function = TypeVar("Function", bound=Callable[..., Any])


class _State:
    """Not a context variable: a backward pass on a GPU runs in threads of its own."""

    on = False


@contextmanager
def fusing() -> Iterator[None]:
    """While inside, `fused` functions go through torch.compile."""
    before, _State.on = _State.on, True
    try:
        yield
    finally:
        _State.on = before


class Fused:
    """An element-wise function, compiled when it is first called while `fusing`.

    The first dimension of its tensors changes from call to call. `compiled` is None before that, then the compiled
    function, or the plain one where there is no compiler for it.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's own result."""
        if not _State.on or is_fake(arguments[0]) or self.compiled is self.plain:
            return self.plain(*arguments)
        import torch._dynamo as dynamo

        if self.compiled is None:
            self.compiled = torch.compile(self.plain)
        count = len(arguments[0])
        for value in arguments:
            inner = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) and value.dim() > 0
            if inner and len(value) == count:
                dynamo.maybe_mark_dynamic(value, 0)
        try:
            return self.compiled(*arguments)
        except dynamo.exc.TorchDynamoException:
            self.compiled = self.plain
            return self.plain(*arguments)

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile has made something of it."""
        return self.compiled not in (None, self.plain)


FUSED: list[Fused] = []


def fused(plain: Function) -> Function:
    """The function as one of `FUSED`."""
    FUSED.append(Fused(plain))
    return wraps(plain)(FUSED[-1])  # type: ignore[return-value]


def compile_seconds() -> float:
    """Seconds that this process has spent in torch.compile so far."""
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))
