"""One model in 16 or 32 bits with the adapter in its weights, which plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Form, Format
from hfadapt.models.adapter_files import WHOLE_FILES
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import load_config
from hfadapt.models.load import Base, load_base
from hfadapt.models.merge import half_dtype, merged_dtype, open_merged, write_merged
from hfadapt.quants import PLAIN

if TYPE_CHECKING:
    import torch

    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell

SAME = 1e-4


class Merged(Format):
    """Safetensors, config, tokenizer and chat template."""

    name = "merged"
    needs_base = False

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The training dtype, then what loses less: float32, or the weights that a quantised base stands for."""
        half, whole = half_dtype(lock), merged_dtype(lock)
        if not registry.quant(lock.quant).quantised:
            return (Form(whole, True), Form(half if whole == "float32" else "float32", True))
        return (Form(half, True), Form(half, True, dequantised=True), Form("float32", True, dequantised=True))

    def holds(self, name: str, whole: bool) -> bool:
        """As `save_pretrained` writes them."""
        return bool(WHOLE_FILES.fullmatch(name))

    def needed(self, whole: bool) -> frozenset[str]:
        """Weights may be in several files, which their number of tensors checks."""
        return frozenset({"config.json"})

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges into the original or unpacked weights of the form's dtype."""
        assert form is not None
        base = open_merged(
            cell.lock, cell.data.labels, cell.adapter, form.storage, device, dequantised=form.dequantised
        )
        write_merged(base, cell.lock, folder)
        return base.model

    def tolerance(self, cell: Cell, form: Form | None) -> float:
        """The same weights give the same losses, but for rounding in another order."""
        return SAME

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """`AutoModelFor….from_pretrained(folder)`."""
        import transformers

        auto = getattr(transformers, _auto_class(cell.lock))
        return auto.from_pretrained(folder, dtype="auto").to(device).eval()

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """As a base with nothing on it, in the dtype that it is stored in."""
        base = load_base(BaseRef.of(lock).at(folder).stored(PLAIN, manifest.dtype), manifest.labels, device)
        base.model.requires_grad_(False).eval()
        return base

    def usage(self, cell: Cell) -> str:
        """A few lines of transformers, or of the task's own library."""
        auto, own = _auto_class(cell.lock), registry.task(cell.lock.task).usage
        return own or (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")  # this folder, or its name on the Hub\n'
            f'model = {auto}.from_pretrained(".", dtype="auto")'
        )


def _auto_class(lock: Lock) -> str:
    return registry.task(lock.task).auto_class_of(load_config(BaseRef.of(lock).location).model_type)


KIND: Format = Merged()
