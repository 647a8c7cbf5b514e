"""Which configuration a target runs: every (storage, checkpointing, micro-batch) with its memory and time.

The fastest that fits is taken; when none fits, what would.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

from hfadapt import quants
from hfadapt.core import registry
from hfadapt.core.known import known
from hfadapt.fast.limits import SWITCH
from hfadapt.hardware import allocator, catalogue, processor
from hfadapt.hardware.catalogue import Target
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.memory import predict
from hfadapt.plan.memory.predict import Workload
from hfadapt.plan.memory.workload import DTYPE_BYTES
from hfadapt.quants import PLAIN
from hfadapt.recipe.schema import AUTO, Recipe
from hfadapt.records.plan import Alternative, PhaseMemory

SMALL_WEIGHTS_BYTES = 2_000_000_000
"""Up to this size in float32 a model that does not generate is kept in float32."""

# The time model: products at half the published rate, and every byte kept for the backward pass moved twelve times
# (written and read by the element-wise operations around it, forward and backward). It meets published single-GPU LoRA
# runs (torchtune on an RTX 4090, LLaMA-Factory with unsloth on an A100) within about a third.
REACHED_RATIO = 0.5
CPU_REACHED_RATIO = 0.85
"""Of the rate that a CPU was measured at in float32: products of 300 to 1,500 tokens in the middle of a step."""
MOVES_PER_SAVED_BYTE = 12
COMPILED_MOVES_PER_SAVED_BYTE = 8
"""With torch.compile, which fuses element-wise passes: those around a Llama layer's norms, gate and positions move
about 230 bytes per hidden feature and token as torch operations, about 60 when fused. Counted, not measured."""
COMPILE_SECONDS = 20.0
"""What torch.compile takes before it is of use. On two CPU cores the functions of a Llama took about ten seconds."""
CPU_BYTES_PER_SECOND_AND_CORE = 4e9
"""So that MiniLM and SmolLM2-135M on two cores with AVX2 meet what was measured (benchmarks/NOTES.md)."""
TILES_BYTES_PER_SECOND_AND_CORE = 10e9
"""Where layers and attention run on AMX tiles, which leave out most of these movements."""
HALF_RATE_TOKENS = 512
"""Tokens of a micro-batch at which half of a GPU's speed is lost to the overhead of starting operations."""
CPU_SECONDS_PER_LAYER = 5e-3
"""What starting the operations of a layer takes on a CPU, whatever its size, forward and backward. On two cores with
AMX SmolLM2-135M (30 layers) took 0.21 s for a step of 64 tokens, 0.72 s for 720 and 1.13 s for 1,440."""
CLOSE_RATIO = 1.25
"""A configuration within this of the best possible time ends the search for a faster one."""
SAME_RATIO = 1.05
"""Of configurations within this of the fastest, the one that needs the least memory is taken."""
RESIDENT_SHARE = 0.8
"""Of the room that is left, unpacked copies take this much at most: they only save time."""
PREFERENCE_STEP = 0.3
"""How much faster the next storage in order of preference must be."""


@dataclass(frozen=True)
class Question:
    """What is settled before the search: the same on every target, except the target and its share of rows.

    Args:
        rows: Rows of the effective batch that one process handles.
        mean_tokens: Mean length of a row, for the time; `length_tokens` is the longest, for the memory.
        parts: Sequences as which a row goes through the model; these lengths are theirs.
        shards: Processes over which the base is divided.
    """

    recipe: Recipe
    facts: ModelFacts
    target: Target
    budget_bytes: int
    method: str
    rank: int
    modules: tuple[str, ...]
    layers: int
    optimizer: str
    dropout: bool
    length_tokens: int
    labelled_tokens: int
    mean_tokens: float
    rows: int
    parts: int = 1
    shards: int = 1


