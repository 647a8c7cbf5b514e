"""What the memory of a run depends on beside the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hfadapt.core import registry
from hfadapt.core.spec import Spec
from hfadapt.models.facts import ModelFacts

if TYPE_CHECKING:
    from hfadapt.adapters import AdapterMethod
    from hfadapt.objectives import Objective
    from hfadapt.quants import Quant

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Workload(Spec):
    """One configuration whose memory is asked for: B = `micro_batch_rows` rows of T = `length_tokens` tokens, in each
    of the `parts` sequences as which a row goes through the model.

    `labelled_tokens` are the tokens of one row that carry a loss. `adapters` are trained together, each with B rows.
    `layers`: the last so many are adapted (None: all). `matmul_dtype` is what products of adapted layers run in: for a
    quantised base the dtype it is unpacked to.
    `generate_rows` completions are generated in the evaluation, at most `evaluate_rows` at a time. `fast` is the loop's
    own path, of which the parts in `without` are the libraries'; it keeps unpacked copies of `resident_layers` linear
    layers. `kernels`: its passes are compiled for this CPU. `tiles`: products can run on AMX tiles. `compile`:
    torch.compile is used. `malloc_tuned`: malloc is set as in allocator.py. `shards`: processes over which the base's
    layers are divided.
    """

    quant: str = "none"
    dtype: str = "float32"
    matmul_dtype: str = "float32"
    method: str = "lora"
    objective: str = "supervised"
    rank: int = 16
    modules: tuple[str, ...] = ("all-linear",)
    layers: int | None = None
    dropout: bool = False
    checkpointing: bool = False
    optimizer: str = "adamw"
    micro_batch_rows: int = 8
    parts: int = 1
    length_tokens: int = 128
    labelled_tokens: int = 128
    evaluate_rows: int = 32
    generate_rows: int = 0
    fast: bool = True
    without: tuple[str, ...] = ()
    compile: bool = False
    resident_layers: int = 0
    adapters: int = 1
    kernels: bool = True
    tiles: bool = False
    malloc_tuned: bool = True
    shards: int = 1
    device: Literal["cpu", "gpu"] = "cpu"

    @property
    def adapter(self) -> AdapterMethod:
        """The adapter method."""
        return registry.adapter(self.method)

    @property
    def minimises(self) -> Objective:
        """The objective."""
        return registry.objective(self.objective)

    @property
    def store(self) -> Quant:
        """How the base's linear layers are stored."""
        return registry.quant(self.quant)


def own_layers(workload: Workload) -> bool:
    """Whether low-rank layers are hfadapt's own function, and not peft's."""
    return workload.adapter.fast and workload.fast and "low_rank" not in workload.without


def on_tiles(workload: Workload) -> bool:
    """Whether low-rank layers run on AMX tiles."""
    return workload.tiles and own_layers(workload)


def fuses(workload: Workload) -> bool:
    """Whether torch.compile has something to do: passes that have no kernels."""
    return workload.compile and workload.fast and not (workload.kernels and workload.device == "cpu")


def trained_layers(facts: ModelFacts, workload: Workload) -> int:
    """Layers through which the backward pass goes, the last ones of the model; without a limit all of them."""
    return min(facts.layers, workload.layers or facts.layers)


def frozen_layers(facts: ModelFacts, workload: Workload) -> int:
    """Layers below the first one that is trained."""
    if workload.adapter.whole_model or facts.stacks != 1:
        return 0
    return facts.layers if workload.adapter.only_head else facts.layers - trained_layers(facts, workload)
