"""Which parts of a loaded base are divided over the processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.hardware.shards import Shards, divide
from hfadapt.models.facts import body_name, layer_stacks
from hfadapt.tasks import Task

if TYPE_CHECKING:
    import torch

IDLE_UNITS = 8
"""Length of the row on which a process runs a divided model that has nothing left to do."""


def divide_layers(model: Any, task: Task, heads: Sequence[str], device: torch.device) -> Shards:
    """Divides the layers of a loaded base. Embeddings and output layer stay whole: to be gathered they would need twice
    their size for a moment, which is more than they take.

    Raises:
        RunError: it has no layers, or cannot be run with divided ones.
    """
    import torch

    body = getattr(model, body_name(model), model) if heads else model
    inside = {id(module) for module in body.modules()}
    layers = [layer for stack in layer_stacks(model).values() if id(stack) in inside for layer in stack]
    if not layers:
        raise RunError(
            "this model has no list of layers that could be divided over the processes",
            place=type(model).__name__,
            fix="set train.shard: false",
        )
    made = registry.modality(task.modality).traced(model.config, 1, IDLE_UNITS)
    inputs = {
        name: value.to(device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in made.items()
    }

    def idle() -> None:
        with torch.no_grad():
            model(**inputs)

    shards = divide(model, body, layers, idle, device)
    try:
        # Whole layers are made room for once: in inference mode it would be of no use to training.
        with torch.inference_mode(False):
            idle()
    except (RuntimeError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise RunError(
            "this model cannot be run with layers that are divided over the processes",
            place=type(model).__name__,
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="set train.shard: false",
        ) from error
    return shards