@dataclass(frozen=True)
class Candidate:
    """One configuration with its predictions; `preference` is 1 for the preferred storage, more for the others."""

    workload: Workload
    phases: tuple[PhaseMemory, ...]
    seconds_per_step: float | None
    preference: float

    @property
    def peak_bytes(self) -> int:
        """Of the phase that needs most."""
        return max(phase.total_bytes for phase in self.phases)

    @property
    def cost(self) -> float:
        """Seconds of an optimizer step times preference; without a known rate, an order of preference alone."""
        seconds = self.seconds_per_step
        if seconds is None:
            seconds = (1.0 + self.workload.checkpointing) * (1 + 1 / self.workload.micro_batch_rows)
        return seconds * self.preference


def search(question: Question) -> list[Candidate]:
    """Configurations in order of preference, until one that fits is about as fast as any could be.

    Groups are (checkpointing, storage), without recomputing and unquantised first; each holds all micro-batches. A
    storage whose weights alone are too much is left out, unless all are.
    """
    train = question.recipe.train
    micros = [n for n in range(question.rows, 0, -1) if question.rows % n == 0]
    if train.micro_batch_rows != AUTO:
        micros = [train.micro_batch_rows]
    options = [train.checkpointing is True]
    if train.checkpointing == AUTO and question.facts.recomputes:
        options = [False, True]
    storages = storages_of(question)
    possible = [pair for pair in storages if stored_bytes(question, *pair) <= question.budget_bytes]
    smallest = min(storages, key=lambda pair: stored_bytes(question, *pair))
    found: list[Candidate] = []
    for checkpointing in options:
        for quant, dtype in possible or [smallest]:
            preference = 1 + PREFERENCE_STEP * storages.index((quant, dtype))
            group = [candidate(question, quant, dtype, checkpointing, micro, preference) for micro in micros]
            found += group
            fitting = [one.cost for one in group if one.peak_bytes <= question.budget_bytes]
            if fitting and min(fitting) <= CLOSE_RATIO * min(one.cost for one in found):
                return found
    return found


def stored_bytes(question: Question, quant: str, dtype: str) -> int:
    """What the weights need in this storage."""
    workload = Workload(quant=quant, dtype=dtype, method=question.method, shards=question.shards)
    return predict.held_bytes(question.facts, workload)


def best(fitting: list[Candidate]) -> Candidate:
    """About the fastest of those that fit, and the smallest of these."""
    limit = SAME_RATIO * min(one.cost for one in fitting)
    return min((one for one in fitting if one.cost <= limit), key=lambda one: one.peak_bytes)


def candidate(
    question: Question,
    quant: str,
    dtype: str,
    checkpointing: bool,
    micro_batch_rows: int,
    preference: float = 1.0,
    timed: bool = True,
) -> Candidate:
    """One configuration, predicted; its time takes another trace when it recomputes, and can be left out."""
    fast = question.recipe.train.fast
    without = _without(question)
    products = product_dtype(question.target, "low_rank" not in without and fast.bfloat16, quant, dtype)
    workload = Workload(
        quant=quant,
        dtype=dtype,
        matmul_dtype=products,
        method=question.method,
        objective=question.recipe.train.objective,
        rank=question.rank,
        modules=question.modules,
        layers=question.layers,
        dropout=question.dropout,
        checkpointing=checkpointing,
        optimizer=question.optimizer,
        micro_batch_rows=micro_batch_rows,
        parts=question.parts,
        length_tokens=question.length_tokens,
        labelled_tokens=min(question.length_tokens, question.labelled_tokens),
        evaluate_rows=1,
        generate_rows=question.recipe.evaluate.generate_rows,
        shards=question.shards,
        fast=fast.used,
        without=without,
        malloc_tuned=question.target.name != catalogue.THIS_MACHINE or allocator.malloc_tuned(),
        device="cpu" if question.target.on_cpu else "gpu",
    )
    kernels, tiles = _compiled(question.target)
    workload = workload.model_copy(update={"kernels": kernels, "tiles": tiles and products == "bfloat16"})
    seconds = None
    if timed:
        seconds = step_seconds(question.facts, workload, question.target, question.rows, question.mean_tokens)
    return Candidate(workload, predict.predict(question.facts, workload), seconds, preference)


