"""The Format contract: how a finished adapter leaves the run folder. One file per format.

What a format writes is opened again with plain transformers (and peft), never with hfadapt's own loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from hfadapt.recipe.schema import Lock
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
        """Whether the weights are held in 4 or 8 bits."""
        return self.storage in ("nf4", "fp4", "int8")


class Format(Protocol):
    """What a format has to say. Instances are stateless; the module-level instance is called `KIND`."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def needs_base(self) -> bool:
        """Whether the base is needed beside it."""

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The forms of drift.json that it can hold, the preferred one first; none where nothing can drift."""

    def refusal(self, cell: Cell) -> str | None:
        """Why this model cannot be written in the format, or None."""

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Writes the model's files into an empty folder, and returns the model that they are to hold."""

    def tolerance(self, cell: Cell, form: Form | None) -> float:
        """Largest mean difference of a label's loss, in nats, between what was written and what is read back."""

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """The files as a stranger would open them."""

    def usage(self, cell: Cell) -> str:
        """Python that opens the files, for the README."""
