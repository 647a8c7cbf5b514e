"""LoRA started so that it repairs the error of 4-bit quantisation (Li et al. 2023, arXiv 2310.08659)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfadapt.adapters import AdapterMethod, Context
from hfadapt.errors import RequestError

if TYPE_CHECKING:
    from peft import PeftModel


def _initialise(model: PeftModel, context: Context) -> None:
    from peft import replace_lora_weights_loftq

    files = sorted(Path(context.model_path).glob("*.safetensors"))
    if len(files) != 1:
        raise RequestError(
            "loftq reads the unquantised weights from one safetensors file",
            place=context.model_path,
            got=f"{len(files)} files",
            fix="use adapter.method=lora, or a base in a single file",
        )
    replace_lora_weights_loftq(model, model_path=str(files[0]))


KIND = AdapterMethod(
    "loftq",
    quants=frozenset({"nf4", "fp4"}),
    reason="LoftQ repairs 4-bit quantisation; there is nothing to repair otherwise",
    initialise=_initialise,
)
