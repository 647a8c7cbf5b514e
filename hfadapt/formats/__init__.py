"""The Format contract: how a finished adapter leaves the run folder. One file per format.

What a format writes is opened again with plain transformers (and peft), never with hfadapt's own loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfadapt.quants import is_quantised

if TYPE_CHECKING:
    import torch

    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell


@dataclass(frozen=True)
class Form:
    """One way to serve an adapter.

    Args:
        storage: dtype or quant of the base's weights.
        merged: Whether the adapter is part of them.
        dequantised: Merged into what the quantised base stands for, not into the original weights.
    """

    storage: str
    merged: bool
    dequantised: bool = False

    @property
    def name(self) -> str:
        """Name in drift.json, such as `merged-bfloat16`."""
        return "-".join(("merged" if self.merged else "adapter", *(("dequantised",) * self.dequantised), self.storage))

    @property
    def quantised(self) -> bool:
        """Whether the weights are held in fewer bits than a dtype has."""
        return is_quantised(self.storage)


@dataclass(frozen=True)
class Head:
    """What precedes the tensors in a file of weights, such as names, settings and a vocabulary.

    Args:
        bytes: Its length.
        vocabulary: Whether a list of ordinary words is part of it.
    """

    bytes: int
    vocabulary: bool


class Format(Protocol):
    """What a format has to say. A subclass is stateless; its instance in the module is called `KIND`."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def needs_base(self) -> bool:
        """Whether the base is needed beside it, unless the method trains the base itself."""

    packages: tuple[str, ...] = ()
    """Python packages that it needs beside those of training."""

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Why models of this task and config cannot be written in the format, or None; known before training."""
        return None

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The forms of drift.json that it can hold, the preferred one first; none where nothing can drift."""
        return ()

    def refusal(self, cell: Cell) -> str | None:
        """Why this trained model cannot be written in the format, or None."""
        return None

    def holds(self, name: str, whole: bool) -> bool:
        """Whether a file of this name may be part of it, beside the tokenizer's.

        Args:
            whole: The method trains the base itself.
        """

    def needed(self, whole: bool) -> frozenset[str]:
        """Files without which it cannot be opened; argument as of `holds`."""

    def head(self, path: Path) -> Head | None:
        """Where the tensors begin in a file of its own; None for safetensors and for what is no file of weights."""
        return None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Writes the model's files into an empty folder, and returns the model that they are to hold."""

    def tolerance(self, cell: Cell, form: Form | None) -> float:
        """Largest mean difference of a label's loss, in nats, between what was written and what is read back."""

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """The files as a stranger would open them."""

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """A folder of a whole model, which has been checked, ready to be asked."""

    def usage(self, cell: Cell) -> str:
        """Python that opens the files, for the README."""
