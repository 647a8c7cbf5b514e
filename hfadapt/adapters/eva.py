"""LoRA started from the singular vectors of the inputs that the training data brings (Paischer et al. 2024, arXiv 2410.07170)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from hfadapt.adapters import AdapterMethod, Context

if TYPE_CHECKING:
    from peft import PeftModel

BATCHES = 16


def _initialise(model: PeftModel, context: Context) -> None:
    from peft import initialize_lora_eva_weights

    assert context.batches is not None
    batches = [
        {name: batch[name] for name in ("input_ids", "attention_mask")} for batch in islice(context.batches(), BATCHES)
    ]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False, gather_distributed_inputs=False)


KIND = AdapterMethod("eva", options={"init_lora_weights": "eva"}, initialise=_initialise)
