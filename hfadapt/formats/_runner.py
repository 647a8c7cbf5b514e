"""A file that a runtime of its own runs, called as transformers' models are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    import torch

Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Shape:
    """The one size of batch that a file takes; None where any will do.

    Args:
        rows: Rows of every batch.
        length: Tokens of every row, the second axis of inputs and, where there is one for each token, of outputs.
    """

    rows: int | None = None
    length: int | None = None


class OnCpu:
    """What those ask of a model who give it tensors. The runtime of a file itself knows where it computes."""

    training = False

    @property
    def device(self) -> torch.device:
        """Where tensors are expected and given back."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of numbers that are given."""
        import torch

        return torch.float32


@dataclass
class Runner(OnCpu):
    """Tensors in, tensors out: `runner(input_ids=…, attention_mask=…).logits`.

    Where the file takes one size only, rows and tokens are added to what is short and taken away from the answers,
    and more rows than it takes go through it one batch after the other.

    Args:
        run: Runs one batch: arrays in and out, by name.
        inputs: Names of what it takes, with numpy's name of their type. Other arguments of a call, such as options of
            transformers and inputs that the graph does not read, are left out.
        config: The model's.
        padding: What short rows are filled with, by input; 0 where nothing is said.
    """

    run: Callable[[Arrays], Arrays]
    inputs: Mapping[str, str]
    config: Any
    shape: Shape = Shape()
    padding: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, **given: Any) -> SimpleNamespace:
        """As `forward`."""
        return self.forward(**given)

    def forward(self, **given: Any) -> SimpleNamespace:
        """The outputs by name, as tensors (B, …).

        Raises:
            RunError: an input is missing, or rows are longer than the file takes.
        """
        import numpy as np
        import torch

        if lacking := [name for name in self.inputs if given.get(name) is None]:
            raise RunError("the file takes inputs that it is not given", got=", ".join(given), allowed=lacking[0])
        arrays = {name: given[name].cpu().numpy().astype(kind, copy=False) for name, kind in self.inputs.items()}
        parts = [self._fitted(part) for part in self._batches(arrays)]
        return SimpleNamespace(
            **{name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
        )

    def _batches(self, arrays: Arrays) -> Iterator[Arrays]:
        rows = len(next(iter(arrays.values())))
        for start in range(0, rows, self.shape.rows or rows):
            yield {name: values[start : start + (self.shape.rows or rows)] for name, values in arrays.items()}

    def _fitted(self, arrays: Arrays) -> Arrays:
        """The answers to at most `shape.rows` rows."""
        import numpy as np

        first = next(iter(arrays.values()))
        rows, length = len(first), first.shape[1]
        more_rows = (self.shape.rows or rows) - rows
        more_tokens = (self.shape.length or length) - length
        if more_tokens < 0:
            raise RunError(
                "a row is longer than the file takes", got=f"{length} tokens", allowed=f"at most {self.shape.length}"
            )
        given = {}
        for name, values in arrays.items():
            wider = [(0, more_rows), (0, more_tokens), *((0, 0),) * (values.ndim - 2)]
            given[name] = np.pad(values, wider, constant_values=self.padding.get(name, 0))
        found = self.run(given)
        taken = {}
        for name, values in found.items():
            # One for each token: the added ones are at its end.
            per_token = more_tokens and values.ndim > 2 and values.shape[1] == self.shape.length
            taken[name] = values[:rows, :length] if per_token else values[:rows]
        return taken
