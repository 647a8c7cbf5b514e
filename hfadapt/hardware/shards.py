"""The frozen layers of a model divided over the processes, so that none has to hold it whole (FSDP2, `fully_shard`).

Of every weight matrix in a layer each process keeps a share of the rows; a layer is whole while it runs, forward or
backward. What is trained, and what is small or outside the layers, such as norms, embeddings and the output layer,
stays whole in every process, so that gradients, checkpoints and adapters are what they are without it.

A pass gathers its layers from all processes: each of them has to run the model as often as the others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from hfadapt.core.errors import RunError
from hfadapt.hardware.allocator import give_back_matrices
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.hardware.processes import step_time

if TYPE_CHECKING:
    import torch
    from torch import nn

Result = TypeVar("Result")
QUANTISED_AS = ("compress_statistics", "quant_type")
UNEVEN = 1.05
"""A process may hold this much more than its share: rows of a matrix are divided whole."""


@dataclass
class Shards:
    """A divided model.

    Args:
        body: What every pass goes through.
        idle: Runs the model on next to nothing, for a process that has nothing left to do.
        divided_bytes: Of the divided weights, over all processes.
        held_bytes: What this process holds of them.
        whole_bytes: Of the base's weights that every process holds whole.
    """

    body: nn.Module
    idle: Callable[[], object]
    divided_bytes: int
    held_bytes: int
    whole_bytes: int

    def most(self, count: int) -> int:
        """The largest of the numbers that the processes give; all must ask."""
        import torch
        from torch import distributed

        value = torch.tensor(count)
        distributed.all_reduce(value, distributed.ReduceOp.MAX, group=_counting())
        return int(value)

    def in_step(self, work: Callable[[], Result]) -> Result:
        """Does work of this process in which it runs the model as often as it likes: processes that are done run it
        idly until all are. All must call it.

        Raises:
            RunError: the work of another process failed.
        """

        def together(*_: Any) -> None:
            self._at_work(1)

        handle = self.body.register_forward_pre_hook(together)
        try:
            result = work()
        except Exception as error:
            if not isinstance(error, _OtherFailed):
                self._at_work(0, failed=1)
            raise
        finally:
            handle.remove()
        while self._at_work(0):
            self.idle()
        return result

    def _at_work(self, own: int, failed: int = 0) -> int:
        """How many processes are about to run the model. Raises RunError where one of them failed."""
        import torch
        from torch import distributed

        counts = torch.tensor([own, failed])
        distributed.all_reduce(counts, group=_counting())
        if counts[1] and not failed:
            raise _OtherFailed("another process failed", fix="its message says why")
        return int(counts[0])


class _OtherFailed(RunError):
    """Elsewhere than here."""


@cache
def _counting() -> Any:
    """For numbers, on the CPU whatever the device; waits no longer than for a step."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=step_time())


def divide(
    model: nn.Module,
    body: nn.Module,
    layers: Iterable[nn.Module],
    idle: Callable[[], object],
    device: torch.device,
) -> Shards:
    """Divides the layers of a loaded base, none of which is trained, and moves it to the device: one layer at a time,
    so that no device ever holds all of them.

    Args:
        layers: What is gathered at once; of a module and those in it, these first.
        body: The part of the model that every pass goes through; the layers are in it.

    Raises:
        RunError: a process holds more than its share afterwards.
    """
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = distributed.get_world_size()
    if device.type == "cpu":
        give_back_matrices()
    mesh = init_device_mesh(device.type, (world,))
    # No parameter may be held here: each goes when its layer is divided.
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    quantised: list[tuple[Any, Any, dict[str, Any]]] = []
    for layer in layers:
        for module in layer.modules():
            if (state := getattr(getattr(module, "weight", None), "quant_state", None)) is not None:
                quantised.append((module, state, {name: getattr(module.weight, name) for name in QUANTISED_AS}))
        layer.to(device)
        # Matrices that no other module has too, as a tied output layer.
        rest = [p for p in layer.parameters() if not is_divided(p)]
        own = {p for p in rest if p.dim() > 1 and uses[id(p)] == 1 and len(p) >= world}
        if not own:
            del own, rest
            continue
        each = fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=set(rest) - own)
        if device.type == "cpu":
            # Gathered ahead, the next layer of a backward pass takes memory and saves no time: the same cores do both.
            each.set_modules_to_backward_prefetch([each])
        del own, rest
    whole = [p for p in model.parameters() if not is_divided(p)]
    with torch.no_grad():
        for parameter in whole:
            # A copy, so that the file which weights are mapped from is let go.
            parameter.data = parameter.data.clone() if parameter.device == device else parameter.data.to(device)
    model.to(device)
    for module, state, names in quantised:
        # The parameter in its place does not know how it was quantised: bitsandbytes asks the module, peft these.
        module.quant_state = state
        for name, value in names.items():
            setattr(module.weight, name, value)
    fully_shard(body, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
    release_memory()
    divided: list[Any] = [p for p in model.parameters() if is_divided(p)]
    total = sum(math.prod(p.shape) * p.element_size() for p in divided)
    held = sum(p.to_local().untyped_storage().nbytes() for p in divided)
    kept = sum(p.numel() * p.element_size() for p in whole)
    if not divided or held > UNEVEN * total / world:
        raise RunError(
            "the base is not divided over the processes",
            place=type(model).__name__,
            got=f"{held} bytes of {total} in one of {world} processes",
            allowed=f"about {total // world}",
            fix="set train.shard: false",
        )
    return Shards(body, idle, total, held, kept)


def is_divided(parameter: Any) -> bool:
    """Whether a process holds only its share of a parameter."""
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def gathered_modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules of a model, those of a divided layer while it is whole; all processes must ask for them together."""
    from torch.distributed.fsdp import FSDPModule

    whole: FSDPModule | None = None
    for module in model.modules():
        if isinstance(module, FSDPModule):
            if whole is not None:
                whole.reshard()
            whole = module
            whole.unshard()
        yield module
    if whole is not None:
        whole.reshard()
