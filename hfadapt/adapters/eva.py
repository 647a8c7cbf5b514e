"""LoRA started from the singular vectors of the layers' inputs on the training data (EVA, arXiv 2410.07170).

A gets the leading right singular vectors of each layer's inputs, found batch by batch; every layer keeps its rank
(Paischer et al. 2024). peft's own start of this name asks for 2R rows of input in every batch, or waits forever, and
fails on pooled inputs.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from hfadapt.adapters import DEFAULT, AdapterMethod, Context

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

BATCHES = 16
MOST_ROWS = 256
"""Inputs of a layer that are looked at in each batch, evenly over its tokens."""


def _initialise(model: PeftModel, context: Context) -> None:
    import torch
    from peft.tuners.lora import LoraLayer

    assert context.batches is not None
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    found: dict[str, torch.Tensor] = {}
    seen: dict[str, Any] = {}

    def look(name: str, rank: int) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if seen.get("input") is not inputs[0] or seen["rank"] != rank:
                # Layers side by side, such as q, k and v, share one input.
                seen.update(input=inputs[0], rank=rank, result=_merge(found.get(name), inputs[0], seen["mask"], rank))
            found[name] = seen["result"]

        return hook

    hooks = [layer.register_forward_pre_hook(look(name, layer.r[DEFAULT])) for name, layer in layers.items()]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in islice(context.batches(), BATCHES):
                seen["mask"] = batch["attention_mask"].bool()
                model(**{name: values for name, values in batch.items() if name != "labels"})
            for name, directions in found.items():
                a = layers[name].lora_A[DEFAULT].weight
                rows = torch.nn.functional.normalize(directions[: len(a)])
                a.data[: len(rows)] = rows.to(a.dtype)
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()


def _merge(before: torch.Tensor | None, x: torch.Tensor, mask: torch.Tensor, rank: int) -> torch.Tensor:
    """The 2R leading singular directions of the inputs so far, by singular value; x is (B, T, D) or (B, D)."""
    import torch

    rows = x[mask] if x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])
    rows = rows[:: max(1, len(rows) // MOST_ROWS)].float()
    _, values, directions = torch.linalg.svd(rows if before is None else torch.cat([before, rows]), full_matrices=False)
    kept = (values > values[0] * 1e-6)[: 2 * rank].sum()
    return values[:kept, None] * directions[:kept]


KIND = AdapterMethod("eva", initialise=_initialise, traced_as="lora")
