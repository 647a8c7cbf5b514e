"""Predicted peak memory of each phase, by part, from the config alone.

What the tensors of a step need is traced (trace.py); what the base, the adapter and the optimizer hold is counted; what
neither can see (scratch space inside operators, the allocator's rounding, code pages) is a handful of constants that
were fitted on half of benchmarks/memory_grid.json and tested on the other half, on a CPU with AMX tiles.

On a CPU "peak" is the resident set above what the process held before it loaded the base, with malloc set as in
allocator.py.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hfadapt import kinds, samples
from hfadapt.facts import LinearShape, ModelFacts
from hfadapt.plan_record import PhaseMemory
from hfadapt.spec import Spec, write_text

if TYPE_CHECKING:
    from hfadapt.memory.trace import StepKey

MIB = 1 << 20
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.03, "paged-adamw-8bit": 2.03}
"""State per trained parameter: two moments; in 8 bits with one float32 scale per block of 256."""
SHORT_TOKENS = 256
"""Rows are traced up to this length; longer ones up to twice of it."""
STEPWISE_MODEL_TYPES = ("falcon_mamba", "jamba", "mamba", "recurrent_gemma", "rwkv", "zamba")
"""Models whose own code goes through a row token by token; what that keeps is linear in the length, so short rows are
traced, as long ones would take minutes."""
LOW_RANK = ("lora", "rslora", "dora", "pissa", "loftq", "eva", "olora")

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
CPU_RECOMPUTED_HEAP_RATIO = {"none": 2.0, "int8": 1.9, "nf4": 2.1, "fp4": 2.1}
"""The same in training with checkpointing, where large blocks come and go in every layer: the 90th percentile, as it
varies more; the same point measured again differs by up to a tenth."""
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


class Workload(Spec):
    """One configuration whose memory is asked for: B = `micro_batch_rows` rows of T = `length_tokens` tokens.

    `labelled_tokens` are the tokens of one row that carry a loss. `adapters` are trained together, each with B rows.
    `matmul_dtype` is what products of adapted layers run in: for a quantised base the dtype it is unpacked to.
    `generate_rows` completions are generated in the evaluation, at most `evaluate_rows` at a time. `fast` is the loop's
    own path, of which the parts in `without` are the libraries'; it keeps unpacked copies of `resident_layers` linear
    layers. `kernels`: its passes are compiled for this CPU. `tiles`: products can run on AMX tiles. `compile`:
    torch.compile is used. `settled`: malloc is set as in allocator.py.
    """

    quant: str = "none"
    dtype: str = "float32"
    matmul_dtype: str = "float32"
    method: str = "lora"
    rank: int = 16
    modules: tuple[str, ...] = ("all-linear",)
    dropout: bool = False
    checkpointing: bool = False
    optimizer: str = "adamw"
    micro_batch_rows: int = 8
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
    settled: bool = True
    device: Literal["cpu", "gpu"] = "cpu"


def predict(facts: ModelFacts, workload: Workload) -> tuple[PhaseMemory, ...]:
    """Peaks of load, train, evaluate and save, each by part.

    Parts: weights, checkpoint (its mapped pages), adapter, gradients, optimizer, activations, logits, workspaces,
    allocator, framework.
    """
    from hfadapt.fast.documents import MOST_SCORES, QUERY_BLOCK
    from hfadapt.fast.loss import LOSS_LOGITS

    on_cpu = workload.device == "cpu"
    element = DTYPE_BYTES[workload.dtype]
    weights = weight_bytes(facts, workload)
    trained = trained_parameters(facts, workload)
    adapter = 0 if workload.method == "full" else trained * 4
    terms = _terms(facts, workload)
    tokens = workload.length_tokens if facts.vocab_size else 1

    def live(mark: str, rows: int) -> int:
        outside, layer = terms[mark]
        square = float(rows * tokens * tokens)
        if workload.fast and "attention" not in workload.without and mark != "evaluate_peak":
            # Attention inside rows works on a limited number of scores at once.
            square = min(square, max(MOST_SCORES, QUERY_BLOCK * tokens * facts.heads) / facts.heads)
        shape = (1.0, float(rows * tokens), square)
        one, each = (sum(c * x for c, x in zip(part, shape, strict=True)) for part in (outside, layer))
        return max(0, int(one + each * facts.layers))

    def labelled(rows: int) -> int:
        """Logits of all labelled positions."""
        return rows * min(tokens, workload.labelled_tokens) * facts.vocab_size if facts.generates else 0

    def logits(rows: int) -> int:
        """Their bytes in training: as they come, their float32 copy, and the log-probabilities."""
        if not workload.fast or "loss" in workload.without:
            return labelled(rows) * (8 + (element if element < 4 else 0))
        # In pieces, of which the gradient takes the place; without compiled kernels with two float32 copies.
        in_place = workload.kernels if on_cpu else fuses(workload)
        return min(labelled(rows), LOSS_LOGITS) * (element if in_place else element + 8)

    def scored(rows: int) -> int:
        """Their bytes in scoring: as they come, and the float32 log-probabilities of one row at a time."""
        return labelled(rows) * element + labelled(1) * 8

    rows = workload.micro_batch_rows * workload.adapters
    every = trained * workload.adapters
    end = live("forward_end", rows)
    step = max(live("forward_peak", rows), end + logits(rows), live("backward_peak", rows))
    # Each adapter is validated by itself, with twice the rows.
    scored_rows = 2 * workload.micro_batch_rows
    validation = live("validate_peak", scored_rows) + logits(scored_rows)
    unpacked = facts.largest_linear * DTYPE_BYTES[workload.matmul_dtype] if workload.quant != "none" else 0
    train = {
        "weights": weights + _copied_bytes(facts, workload),
        "adapter": (adapter + _shadow_bytes(facts, workload)) * workload.adapters,
        "gradients": every * 4,
        "optimizer": int(every * OPTIMIZER_BYTES[workload.optimizer]),
        "activations": end,
        "logits": logits(rows),
        "workspaces": max(step, validation) - end - logits(rows),
    }
    if train["workspaces"] < 0:
        # The peak lies before the logits exist or after they are gone.
        train["logits"] = max(0, train["logits"] + train["workspaces"])
        train["workspaces"] = 0
    evaluate = {
        "weights": weights,
        "adapter": adapter,
        "activations": live("evaluate_peak", workload.evaluate_rows),
        "logits": scored(workload.evaluate_rows),
        "cache": 0,
        "workspaces": unpacked + _int8_product_bytes(facts, workload, workload.evaluate_rows * tokens),
    }
    generating = min(workload.evaluate_rows, workload.generate_rows) if facts.generates else 0
    cache = cache_bytes(facts, workload, generating)
    if (asked := generating * facts.vocab_size * (element + 4)) + cache > evaluate["logits"]:
        # Scoring and generating follow each other; the larger counts.
        evaluate |= {"logits": asked, "cache": cache}
    phases = {
        "load": {**_load_parts(facts, workload), "adapter": adapter * workload.adapters},
        "train": train,
        "evaluate": evaluate,
        # The tensors to be written, and the copy that is read back to compare.
        "save": {"weights": weights, "adapter": adapter, "workspaces": 2 * adapter},
    }
    for phase in ("train", "evaluate", "save"):
        phases[phase]["checkpoint"] = _file_bytes(facts, workload)
    result = []
    for phase, parts in phases.items():
        moving = sum(parts.get(name, 0) for name in ("activations", "logits", "workspaces"))
        if on_cpu:
            parts["allocator"] = int(moving * (_heap_ratio(workload, phase) - 1))
            parts["framework"] = CPU_CONSTANT_BYTES[phase]
            if phase != "load" and not on_tiles(workload):
                parts["framework"] += CPU_PRIMITIVES_BYTES
            if phase == "train" and fuses(workload):
                parts["framework"] += COMPILER_BYTES
        else:
            parts["allocator"] = int(sum(parts.values()) * (GPU_ALLOCATOR_RATIO - 1))
            parts["framework"] = GPU_CONSTANT_BYTES
        host = {} if on_cpu else _host_parts(facts, workload, phase)
        result.append(PhaseMemory.model_validate({"phase": phase, "parts": parts, "host_parts": host}))
    return tuple(result)


def predict_merge(facts: ModelFacts, workload: Workload) -> PhaseMemory:
    """Peak of adding the adapter to a freshly loaded base that is not quantised, and of writing the result.

    The result has the dtype of the base, or 16 bits where that was quantised. Merging works in place: beside the
    weights it holds one layer's update in float32 and in the dtype of the weights, and the pages of a file in another
    dtype. From a CPU tensors are written as they are; from a device all are copied to main memory first.
    """
    half = "bfloat16" if workload.quant != "none" and workload.dtype == "float32" else workload.dtype
    plain = workload.model_copy(update={"quant": "none", "dtype": half})
    element, trained = DTYPE_BYTES[plain.dtype], trained_parameters(facts, workload) * 4
    parts = {
        "weights": weight_bytes(facts, plain.model_copy(update={"method": "lora"})),
        "adapter": 0 if workload.method == "full" else trained,
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
    parts = {"process": HOST_PROCESS_BYTES}
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


def _heap_ratio(workload: Workload, phase: str) -> float:
    recomputed = phase == "train" and workload.checkpointing
    ratio = CPU_RECOMPUTED_HEAP_RATIO[workload.quant] if recomputed else CPU_HEAP_RATIO[phase]
    if phase == "evaluate" and workload.dtype == "float32" and kinds.load("quants", workload.quant).bits == 4:
        ratio = CPU_CAST_HEAP_RATIO
    if workload.settled or ratio == 1.0:
        return ratio
    return max(ratio, CPU_UNSETTLED_RECOMPUTED_RATIO if recomputed else CPU_UNSETTLED_RATIO)


def weight_bytes(facts: ModelFacts, workload: Workload) -> int:
    """The stored base: bitsandbytes keeps 4 bits and a float32 scale per 64 weights, or 8 bits and one per output."""
    element = 4 if workload.method == "full" else DTYPE_BYTES[workload.dtype]
    bits = kinds.load("quants", workload.quant).bits
    rest = (facts.parameters - facts.linear_parameters) * element + facts.buffer_bytes
    if bits == 4:
        return rest + facts.linear_parameters // 2 + facts.linear_parameters // 64 * 4
    if bits == 8:
        return rest + facts.linear_parameters + sum(4 * s.out_features * s.count for s in facts.linears)
    return rest + facts.linear_parameters * element


def _int8_product_bytes(facts: ModelFacts, workload: Workload, tokens: int) -> int:
    """Outside training 8-bit products run in integers: inputs in 2 + 1 bytes, sums in 4, results in 2."""
    if workload.quant != "int8":
        return 0
    return tokens * max((3 * s.in_features + 6 * s.out_features for s in facts.linears), default=0)


def own_layers(workload: Workload) -> bool:
    """Whether low-rank layers are hfadapt's own function, and not peft's."""
    able = workload.method in LOW_RANK and workload.method != "dora"
    return able and workload.fast and "low_rank" not in workload.without


def on_tiles(workload: Workload) -> bool:
    """Whether low-rank layers run on AMX tiles."""
    return workload.tiles and own_layers(workload)


def fuses(workload: Workload) -> bool:
    """Whether torch.compile has something to do: passes that have no kernels."""
    return workload.compile and workload.fast and not (workload.kernels and workload.device == "cpu")


def own_passes(facts: ModelFacts, workload: Workload) -> bool:
    """Whether hfadapt has norms, gated activations or positions of its own for this architecture."""
    found = _known_terms(step_key(facts, workload))
    return found is not None and found["passes"][0][0] > 0


def _copied_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Copies of frozen weights in the dtype of the products, which the fast path makes once: of float32 weights, and of
    as many quantised ones as it is told to keep unpacked."""
    if not own_layers(workload):
        return 0
    whole = sum(s.parameters for s in _adapted(facts, workload)) * DTYPE_BYTES[workload.matmul_dtype]
    if workload.quant != "none":
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
    """The linear layers that get an adapter."""
    return [s for s in facts.linears if workload.modules == ("all-linear",) or s.name in workload.modules]


