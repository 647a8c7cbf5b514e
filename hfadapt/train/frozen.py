"""Outputs of the frozen layers below the first trained one, worked out once for each row.

Nothing that is trained comes before them, so a row has the same outputs in every epoch (compare AutoFreeze,
arXiv 2102.01386). They stay in a file, in their own dtype, so that training needs no more memory than without.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from hfadapt.core.errors import RunError
from hfadapt.core.show import show_bytes
from hfadapt.fast import Documents, replaced
from hfadapt.models.facts import layer_stacks

FILE = "frozen-layers.bin"
DISK_SHARE = 0.8
"""Of what is free on the disk, the file takes this much at most."""


def frozen_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers below the first that is trained; none where the model has not one list of them."""
    stacks = list(layer_stacks(model).values())
    if len(stacks) != 1:
        return []
    found: list[torch.nn.Module] = []
    for layer in stacks[0]:
        if any(parameter.requires_grad for parameter in layer.parameters()):
            break
        found.append(layer)
    return found


class _Reached(Exception):
    """The last frozen layer was run."""

    def __init__(self, result: Any) -> None:
        super().__init__("the last frozen layer was run")
        self.result = result


class FrozenCache:
    """What comes out of the frozen layers for each row: collected first, then given in their place.

    Args:
        layers: The first layers of a model, which give on one tensor (or a tuple that holds nothing else).
        lengths: Tokens of each row by a key of it, the same in all processes that share the file.
        folder: Where the file is.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], lengths: Mapping[int, int], folder: Path) -> None:
        self.layers = layers
        self.path = folder / FILE
        self._tokens = sum(lengths.values())
        self._first = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
        self._collecting = False
        self._tuple = False
        self._dtype: torch.dtype | None = None
        self._width = 0
        self._given: torch.Tensor | None = None

    @contextmanager
    def on(self, *, first: bool, wait: Callable[[], None]) -> Iterator[FrozenCache]:
        """While inside, the file is open and the layers do as they are told; without being told, as always.

        Args:
            first: Whether this process makes the file.
            wait: Returns when all processes have called it.
        """
        if first:
            self.path.write_bytes(b"")
        wait()
        with ExitStack() as stack:
            stack.callback(lambda: self.path.unlink(missing_ok=True) if first else None)
            self._file = stack.enter_context(self.path.open("r+b", buffering=0))
            wait()
            if first:
                # So that it goes away with the processes, however they end; some systems do not delete open files.
                with suppress(OSError):
                    self.path.unlink()
            for layer in self.layers:
                stack.enter_context(replaced(layer, self._forward(layer)))
            yield self

    def _forward(self, layer: torch.nn.Module) -> Callable[..., Any]:
        own, last = layer.forward, layer is self.layers[-1]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                result = args[0] if args else kwargs["hidden_states"]
                if last:
                    result = self._given.view(*result.shape[:-1], self._width)
                return (result,) if self._tuple else result
            result = own(*args, **kwargs)
            if last and self._collecting:
                raise _Reached(result)
            return result

        return forward

    @property
    def bytes(self) -> int:
        """Of the whole file, once the first rows were collected."""
        return self._tokens * self._token_bytes

    @property
    def _token_bytes(self) -> int:
        return 0 if self._dtype is None else self._width * self._dtype.itemsize

    def collect(self, rows: Sequence[int], documents: Documents, run: Callable[[], Any]) -> None:
        """Runs the model up to the last frozen layer and keeps what comes out of it for these rows.

        Raises:
            NotImplementedError: the layers are not frozen, or give on something else than a vector for each token.
            OSError: the disk is full.
        """
        self._collecting = True
        try:
            run()
        except _Reached as reached:
            result = reached.result
        else:
            raise NotImplementedError("the model does not run them one after the other")
        finally:
            self._collecting = False
        self._tuple = isinstance(result, tuple)
        hidden, *others = result if self._tuple else (result,)
        if any(other is not None for other in others):
            raise NotImplementedError("they give on more than one tensor")
        if hidden.requires_grad:
            raise NotImplementedError("something is trained before them")
        hidden = hidden.detach().reshape(-1, hidden.shape[-1]).cpu()
        if len(hidden) != documents.tokens:
            raise NotImplementedError("their outputs are not one vector for each token")
        if self._dtype is None:
            self._dtype, self._width = hidden.dtype, hidden.shape[-1]
            free = shutil.disk_usage(self.path.parent).free
            if self.bytes > DISK_SHARE * free:
                raise OSError(f"{show_bytes(self.bytes)} of disk are needed, {show_bytes(free)} are free")
        for row, start, length in zip(rows, documents.starts, documents.lengths, strict=True):
            self._file.seek(self._first[row] * self._token_bytes)
            _write(self._file, hidden[start : start + length])

    @contextmanager
    def given(self, rows: Sequence[int], documents: Documents, device: torch.device) -> Iterator[None]:
        """While inside, the layers give on what was collected for these rows."""
        assert self._dtype is not None
        hidden = torch.zeros(documents.tokens, self._width, dtype=self._dtype)
        for row, start, length in zip(rows, documents.starts, documents.lengths, strict=True):
            self._file.seek(self._first[row] * self._token_bytes)
            _read(self._file, hidden[start : start + length])
        self._given = hidden.to(device, non_blocking=True)
        try:
            yield
        finally:
            self._given = None


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")


def _write(file: Any, tensor: torch.Tensor) -> None:
    left = _bytes_of(tensor)
    while left:
        left = left[file.write(left) :]


def _read(file: Any, tensor: torch.Tensor) -> None:
    left = _bytes_of(tensor)
    while left:
        count = file.readinto(left)
        if not count:
            raise RunError("outputs of frozen layers are missing in their file", place=FILE, fix="start the run again")
        left = left[count:]