def _without(question: Question) -> tuple[str, ...]:
    """Parts of the fast path that are left to the libraries."""
    task, fast = registry.task(question.recipe.task), question.recipe.train.fast
    return tuple(dict.fromkeys((*fast.without, *task.without, *(("low_rank",) if question.facts.pointwise else ()))))


def storages_of(question: Question) -> list[tuple[str, str]]:
    """(quant, dtype) pairs that this target and method can do, the preferred first."""
    recipe, target, facts = question.recipe, question.target, question.facts
    method = registry.adapter(question.method)
    fast = target.fast_dtype
    small = facts.parameters * 4 < SMALL_WEIGHTS_BYTES and not facts.generates
    if small or fast == "float32":
        # On a CPU without units for it, bfloat16 halves the weights and takes longer.
        order = ["float32", fast, *(["bfloat16"] if target.on_cpu else [])]
    else:
        order = [fast]
    dtypes = [dtype for dtype in dict.fromkeys(order) if dtype in target.dtypes]
    beside = [next((dtype for dtype in (fast, *order) if dtype != "float32" and dtype in target.dtypes), "float32")]
    if target.on_cpu and not target.bfloat16_units:
        # What is unpacked is multiplied in the dtype of the rest.
        beside = dtypes
    if recipe.dtype != AUTO:
        dtypes = beside = [recipe.dtype]
    tried = [registry.quant(PLAIN), *(quant for quant in quants.automatic() if quant.name in target.quants)]
    if facts.pointwise:
        tried = tried[:1]
    if recipe.quant != AUTO:
        tried = [registry.quant(recipe.quant)]
    if question.shards > 1:
        tried = [quant for quant in tried if quant.divides]
    pairs = [(q.name, d) for q in tried if method.works_on(q) for d in (beside if q.quantised else dtypes)]
    # A method for quantised bases alone, on a target that has none, is refused before the search.
    return pairs or [(tried[0].name, dtypes[0])]


def product_dtype(target: Target, fast: bool, quant: str, dtype: str) -> str:
    """What products of adapted layers run in: fast/path.py for a float32 base, model.py for a quantised one."""
    if dtype != "float32":
        return dtype
    if registry.quant(quant).quantised:
        return "bfloat16" if target.bfloat16_units else dtype
    units = {"amx_bf16", "avx512_bf16"} & set(target.features) if target.on_cpu else target.kind in ("cuda", "rocm")
    return "bfloat16" if fast and units and "bfloat16" in target.dtypes else dtype


def _compiled(target: Target) -> tuple[bool, bool]:
    """Whether passes are compiled for its CPU, and products run on AMX tiles; of this machine it is known, of others
    assumed where the processor can."""
    if not target.on_cpu:
        return False, False
    if target.name != catalogue.THIS_MACHINE:
        return True, "amx_bf16" in target.features
    has_tiles = {"amx_bf16", "avx512_bf16"} <= set(target.features)

    def ask() -> tuple[bool, bool]:
        from hfadapt.fast import compiled

        return compiled.passes() is not None, compiled.tiles() is not None

    # A library is loaded only beside torch, whose threads it shares. What could not be made is tried again.
    asked = ask() if "hfadapt.fast.compiled" in sys.modules or os.environ.get(SWITCH) else None
    key = ["kernels", processor.processor_name(), sorted(processor.cpu_flags() or target.features)]
    found = known(tuple[bool, bool], key, lambda: asked or ask(), lasts=lambda here: here == (True, has_tiles))
    return asked or found


