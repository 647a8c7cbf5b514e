"""Predicted peak memory of each phase, by part, from the config alone.

What the tensors of a step need is traced (terms.py, trace.py); what the base, the adapter and the optimizer hold is
counted; what neither can see (scratch space inside operators, the allocator's rounding, code pages) is a handful of
constants that were fitted on half of benchmarks/memory_grid.json and tested on the other half, on a CPU with AMX tiles.

On a CPU "peak" is the resident set above what the process held before it loaded the base, with malloc set as in
allocator.py.
"""

from __future__ import annotations

from hfadapt.core import registry
from hfadapt.fast.limits import LOSS_LOGITS, MOST_SCORES, QUERY_BLOCK
from hfadapt.models.facts import LinearShape, ModelFacts
from hfadapt.plan.memory.terms import is_traced, known_terms, own_passes, saved_bytes_per_token, step_key, terms_of
from hfadapt.plan.memory.workload import (
    DTYPE_BYTES,
    Workload,
    frozen_layers,
    fuses,
    on_tiles,
    own_layers,
    trained_layers,
)
from hfadapt.quants import PLAIN, Quant
from hfadapt.recipe.names import matches
from hfadapt.records.plan import PhaseMemory

__all__ = [
    "DTYPE_BYTES",
    "Workload",
    "adapted_layers",
    "cache_bytes",
    "frozen_layers",
    "fuses",
    "held_bytes",
    "is_traced",
    "on_tiles",
    "own_layers",
    "own_passes",
    "predict",
    "predict_merge",
    "resident_ratio",
    "saved_bytes_per_token",
    "trained_parameters",
    "weight_bytes",
]

MIB = 1 << 20
GATHERED_LAYERS = {"cpu": 4, "gpu": 3}
"""How many layers of a divided base are whole at once: the one that runs, and the next one, as it comes and in its
place; gloo has a copy of its own. Measured on CPUs, not on GPUs."""
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.03, "paged-adamw-8bit": 2.03}
"""State per trained parameter: two moments; in 8 bits with one float32 scale per block of 256."""

# --- fitted on the `fitted` half of benchmarks/memory_grid.json ------------------------------------------------------
CPU_CONSTANT_BYTES = {"load": 25 * MIB, "train": 40 * MIB, "evaluate": 48 * MIB, "save": 40 * MIB, "merge": 55 * MIB}
"""Code and constant pages that a phase touches: kernels and operator tables."""
CPU_PRIMITIVES_BYTES = 30 * MIB
"""What oneDNN's compiled products add where training does not run on tiles: between the same points measured with and
without."""
CPU_HEAP_RATIO = {"load": 1.0, "train": 1.18, "evaluate": 1.6, "save": 1.0}
"""Resident bytes per live byte of what comes and goes, under the settings of allocator.py."""
CPU_CAST_HEAP_RATIO = 2.5
"""The same in evaluation where bitsandbytes casts what goes into and comes out of 4-bit layers, as a model's other
tensors are float32; the same point measured again differs by up to a sixth."""
CPU_RECOMPUTED_HEAP_RATIO = {0: 2.0, 8: 1.9, 4: 2.1}
"""The same in training with checkpointing, where large blocks come and go in every layer: the 90th percentile, as it
varies more; the same point measured again differs by up to a tenth. By bits of a stored weight, 0 for none."""
COMPILER_BYTES = 300 * MIB
"""Main memory of torch.compile: its libraries, and what it keeps of what it has compiled."""
CPU_UNSETTLED_RATIO, CPU_UNSETTLED_RECOMPUTED_RATIO = 2.2, 4.0
"""The same with malloc as it comes (in a notebook, for example), where it varies: 1.4 to 2.4 and 1 to 5 were seen."""

