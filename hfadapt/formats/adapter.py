"""The adapter alone, as plain peft loads it on its base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Form, Format
from hfadapt.formats.merged import KIND as MERGED
from hfadapt.models.adapter_files import CONFIG, MANIFEST, is_model_file
from hfadapt.models.attach import WEIGHTS, open_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, load_base

if TYPE_CHECKING:
    import torch

    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell

SAME, SAME_IN_16_BITS = 1e-4, 0.02
"""peft by itself rounds trained heads to the base's 16 bits, and hfadapt keeps them in float32."""


class Adapter(Format):
    """Weights, config and tokenizer; of a method that trains the base itself the model."""

    name = "adapter"
    needs_base = True

    def holds(self, name: str, whole: bool) -> bool:
        """As peft writes them; a whole model as transformers does."""
        return MERGED.holds(name, whole) if whole else name in (CONFIG, WEIGHTS)

    def needed(self, whole: bool) -> frozenset[str]:
        """Both files."""
        return MERGED.needed(whole) if whole else frozenset({CONFIG, WEIGHTS})

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Copies the adapter's files."""
        copy_adapter(cell, folder)
        base = load_base(BaseRef.of(cell.lock), cell.data.labels, device)
        return open_adapter(base, cell.adapter, cell.lock.adapter.method, device)

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """The same, but for trained heads in 16 bits."""
        return SAME if cell.lock.dtype == "float32" else SAME_IN_16_BITS

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """`PeftModel.from_pretrained(base, folder)`; a model of its own needs no base."""
        from peft import PeftModel

        if _whole(cell):
            return MERGED.reopen(cell, folder, device)
        base = load_base(BaseRef.of(cell.lock), cell.data.labels, device)
        return PeftModel.from_pretrained(base.model, str(folder)).eval()

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """Of a whole model."""
        return MERGED.open(folder, manifest, lock, device)

    def usage(self, cell: Cell) -> str:
        """One line of peft; plain transformers for a model of its own."""
        if _whole(cell):
            return MERGED.usage(cell)
        return (
            "from peft import PeftModel\n\n"
            "# base: the model named above, loaded with transformers in the storage that lock.yaml names\n"
            'model = PeftModel.from_pretrained(base, ".")'
        )


def copy_adapter(cell: Cell, folder: Path) -> None:
    """The adapter's files as training wrote them, but for the manifest."""
    for path in sorted(cell.adapter.iterdir()):
        if is_model_file(path.name, KIND.name, _whole(cell)) and path.name != MANIFEST:
            shutil.copyfile(path, folder / path.name)


def _whole(cell: Cell) -> bool:
    return registry.adapter(cell.lock.adapter.method).whole_model


KIND: Format = Adapter()