def step_seconds(
    facts: ModelFacts,
    workload: Workload,
    target: Target,
    rows: int,
    tokens_per_row: float,
    frozen_runs: float = 1.0,
    forward: bool = False,
) -> float | None:
    """Rough seconds of one optimizer step over `rows` rows in one process; None when the target's rate is unknown.

    A frozen base costs 4 FLOP per weight and token (forward and input gradient), 6 when it is recomputed; training all
    weights costs 6 and 8. Attention adds 4 T D FLOP per token and layer for each of these passes. Layers below the
    first trained one have a forward pass alone, in `frozen_runs` of all steps; so do an objective's further passes, and
    the first of the two of a step whose rows are learned jointly and do not go through the model at once.

    Args:
        forward: Of a forward pass alone, as for a reference.
    """
    unlike = not workload.store.quantised and not predict.own_layers(workload)
    rate = target.tflops.get(workload.dtype if unlike else workload.matmul_dtype) or target.tflops.get("float32")
    if rate is None:
        return None
    bandwidth = target.bandwidth_bytes_per_second or math.inf
    if target.on_cpu:
        per_core = TILES_BYTES_PER_SECOND_AND_CORE if predict.on_tiles(workload) else CPU_BYTES_PER_SECOND_AND_CORE
        bandwidth = min(bandwidth, per_core * (target.cores or 1))
    frozen = predict.frozen_layers(facts, workload) / facts.layers
    trained_passes = (1 - frozen) * ((3 if workload.adapter.whole_model else 2) + workload.checkpointing)
    twice = registry.task(facts.task).joint and workload.micro_batch_rows < rows
    frozen_passes = frozen * frozen_runs + workload.minimises.further_passes + twice
    if forward:
        trained_passes, frozen_passes = 0.0, 1.0
    # Low-rank layers multiply an unquantised float32 base in bfloat16, frozen layers as it is stored.
    slower = rate / (target.tflops.get(workload.dtype) or rate) if not workload.store.quantised else 1.0
    active = facts.parameters - facts.embedding_parameters
    flop = 2 * active + 4 * facts.layers * facts.hidden_size * tokens_per_row
    flop *= trained_passes + frozen_passes * max(1.0, slower)
    moves = COMPILED_MOVES_PER_SAVED_BYTE if predict.fuses(workload) else MOVES_PER_SAVED_BYTE
    moved = moves * predict.saved_bytes_per_token(facts, workload) * (1 + 0.4 * workload.checkpointing)
    reached = CPU_REACHED_RATIO if target.on_cpu and workload.matmul_dtype == "float32" else REACHED_RATIO
    tokens = rows * workload.parts * tokens_per_row
    seconds = tokens * (flop / (rate * 1e12 * reached) + moved / bandwidth)
    together = workload.micro_batch_rows * workload.parts * workload.adapters * tokens_per_row
    if target.on_cpu:
        seconds += tokens / together * facts.layers * CPU_SECONDS_PER_LAYER * (trained_passes + frozen_passes) / 2
    else:
        seconds *= 1 + HALF_RATE_TOKENS / together
    uses = (trained_passes + frozen_passes) * rows / (workload.micro_batch_rows * workload.adapters)
    if workload.store.quantised:
        # Each use of a weight reads its stored bits, then writes and reads it in the compute dtype.
        uses *= 1 - predict.resident_ratio(facts, workload)
        seconds += uses * facts.linear_parameters * 4.5 / bandwidth
    elif target.on_cpu:
        seconds += uses * facts.linear_parameters * DTYPE_BYTES[workload.matmul_dtype] / bandwidth
    return seconds


def reference_seconds(question: Question, chosen: Candidate, rows: int | None) -> float:
    """What all training rows take that go through the model once before step 1, where the objective refers to that."""
    if not chosen.workload.minimises.refers or not rows:
        return 0.0
    some = (question.facts, chosen.workload, question.target, question.rows, question.mean_tokens)
    return (step_seconds(*some, forward=True) or 0.0) * rows / question.rows


def shared(question: Question, chosen: Candidate, adapters: int) -> Candidate:
    """The same configuration for several adapters that are trained together; its seconds are those of one of them."""
    workload = chosen.workload.model_copy(update={"adapters": adapters})
    seconds = step_seconds(question.facts, workload, question.target, question.rows, question.mean_tokens)
    return Candidate(workload, predict.predict(question.facts, workload), seconds, chosen.preference)


