"""Merging: base and adapter written as one model that plain transformers loads.

The update is added to 16- or 32-bit weights only, to the original ones or to those that a quantised base stands for.
peft can also merge into 4-bit weights, but rounds the sum to 4 bits at once and loses 7 to 11 % of the largest logit.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.models.attach import open_adapter
from hfadapt.models.base import BaseRef, weights_of
from hfadapt.models.load import Base, load_base
from hfadapt.quants import PLAIN
from hfadapt.recipe.schema import Lock
from hfadapt.recipe.sources import expanded
from hfadapt.records.stages import BaseRecord

if TYPE_CHECKING:
    import torch

HALF = ("bfloat16", "float16")
CHECKED_AT_ONCE = 1 << 20
"""Elements of a tensor that are looked at together: isfinite makes copies of several times their size."""


def half_dtype(lock: Lock) -> str:
    """The 16-bit dtype of a recipe: its own, or bfloat16, which holds what float32 holds."""
    return lock.dtype if lock.dtype in HALF else "bfloat16"


def merged_dtype(lock: Lock) -> str:
    """What a merged model is stored in by default: the training dtype, or 16 bits where the base was quantised."""
    return half_dtype(lock) if registry.quant(lock.quant).quantised else lock.dtype


def open_merged(
    lock: Lock, labels: Sequence[str], adapter: Path, dtype: str, device: torch.device, *, dequantised: bool = False
) -> Base:
    """A fresh base with the adapter merged into its weights.

    Args:
        dtype: Of the weights it is merged into, and so of the merged model.
        dequantised: Merge into what the quantised base of the recipe stands for, not into the original weights. The
            adapter was trained on those, so it fits them better, and the error of quantisation stays.

    Raises:
        RunError: the base is held in 4 or 8 bits and cannot be unpacked, or the result is not finite.
    """
    # Quantised from the dtype of training, or the scales would be others.
    ref = BaseRef.of(lock)
    base = load_base(ref if dequantised else ref.stored(PLAIN, dtype), labels, device)
    if getattr(base.model, "is_quantized", False):
        base.model = _unpacked(base.model, dtype, registry.quant(lock.quant).module_class)
    model = open_adapter(base, adapter, lock.adapter.method, device)
    if not registry.adapter(lock.adapter.method).whole_model:
        # In place, not by peft's safe_merge, which keeps the pages of the old weights; what it looks for comes below.
        model = model.merge_and_unload()
    base.model = plain(model, dtype)
    broken = [name for name, tensor in base.model.state_dict().items() if not _finite(tensor)]
    if broken:
        raise RunError("the merged model holds NaN or Inf", place=broken[0], got=f"{len(broken)} tensors")
    return base


def write_merged(base: Base, lock: Lock, folder: Path) -> None:
    """Writes model, tokenizer and chat template as plain transformers reads them, and what the task reads beside."""
    _save(base.model, base, folder, lock.task, lock.data.max_length)


def save_base(base: Base, folder: Path, *, parent: BaseRef, made_by: str, how: str) -> BaseRef:
    """Writes a base that a stage has made, for the stages after it, with what its task reads beside the weights; the
    folder appears whole.

    Args:
        base: Loaded in 16 or 32 bits and changed. A head that its checkpoint did not hold is left out.
        folder: `cell.made_base(stage)`; an earlier one is replaced.
        parent: What it was made from.
        made_by: Name of the stage.
        how: For a reader of the card, such as `30 % of the weights of linear layers set to zero`.
    """
    ready = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir(parents=True)
    model = base.model.base_model if base.fresh_modules else base.model
    _save(model, base, ready, parent.task, parent.max_length or int(base.tokenizer.model_max_length))
    # Of a model on this machine only the last part of its path.
    name = Path(parent.model).name if expanded(parent.model).exists() else parent.model
    before = parent.made.sha256 if parent.made else None
    record = BaseRecord(made_by=made_by, how=how, sha256=weights_of(ready), model=name, parent=before)
    record.write(ready / BaseRecord.FILE)
    shutil.rmtree(folder, ignore_errors=True)
    ready.rename(folder)
    return parent.made_in(folder)


def _save(model: Any, base: Base, folder: Path, task: str, length: int) -> None:
    import transformers

    original = transformers.AutoConfig.from_pretrained(
        base.source.path, revision=base.source.revision, trust_remote_code=False
    )
    for name, value in vars(original).items():
        if ("drop" in name and isinstance(value, float)) or name == "apply_spec_augment":
            # Switched off for training an adapter; whoever trains the whole model wants the base's own.
            setattr(model.config, name, value)
    model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    registry.task(task).write_beside(folder, model, base.tokenizer, length)


def _finite(tensor: torch.Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(CHECKED_AT_ONCE))


def plain(model: Any, dtype: str) -> Any:
    """One dtype throughout, without the casts around heads that are trained in float32."""
    import torch

    for module in model.modules():
        module._forward_pre_hooks.clear()
    for parameter in model.parameters():
        # Not model.to(): the angles of rotary positions are a buffer that stays float32.
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model.requires_grad_(False).eval()


def _unpacked(model: Any, dtype: str, module_class: str) -> Any:
    """A quantised model, whose linear layers are of this class, as 16- or 32-bit weights."""
    import torch

    model = model.dequantize(dtype=getattr(torch, dtype))
    packed = [name for name, module in model.named_modules() if type(module).__name__ == module_class]
    if packed:
        raise RunError(
            "the quantised base could not be unpacked",
            place=packed[0],
            got=f"{len(packed)} layers",
            fix="name the original model in the recipe",
        )
    # transformers leaves these as they were, and some of peft's methods look at them.
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model