# --- not fitted: no GPU was at hand ----------------------------------------------------------------------------------
GPU_CONSTANT_BYTES = 96 * MIB
"""cuBLAS workspaces (32 MiB on Hopper, 8 MiB before, per handle and stream) and small blocks; pytorch issue 120925."""
GPU_ALLOCATOR_RATIO = 1.08
"""Reserved over allocated bytes: blocks are rounded to 2 MiB and split (c10/cuda/CUDACachingAllocator.cpp)."""
HOST_PROCESS_BYTES = 2 << 30
"""Main memory of a process that uses an accelerator: libraries with their kernels, and the driver's context."""


def predict(facts: ModelFacts, workload: Workload) -> tuple[PhaseMemory, ...]:
    """Peaks of load, train, evaluate and save, each by part.

    Parts: weights, checkpoint (its mapped pages), adapter, gradients, optimizer, activations, logits, workspaces,
    allocator, framework.
    """
    weights, adapter = held_bytes(facts, workload), _beside_bytes(facts, workload)
    phases = {
        "load": {**_load_parts(facts, workload), "adapter": adapter * workload.adapters},
        "train": _train_parts(facts, workload),
        "evaluate": _evaluate_parts(facts, workload),
        # The tensors to be written, and the copy that is read back to compare.
        "save": {"weights": weights, "adapter": adapter, "workspaces": 2 * adapter},
    }
    for phase in ("train", "evaluate", "save"):
        phases[phase]["checkpoint"] = _file_bytes(facts, workload)
    result = []
    for phase, parts in phases.items():
        moving = sum(parts.get(name, 0) for name in ("activations", "logits", "workspaces"))
        if workload.device == "cpu":
            parts["allocator"] = int(moving * (_heap_ratio(workload, phase) - 1))
            parts["framework"] = _framework_bytes(facts, workload, phase) + _opening_bytes(facts, workload, phase)
            host = {}
        else:
            parts["allocator"] = int(sum(parts.values()) * (GPU_ALLOCATOR_RATIO - 1))
            parts["framework"] = GPU_CONSTANT_BYTES
            host = _host_parts(facts, workload, phase)
        result.append(PhaseMemory.model_validate({"phase": phase, "parts": parts, "host_parts": host}))
    load, train, evaluate, save = result
    # It loads the base anew, for one adapter.
    again = load.model_copy(update={"phase": "evaluate", "parts": {**load.parts, "adapter": adapter}})
    return load, train, max(evaluate, again, key=lambda phase: phase.total_bytes), save


class _Rows:
    """Bytes of what comes and goes with a number of rows."""

    def __init__(self, facts: ModelFacts, workload: Workload) -> None:
        self.facts, self.workload = facts, workload
        self.terms = terms_of(facts, workload)
        self.tokens = 1 if registry.modality_of(facts.task).one_size else workload.length_tokens
        self.element = DTYPE_BYTES[workload.dtype]

    def live(self, mark: str, rows: int) -> int:
        """Activations at a mark of the traced step."""
        outside, layer = self.terms[mark]
        square = float(rows * self.tokens * self.tokens)
        if self.workload.fast and "attention" not in self.workload.without and mark != "evaluate_peak":
            # Attention inside rows works on a limited number of scores at once.
            heads = self.facts.heads
            square = min(square, max(MOST_SCORES, QUERY_BLOCK * self.tokens * heads) / heads)
        shape = (1.0, float(rows * self.tokens), square)
        one, each = (sum(c * x for c, x in zip(part, shape, strict=True)) for part in (outside, layer))
        return max(0, int(one + each * trained_layers(self.facts, self.workload)))

    def labelled(self, rows: int) -> int:
        """Logits of all labelled positions."""
        facts = self.facts
        labelled = rows * min(self.tokens, self.workload.labelled_tokens)
        return labelled * facts.vocab_size if facts.predicts_tokens else 0

    def logits(self, rows: int) -> int:
        """Their bytes in training: as they come, their float32 copy, and the log-probabilities."""
        workload, element = self.workload, self.element
        pieces = self.facts.generates and workload.fast and workload.minimises.own_loss
        if not pieces or "loss" in workload.without:
            return self.labelled(rows) * (8 + (element if element < 4 else 0))
        # In pieces, of which the gradient takes the place; without compiled kernels with two float32 copies.
        in_place = workload.kernels if workload.device == "cpu" else fuses(workload)
        return min(self.labelled(rows), LOSS_LOGITS) * (element if in_place else element + 8)

    def scored(self, rows: int) -> int:
        """Their bytes in scoring: as they come, and the float32 log-probabilities of one row at a time."""
        return self.labelled(rows) * self.element + self.labelled(1) * 8