def trained_parameters(facts: ModelFacts, workload: Workload) -> int:
    """Parameters with a gradient: R (in + out) per adapted layer and the fresh head, or all of them."""
    if workload.method == "full":
        return facts.parameters
    head = 0 if facts.generates else facts.head_parameters
    if workload.method == "head":
        return head or facts.vocab_size * facts.hidden_size
    if facts.experts and (traced := _known_terms(step_key(facts, workload))):
        # Which weights of experts get an adapter, and of which rank, is known to peft alone.
        outside, layer = traced["trained_parameters"]
        return int(outside[0] + layer[0] * facts.layers)
    chosen = _adapted(facts, workload)
    extra = sum(s.out_features * s.count for s in chosen) if workload.method == "dora" else 0
    return head + extra + sum(workload.rank * (s.in_features + s.out_features) * s.count for s in chosen)


def _mapped(facts: ModelFacts, workload: Workload) -> bool:
    """Whether weights are used where the checkpoint's file is mapped: on a CPU, when no dtype is converted."""
    same = facts.stored_dtype in (None, workload.dtype)
    return workload.device == "cpu" and same and workload.method != "full"


def _file_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Pages of the checkpoint that quantising has read and that stay mapped beside the quantised weights.

    The kernel takes them back when memory is short, but until then they count as resident.
    """
    if not _mapped(facts, workload) or workload.quant == "none":
        return 0
    return facts.linear_parameters * DTYPE_BYTES[workload.dtype]


def _load_parts(facts: ModelFacts, workload: Workload) -> dict[str, int]:
    """What loading holds: nothing of an unquantised mapped file, whose pages come in with their first use."""
    weights = weight_bytes(facts, workload)
    stored = DTYPE_BYTES[facts.stored_dtype or workload.dtype] if facts.stored_dtype in (None, *DTYPE_BYTES) else 4
    if _mapped(facts, workload):
        plain = (facts.parameters - facts.linear_parameters) * DTYPE_BYTES[workload.dtype]
        weights = 0 if workload.quant == "none" else weights - plain
        return {"weights": weights, "checkpoint": _file_bytes(facts, workload)}
    if workload.device == "cpu":
        return {"weights": weights, "checkpoint": facts.parameters * stored}
    # On a device: the largest weight in its first dtype beside the finished ones.
    return {"weights": weights, "workspaces": 2 * facts.largest_linear * stored}


def _terms(facts: ModelFacts, workload: Workload) -> Terms:
    return _known_terms(step_key(facts, workload)) or _rough_terms(facts, workload)


def is_traced(facts: ModelFacts, workload: Workload) -> bool:
    """Whether the step could be traced; otherwise the prediction rests on a rough formula."""
    return _known_terms(step_key(facts, workload)) is not None


@cache
def _traced_code() -> str:
    """Hash of the code that a trace runs: another one makes another trace."""
    here = Path(__file__).parent
    files = [here / "trace.py", *sorted((here.parent / "fast").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@cache
def _known_terms(key: StepKey) -> Terms | None:
    """The traced terms, kept on disk for as long as the libraries stay the same; None when tracing fails."""
    from hfadapt.memory.trace import step_terms

    made_by = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft")]
    text = json.dumps([_traced_code(), made_by, asdict(key)], sort_keys=True)
    path = samples.cache_folder() / "traces" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {mark: (tuple(outside), tuple(layer)) for mark, (outside, layer) in kept.items()}
    except (OSError, ValueError):
        pass
    try:
        terms = step_terms(key)
    except Exception:
        # Whatever a model's own code raises on fake tensors, for example where shapes depend on values.
        return None
    with suppress(OSError):
        write_text(path, json.dumps(terms))
    return terms


def _rough_terms(facts: ModelFacts, workload: Workload) -> Terms:
    """Bytes per token of a dense transformer layer, by counting: inputs of its linear layers, norms and activations."""
    element = DTYPE_BYTES[workload.dtype]
    inputs = sum(s.in_features * s.count for s in facts.linears) / max(1, facts.layers)
    layer = element * (inputs + 6 * facts.hidden_size + 3 * facts.intermediate_size) + 4.0 * inputs
    kept = float(element * facts.hidden_size) if workload.checkpointing else layer
    once = (0.0, layer if workload.checkpointing else layer / 2, 0.0)
    step = (once, (0.0, kept, 0.0))
    return {
        "forward_peak": step,
        "forward_end": ((0.0, 0.0, 0.0), (0.0, kept, 0.0)),
        "backward_peak": step,
        "validate_peak": ((0.0, layer, 0.0), (0.0, 0.0, 0.0)),
        "evaluate_peak": ((0.0, layer, 0.0), (0.0, 0.0, 0.0)),
    }


def step_key(facts: ModelFacts, workload: Workload) -> StepKey:
    """What a trace of this workload depends on: everything but rows, layers, and the length within its regime."""
    from hfadapt.memory.trace import StepKey

    on_cpu = workload.device == "cpu"
    # DoRA unpacks the weights of its own accord, which stand-ins do not know.
    bits = 0 if workload.method == "dora" else kinds.load("quants", workload.quant).bits
    # Only an unpacked weight adds a constant, which takes a third length to find.
    unpacks = 0 if bits else 1
    if facts.vocab_size == 0:
        lengths: tuple[int, ...] = (1,)
    elif facts.model_type in STEPWISE_MODEL_TYPES:
        lengths = (8, 16, 32)[unpacks:]
    elif workload.length_tokens <= SHORT_TOKENS and on_cpu:
        longest = min(facts.max_positions or SHORT_TOKENS, SHORT_TOKENS)
        lengths = (longest // 4, longest // 2, longest)[unpacks:]
    else:
        # Another attention kernel from here on; accelerators have one for all lengths.
        longest = min(facts.max_positions or 2 * SHORT_TOKENS, 2 * SHORT_TOKENS)
        lengths = (SHORT_TOKENS + 8, (SHORT_TOKENS + longest) // 2, longest)[unpacks:]
    return StepKey(
        config=json.dumps({k: v for k, v in facts.config.items() if k[0] != "_"}, sort_keys=True, default=str),
        auto_class=kinds.load("tasks", facts.task).auto_class,
        generates=facts.generates,
        dtype=_traced_dtype("float32" if workload.method == "full" else workload.dtype),
        matmul_dtype=_traced_dtype(workload.matmul_dtype),
        bits=bits,
        fast=workload.fast,
        without=workload.without,
        dropout=workload.dropout,
        adapted=workload.method in LOW_RANK,
        dora=workload.method == "dora",
        trains_all=workload.method == "full",
        rank=workload.rank,
        modules=workload.modules,
        checkpointing=workload.checkpointing,
        on_cpu=on_cpu,
        # On a GPU fused passes keep what kernels do, and attention what it keeps on tiles.
        kernels=workload.kernels if on_cpu else fuses(workload),
        tiles=workload.tiles and on_cpu,
        attention_on_tiles=workload.tiles or not on_cpu,
        lengths=lengths,
        pattern=facts.pattern,
    )


def _traced_dtype(dtype: str) -> str:
    """Float16 is traced as bfloat16: the sizes are the same."""
    return "float32" if dtype == "float32" else "bfloat16"


def saved_bytes_per_token(facts: ModelFacts, workload: Workload) -> float:
    """What the layers keep for the backward pass without checkpointing, per token (per row for images)."""
    outside, layer = _terms(facts, workload.model_copy(update={"checkpointing": False}))["forward_end"]
    return max(0.0, outside[1]) + layer[1] * facts.layers


Terms = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
