"""torch.compile for the regions of a step that have no kernels of hfadapt's own.

Two kinds. `fused` passes: the element-wise functions of kernels.py, each compiled once for all layers, forward and
backward, so that a GPU makes one pass over memory where torch's operations make five to fifteen. `compiled_layers`:
whole layers of a model, where its low-rank products are the libraries' own and not one function of ours. Nothing is
compiled outside of `fusing`. The plan decides whether that is worth its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


@contextmanager
def compiled_layers(model: Any) -> Iterator[Mapping[Any, Callable[..., Any]]]:
    """The layers that a model repeats, by transformers' own mark, and for each its forward through torch.compile.

    Layers of one class share what is compiled; sizes are dynamic from the start, so that a resumed run compiles what
    the uninterrupted one did. What cannot be compiled runs as it is written. There are none where layers are computed
    again in the backward pass: around that torch.compile leaves them as they are.
    """
    import torch._dynamo.config as settings
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if any(layer.gradient_checkpointing for layer in layers):
        layers = []
    before, settings.suppress_errors = settings.suppress_errors, True
    try:
        yield {layer: torch.compile(type(layer).forward, dynamic=True).__get__(layer) for layer in layers}
    finally:
        settings.suppress_errors = before


def compile_seconds() -> float:
    """Seconds that this process has spent in torch.compile so far."""
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))