def _train_parts(facts: ModelFacts, workload: Workload) -> dict[str, int]:
    of, rows = _Rows(facts, workload), workload.micro_batch_rows * workload.parts * workload.adapters
    every = trained_parameters(facts, workload) * workload.adapters
    end, logits = of.live("forward_end", rows), of.logits(rows)
    step = max(of.live("forward_peak", rows), end + logits, of.live("backward_peak", rows))
    # Each adapter is validated by itself, with twice the rows.
    scored_rows = 2 * workload.micro_batch_rows * workload.parts
    validation = of.live("validate_peak", scored_rows) + of.logits(scored_rows)
    if _partly_frozen(facts, workload):
        # Frozen layers go through the libraries' own forward passes, of as many rows as in a validation.
        validation = max(validation, of.live("evaluate_peak", scored_rows))
    weights = held_bytes(facts, workload) + int(weight_bytes(facts, workload) * workload.minimises.further_models)
    workspaces = max(step, validation) - end - logits
    return {
        "weights": weights + _copied_bytes(facts, workload),
        "gathered": gathered_bytes(facts, workload),
        "adapter": (_beside_bytes(facts, workload) + _shadow_bytes(facts, workload)) * workload.adapters,
        "gradients": every * 4,
        "optimizer": int(every * OPTIMIZER_BYTES[workload.optimizer]),
        "activations": end,
        # Below zero the peak lies before the logits exist or after they are gone.
        "logits": max(0, logits + min(0, workspaces)),
        "workspaces": max(0, workspaces),
    }


def _evaluate_parts(facts: ModelFacts, workload: Workload) -> dict[str, int]:
    of, rows = _Rows(facts, workload), workload.evaluate_rows
    unpacked = facts.largest_linear * DTYPE_BYTES[workload.matmul_dtype] if workload.store.quantised else 0
    logits, cache = of.scored(rows), 0
    generating = min(rows, workload.generate_rows) if facts.generates else 0
    kept = cache_bytes(facts, workload, generating)
    if (drawn := generating * facts.vocab_size * (of.element + 4)) + kept > logits:
        # Scoring and generating follow each other; the larger counts.
        logits, cache = drawn, kept
    return {
        "weights": held_bytes(facts, workload),
        "gathered": gathered_bytes(facts, workload),
        "adapter": _beside_bytes(facts, workload),
        "activations": of.live("evaluate_peak", rows),
        "logits": logits,
        "cache": cache,
        "workspaces": unpacked + _integer_product_bytes(facts, workload, rows * of.tokens),
    }


