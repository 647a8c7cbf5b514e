"""The Format contract: how a finished adapter leaves the run folder. One file per format.

What a format writes is opened again with plain transformers (and peft), never with hfadapt's own loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from hfadapt.evaluate.drift import Form
    from hfadapt.recipe.schema import Lock
    from hfadapt.run_folder import Cell


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
