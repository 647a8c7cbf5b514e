"""The live tensors of one real training step, traced under fake tensors: shapes and lifetimes, no memory, no weights.

The model is built on the meta device, cut to one and to two layers, given its adapter, and run forward and backward
at three lengths while every storage is counted from its creation to its release. What is live at the end of the
forward pass, and the peaks before and after, are then affine in the number of layers and quadratic in the length, so
nine numbers answer every (layers, rows, tokens).
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MARKS = ("forward_peak", "forward_end", "backward_peak", "evaluate_peak")
LENGTHS = (64, 128, 256)
ROWS = 2


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def ignore(self, model: torch.nn.Module) -> None:
        """What exists before the step is counted elsewhere."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

        def release() -> None:
            self._known.discard(key)
            self.bytes -= size

        weakref.finalize(storage, release)

    def since(self) -> None:
        """Forgets the peak so far."""
        self.peak_bytes = self.bytes


@cache
def step_terms(key: StepKey) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """For each mark: coefficients (1, B T, B T^2) outside the layers, and the same for one layer."""
    found: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
    marks = {(n, t): step_marks(key, n, t) for n in (1, 2) for t in key.lengths}
    for mark in MARKS:
        one, two = (_fit(key.lengths, [marks[n, t][mark] for t in key.lengths]) for n in (1, 2))
        layer = tuple(b - a for a, b in zip(one, two, strict=True))
        found[mark] = (tuple(a - b for a, b in zip(one, layer, strict=True)), layer)
    return found


def _fit(lengths: tuple[int, ...], values: list[int]) -> tuple[float, ...]:
    """Coefficients of 1, B T and B T^2 through the traced values; a single length gives the second alone."""
    import numpy as np

    if len(lengths) == 1:
        return (0.0, values[0] / (ROWS * lengths[0]), 0.0)
    table = np.array([[1.0, ROWS * t, ROWS * t * t] for t in lengths])
    return tuple(float(c) for c in np.linalg.lstsq(table, np.array(values, dtype=float), rcond=None)[0])