def predict_merge(facts: ModelFacts, workload: Workload) -> PhaseMemory:
    """Peak of adding the adapter to a freshly loaded base that is not quantised, and of writing the result.

    The result has the dtype of the base, or 16 bits where that was quantised. Merging works in place: beside the
    weights it holds one layer's update in float32 and in the dtype of the weights, and the pages of a file in another
    dtype. From a CPU tensors are written as they are; from a device all are copied to main memory first.
    """
    half = "bfloat16" if workload.store.quantised and workload.dtype == "float32" else workload.dtype
    plain = workload.model_copy(update={"quant": PLAIN, "dtype": half, "shards": 1})
    element = DTYPE_BYTES[plain.dtype]
    parts = {
        "weights": _base_bytes(facts, plain.store, element),
        "adapter": _beside_bytes(facts, workload),
        "workspaces": facts.largest_linear * (4 + element),
    }
    if workload.device == "cpu":
        parts["checkpoint"] = 0 if _mapped(facts, plain) else _load_parts(facts, plain)["checkpoint"]
        parts["framework"] = CPU_CONSTANT_BYTES["merge"] + (0 if on_tiles(workload) else CPU_PRIMITIVES_BYTES)
        return PhaseMemory(phase="merge", parts=parts)
    parts |= {"allocator": int(sum(parts.values()) * (GPU_ALLOCATOR_RATIO - 1)), "framework": GPU_CONSTANT_BYTES}
    return PhaseMemory(phase="merge", parts=parts, host_parts=_host_parts(facts, plain, "merge"))


def _host_parts(facts: ModelFacts, workload: Workload, phase: str) -> dict[str, int]:
    """Main memory of one process beside its accelerator.

    The checkpoint is mapped while it is read; the kernel takes its pages back when memory is short.
    """
    parts = {"process": HOST_PROCESS_BYTES + _opening_bytes(facts, workload, phase)}
    if phase == "train" and fuses(workload):
        parts["compiler"] = COMPILER_BYTES
    stored = facts.stored_dtype if facts.stored_dtype in DTYPE_BYTES else workload.dtype
    if phase in ("load", "evaluate", "merge"):
        parts["checkpoint"] = facts.parameters * DTYPE_BYTES[stored]
    if phase == "train" and workload.optimizer.startswith("paged"):
        parts["optimizer"] = int(trained_parameters(facts, workload) * OPTIMIZER_BYTES[workload.optimizer])
    if phase == "save":
        parts["copy"] = 2 * trained_parameters(facts, workload) * 4
    if phase == "merge":
        parts["copy"] = weight_bytes(facts, workload)
    return parts


def cache_bytes(facts: ModelFacts, workload: Workload, rows: int) -> int:
    """Keys and values of `rows` completions while they are generated, at up to twice the labelled tokens of a row."""
    tokens = workload.length_tokens + workload.labelled_tokens
    return 2 * facts.layers * facts.kv_heads * facts.head_dim * rows * tokens * DTYPE_BYTES[workload.dtype]


def _framework_bytes(facts: ModelFacts, workload: Workload, phase: str) -> int:
    """On a CPU: pages of code and constants, products that oneDNN has compiled, and torch.compile."""
    found = CPU_CONSTANT_BYTES[phase]
    if phase != "load" and (not on_tiles(workload) or (phase == "train" and _partly_frozen(facts, workload))):
        found += CPU_PRIMITIVES_BYTES
    return found + (COMPILER_BYTES if phase == "train" and fuses(workload) else 0)


def _opening_bytes(facts: ModelFacts, workload: Workload, phase: str) -> int:
    """What making inputs of files takes: of a training's validation with twice the rows, else of a scored batch."""
    if phase not in ("train", "evaluate"):
        return 0
    rows = 2 * workload.micro_batch_rows * workload.parts if phase == "train" else workload.evaluate_rows
    modality = registry.modality_of(facts.task)
    return modality.opening_bytes(facts.config, rows, workload.length_tokens)


def _partly_frozen(facts: ModelFacts, workload: Workload) -> bool:
    """Whether some layers are trained, and some below them are not."""
    return 0 < frozen_layers(facts, workload) < facts.layers


def _heap_ratio(workload: Workload, phase: str) -> float:
    recomputed = phase == "train" and workload.checkpointing
    most = max(CPU_RECOMPUTED_HEAP_RATIO.values())
    ratio = CPU_RECOMPUTED_HEAP_RATIO.get(workload.store.bits, most) if recomputed else CPU_HEAP_RATIO[phase]
    if phase == "evaluate" and workload.dtype == "float32" and workload.store.bits == 4:
        ratio = CPU_CAST_HEAP_RATIO
    if workload.malloc_tuned or ratio == 1.0:
        return ratio
    return max(ratio, CPU_UNSETTLED_RECOMPUTED_RATIO if recomputed else CPU_UNSETTLED_RATIO)


