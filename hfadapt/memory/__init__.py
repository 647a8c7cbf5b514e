"""Predicted peak memory of each phase, by part, from config facts alone."""

from __future__ import annotations

from typing import Literal

from hfadapt import kinds
from hfadapt.facts import ModelFacts
from hfadapt.records import PhaseMemory
from hfadapt.spec import Spec

MMAP_THRESHOLD_BYTES = 1 << 20
TRIM_THRESHOLD_BYTES = 64 << 20


def settle_allocator() -> bool:
    """Makes glibc give every freed block of 1 MiB and more back to the system at once; True when that worked.

    Left alone, glibc raises that limit to 32 MiB as it sees large blocks freed, and torch's aligned requests rarely fit
    the holes they leave: the resident set then grows to 1.4 to 4 times what is alive. Call it before the base is loaded.
    Changing the limits of an allocator with live blocks is allowed (mallopt(3)); elsewhere this does nothing.
    """
    import ctypes

    try:
        library = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold = -3, -1
        return bool(
            library.mallopt(mmap_threshold, MMAP_THRESHOLD_BYTES) and library.mallopt(trim_threshold, TRIM_THRESHOLD_BYTES)
        )
    except (OSError, AttributeError):
        return False


DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZER_BYTES = {"adamw": 8, "adamw-8bit": 2, "paged-adamw-8bit": 2}
"""Optimizer state per trained parameter; the 8-bit states add one float32 per block of 256."""


class Workload(Spec):
    """One configuration whose memory is asked for: B = `micro_batch_rows` rows of T = `length_tokens` tokens.

    `labelled_tokens` are the tokens of one row that carry a loss; `matmul_dtype` is what products run in when it is
    not the dtype of the weights.
    """

    quant: str = "none"
    dtype: str = "float32"
    matmul_dtype: str = "float32"
    method: str = "lora"
    rank: int = 16
    modules: tuple[str, ...] = ("all-linear",)
    checkpointing: bool = False
    optimizer: str = "adamw"
    micro_batch_rows: int = 8
    length_tokens: int = 128
    labelled_tokens: int = 128
    evaluate_rows: int = 32
    device: Literal["cpu", "gpu"] = "cpu"


def predict(facts: ModelFacts, workload: Workload) -> tuple[PhaseMemory, ...]:
    """Peak of load, train, evaluate and save, each by part."""
    element = DTYPE_BYTES[workload.dtype]
    weights = weight_bytes(facts, workload)
    trained = trained_parameters(facts, workload)
    adapter = trained * 4
    workspace = facts.largest_linear * element if workload.quant != "none" else 0
    framework = 0 if workload.device == "cpu" else 500 << 20
    tokens = workload.micro_batch_rows * workload.length_tokens
    per_layer = _layer_bytes(facts, workload)
    activations = tokens * (per_layer if workload.checkpointing else per_layer * facts.layers)
    if workload.checkpointing:
        activations += tokens * facts.layers * facts.hidden_size * element
    output = facts.vocab_size if facts.generates else facts.labels
    rows = workload.micro_batch_rows * (workload.labelled_tokens if facts.generates else 1)
    logits = rows * output * (element + 12)
    evaluate_tokens = workload.evaluate_rows * workload.length_tokens
    evaluate = evaluate_tokens * (facts.hidden_size * 6 + facts.intermediate_size * 3) * element
    evaluate_rows = workload.evaluate_rows * (workload.labelled_tokens if facts.generates else 1)
    # Quantising on load holds the largest weight in its first dtype beside the finished ones.
    loading = (facts.largest_linear or 0) * element * 2
    train = {
        "weights": weights,
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": trained * OPTIMIZER_BYTES[workload.optimizer],
        "activations": activations,
        "logits": logits,
        "workspaces": workspace * 2,
    }
    evaluation = {
        "weights": weights,
        "adapter": adapter,
        "activations": evaluate,
        "logits": evaluate_rows * output * (element + 8),
        "workspaces": workspace,
    }
    phases = {
        "load": {"weights": weights, "workspaces": loading},
        "train": train,
        "evaluate": evaluation,
        "save": {"weights": weights, "adapter": adapter, "workspaces": adapter},
    }
    return tuple(
        PhaseMemory(
            phase=phase,
            parts={**parts, "allocator": int(sum(parts.values()) * 0.1), "framework": framework},
        )
        for phase, parts in phases.items()
    )


def weight_bytes(facts: ModelFacts, workload: Workload) -> int:
    """The stored base: bitsandbytes keeps 4 bits and a float32 scale per 64 weights, or 8 bits and one per output."""
    element = DTYPE_BYTES[workload.dtype]
    bits = kinds.load("quants", workload.quant).bits
    rest = (facts.parameters - facts.linear_parameters) * element + facts.buffer_bytes
    if bits == 4:
        return rest + facts.linear_parameters // 2 + facts.linear_parameters // 64 * 4
    if bits == 8:
        return rest + facts.linear_parameters + sum(4 * s.out_features * s.count for s in facts.linears)
    return rest + facts.linear_parameters * element


def trained_parameters(facts: ModelFacts, workload: Workload) -> int:
    """Parameters with a gradient: R (in + out) per adapted layer and the fresh head, or all of them."""
    if workload.method == "full":
        return facts.parameters
    head = 0 if facts.generates else facts.head_parameters
    if workload.method == "head":
        return head or facts.head_parameters
    chosen = [s for s in facts.linears if workload.modules == ("all-linear",) or s.name in workload.modules]
    return head + sum(workload.rank * (s.in_features + s.out_features) * s.count for s in chosen)


def _layer_bytes(facts: ModelFacts, workload: Workload) -> int:
    """Saved for backward, per token and layer."""
    element = DTYPE_BYTES[workload.dtype]
    adapted = sum((s.in_features + workload.rank) * 4 * s.count for s in facts.linears) // max(1, facts.layers)
    return adapted + element * (8 * facts.hidden_size + 4 * facts.intermediate_size)