def cached(question: Question, chosen: Candidate, frozen_runs: float) -> Candidate:
    """The same configuration with the outputs of frozen layers kept, so that these run in a share of the steps."""
    work, target = chosen.workload, question.target
    seconds = step_seconds(question.facts, work, target, question.rows, question.mean_tokens, frozen_runs)
    return replace(chosen, seconds_per_step=seconds)


def compiled(question: Question, chosen: Candidate) -> Candidate:
    """The same configuration with torch.compile."""
    workload = chosen.workload.model_copy(update={"compile": True})
    seconds = step_seconds(question.facts, workload, question.target, question.rows, question.mean_tokens)
    return Candidate(workload, predict.predict(question.facts, workload), seconds, chosen.preference)


def compile_seconds(workload: Workload) -> float:
    """What torch.compile takes once in a training, shared by the adapters that are trained together."""
    return COMPILE_SECONDS / workload.adapters if predict.fuses(workload) else 0.0


def resident(question: Question, chosen: Candidate) -> Candidate:
    """The same configuration with as many quantised layers kept unpacked as there is room for."""
    workload, facts = chosen.workload, question.facts
    count = predict.adapted_layers(facts, workload)
    room = RESIDENT_SHARE * (question.budget_bytes - chosen.peak_bytes)
    whole = workload.model_copy(update={"resident_layers": count})
    needed = Candidate(whole, predict.predict(facts, whole), None, 1.0).peak_bytes - chosen.peak_bytes
    kept = count if needed <= room else max(0, int(count * room / needed))
    some = workload.model_copy(update={"resident_layers": kept})
    seconds = step_seconds(facts, some, question.target, question.rows, question.mean_tokens)
    return Candidate(some, predict.predict(facts, some), seconds, chosen.preference)


def alternatives(question: Question, final: Workload) -> list[Alternative]:
    """Up to three nearest plans that would fit, each with what it gives up; asked-for values may be given up too."""
    target, recomputed = question.target, question.facts.recomputes
    slower = "speed: recomputed activations, one row at a time" if recomputed else "speed: one row at a time"
    smaller = [q.name for q in quants.automatic() if q.name in target.quants and final.adapter.works_on(q)]
    smaller = [name for name in smaller if name != final.quant]
    steps: list[tuple[dict[str, Any], str]] = [({}, slower)]
    steps += [({"quant": quant}, f"{slower}; some accuracy: {quant}") for quant in smaller]
    for divisor in (2, 4, 8):
        short = max(8, final.length_tokens // divisor)
        words = f"{slower}; text after {short} tokens"
        steps.append(({"data.max_length": short}, words))
        for quant in smaller[-1:]:
            steps.append(({"data.max_length": short, "quant": quant}, f"{words}; some accuracy: {quant}"))
    found = []
    for fields, words in steps:
        length = fields.get("data.max_length", final.length_tokens)
        changed = replace(question, length_tokens=length)
        one = candidate(changed, fields.get("quant", final.quant), final.dtype, recomputed, 1, timed=False)
        if one.peak_bytes <= question.budget_bytes:
            changes = {"train.checkpointing": recomputed, "train.micro_batch_rows": 1, **fields}
            found.append(Alternative(changes=changes, gives_up=words, predicted_peak_bytes=one.peak_bytes))
        if len(found) == 3:
            return found
    larger = sorted((catalogue.target(name) for name in catalogue.names()[1:]), key=lambda other: other.budget_bytes)
    for other in larger:
        able = other.trains and final.dtype in other.dtypes and final.quant in other.quants
        if not able or other.budget_bytes <= target.budget_bytes or len(found) == 3:
            continue
        one = candidate(replace(question, target=other), final.quant, final.dtype, recomputed, 1, timed=False)
        if one.peak_bytes <= other.budget_bytes * (1 - question.recipe.memory_margin):
            changes = {"targets": other.name, "train.checkpointing": recomputed, "train.micro_batch_rows": 1}
            words = f"this target: {other.title} instead"
            found.append(Alternative(changes=changes, gives_up=words, predicted_peak_bytes=one.peak_bytes))
    return found