def weight_bytes(facts: ModelFacts, workload: Workload) -> int:
    """The base as it is stored; one that is trained itself in float32."""
    return _base_bytes(facts, workload.store, 4 if workload.adapter.whole_model else DTYPE_BYTES[workload.dtype])


def held_bytes(facts: ModelFacts, workload: Workload) -> int:
    """What one process keeps of the base."""
    divided = _divided_bytes(facts, workload)
    return weight_bytes(facts, workload) - divided + -(-divided // workload.shards)


def gathered_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Layers of a divided base that are whole for a while."""
    if workload.shards == 1:
        return 0
    return GATHERED_LAYERS[workload.device] * _divided_bytes(facts, workload) // facts.layers


def _divided_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Weights that are divided over the processes where there are several: of linear layers, without scales."""
    if workload.shards == 1:
        return 0
    store = workload.store
    bits = store.bits if store.quantised else 8 * DTYPE_BYTES[workload.dtype]
    return facts.linear_parameters * bits // 8


def _base_bytes(facts: ModelFacts, store: Quant, element: int) -> int:
    """The base with `element` bytes for each weight that is not quantised."""
    rest = (facts.parameters - facts.linear_parameters) * element + facts.buffer_bytes
    outputs = sum(s.out_features * s.count for s in facts.linears)
    return rest + store.weight_bytes(facts.linear_parameters, outputs, element)


def _beside_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Trained float32 weights beside the base; none where the base itself is trained."""
    return 0 if workload.adapter.whole_model else trained_parameters(facts, workload) * 4


def _integer_product_bytes(facts: ModelFacts, workload: Workload, tokens: int) -> int:
    """Products in integers, outside training: inputs in 2 + 1 bytes, sums in 4, results in 2."""
    if not workload.store.integer_products:
        return 0
    return tokens * max((3 * s.in_features + 6 * s.out_features for s in facts.linears), default=0)


def _copied_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Copies of frozen weights in the dtype of the products, which the fast path makes once: of float32 weights, and of
    as many quantised ones as it is told to keep unpacked."""
    if not own_layers(workload):
        return 0
    if workload.shards > 1:
        # Made for each use, of one layer.
        return (
            facts.largest_linear * DTYPE_BYTES[workload.matmul_dtype] if workload.matmul_dtype != workload.dtype else 0
        )
    whole = sum(s.parameters for s in _adapted(facts, workload)) * DTYPE_BYTES[workload.matmul_dtype]
    if workload.store.quantised:
        return int(whole * resident_ratio(facts, workload))
    return whole if workload.matmul_dtype != workload.dtype else 0


def resident_ratio(facts: ModelFacts, workload: Workload) -> float:
    """The share of the adapted quantised weights of which an unpacked copy is kept."""
    return min(1.0, workload.resident_layers / max(1, adapted_layers(facts, workload)))


def adapted_layers(facts: ModelFacts, workload: Workload) -> int:
    """How many linear layers get an adapter."""
    return sum(s.count for s in _adapted(facts, workload))


def _shadow_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Copies of A and B in the dtype of the products, which the fast path renews after every step."""
    if not own_layers(workload):
        return 0
    count = sum(workload.rank * (s.in_features + s.out_features) * s.count for s in _adapted(facts, workload))
    return count * DTYPE_BYTES[workload.matmul_dtype]


def _adapted(facts: ModelFacts, workload: Workload) -> list[LinearShape]:
    """The linear layers that get an adapter; of the last layers alone, those that are in them."""
    named = [_named(shape, workload.modules) for shape in facts.linears]
    layers = trained_layers(facts, workload)
    if layers == facts.layers:
        return named
    return [s.model_copy(update={"count": s.count * layers // facts.layers}) for s in named]


def _named(shape: LinearShape, modules: tuple[str, ...]) -> LinearShape:
    """Of linear layers of one name those that modules of a recipe name, which may be longer endings."""
    if modules == ("all-linear",):
        return shape
    count = sum(any(matches(path, name) for name in modules) for path in shape.paths)
    return shape.model_copy(update={"count": count})


def trained_parameters(facts: ModelFacts, workload: Workload) -> int:
    """Parameters with a gradient: those of the method per adapted layer and the fresh head, or all of them."""
    if workload.adapter.whole_model:
        return facts.parameters
    head = 0 if facts.predicts_tokens else facts.head_parameters
    if workload.adapter.only_head:
        return head or facts.vocab_size * facts.hidden_size
    if facts.experts and (traced := known_terms(step_key(facts, workload))):
        # Which weights of experts get an adapter, and of which rank, is known to peft alone.
        outside, layer = traced["trained_parameters"]
        return int(outside[0] + layer[0] * trained_layers(facts, workload))
    each = workload.adapter.layer_parameters
    return head + sum(each(s.in_features, s.out_features, workload.rank) * s.count for s in _adapted(facts, workload))


def _mapped(facts: ModelFacts, workload: Workload) -> bool:
    """Whether weights are used where the checkpoint's file is mapped: on a CPU, when no dtype is converted."""
    same = facts.stored_dtype in (None, workload.dtype)
    return workload.device == "cpu" and same and not workload.adapter.whole_model


def _file_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Pages of the checkpoint that quantising has read and that stay mapped beside the quantised weights.

    The kernel takes them back when memory is short, but until then they count as resident.
    """
    if not _mapped(facts, workload) or not workload.store.quantised or workload.shards > 1:
        return 0
    return facts.linear_parameters * DTYPE_BYTES[workload.dtype]


def _load_parts(facts: ModelFacts, workload: Workload) -> dict[str, int]:
    """What loading holds: nothing of an unquantised mapped file, whose pages come in with their first use."""
    weights = weight_bytes(facts, workload)
    stored = DTYPE_BYTES[facts.stored_dtype or workload.dtype] if facts.stored_dtype in (None, *DTYPE_BYTES) else 4
    if workload.shards > 1:
        return _divided_load_parts(facts, workload, stored)
    if _mapped(facts, workload):
        plain = (facts.parameters - facts.linear_parameters) * DTYPE_BYTES[workload.dtype]
        weights = weights - plain if workload.store.quantised else 0
        return {"weights": weights, "checkpoint": _file_bytes(facts, workload)}
    if workload.device == "cpu":
        return {"weights": weights, "checkpoint": facts.parameters * stored}
    # On a device: the largest weight in its first dtype beside the finished ones.
    return {"weights": weights, "workspaces": 2 * facts.largest_linear * stored}


def _divided_load_parts(facts: ModelFacts, workload: Workload, stored: int) -> dict[str, int]:
    """What loading holds where each process keeps a share: on a CPU the base whole, before it is divided."""
    held = held_bytes(facts, workload)
    if workload.device != "cpu":
        return {"weights": held, "workspaces": gathered_bytes(facts, workload)}
    whole = weight_bytes(facts, workload)
    if not _mapped(facts, workload):
        # The file is let go when all is converted. What layers leave as they are divided stays in the heap for a while.
        file = facts.parameters * stored
        return {"weights": whole + (held if held > file else 0), "checkpoint": 0 if held > file else file}
    if workload.store.quantised:
        return {"weights": whole + held, "checkpoint": facts.linear_parameters * DTYPE_BYTES[workload.dtype]}
    # Pages of the file come in as they are copied.
    return {"weights": held, "checkpoint": held}
