"""LoRA started so that it repairs the error of 4-bit quantisation (Li et al. 2023, arXiv 2310.08659).

B A, scaled as in training, is the best rank-R approximation of W minus its quantised copy. peft's own start of this
name needs CUDA and leaves the scaling out.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from hfadapt.adapters import DEFAULT, AdapterMethod, Context
from hfadapt.quants import Access

if TYPE_CHECKING:
    from peft import PeftModel


def _initialise(model: PeftModel, context: Context) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    config = copy.deepcopy(base.config)
    del config.quantization_config
    revision = getattr(config, "_commit_hash", None)
    exact = type(base).from_pretrained(
        context.model_path,
        revision=revision,
        config=config,
        device_map={"": "cpu"},
        ignore_mismatched_sizes=True,  # of the head, which is not looked at
    )
    weights = {name: module.weight for name, module in exact.named_modules() if isinstance(module, torch.nn.Linear)}
    with torch.no_grad():
        for name, layer in base.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            stored, rank = layer.get_base_layer().weight, layer.r[DEFAULT]
            kept = dequantize_4bit(stored.data, stored.quant_state).float()
            u, s, v = torch.linalg.svd(weights[name].to(kept.device).float() - kept, full_matrices=False)
            root = (s[:rank] / layer.scaling[DEFAULT]).sqrt()
            layer.lora_A[DEFAULT].weight.data[: len(root)] = root[:, None] * v[:rank]
            layer.lora_B[DEFAULT].weight.data[:, : len(root)] = u[:, :rank] * root


KIND = AdapterMethod(
    "loftq",
    needs=frozenset({Access.REPAIR}),
    reason="LoftQ repairs 4-bit quantisation; there is nothing to repair otherwise",
    initialise=_initialise,
    traced_as="lora",
)
