"""Bytes of a step's tensors as terms of rows and tokens: traced once for each kind of step (trace.py) and kept on disk.

Where a model cannot be traced a rough formula stands for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from pydantic import field_validator

from hfadapt.core import cache, registry
from hfadapt.core.spec import Record
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.memory.step import MARKS, PASSES, TRAINED, StepKey, Terms
from hfadapt.plan.memory.workload import DTYPE_BYTES, Workload, fuses, trained_layers
from hfadapt.quants import Access

SHORT_TOKENS = 256
"""Rows are traced up to this length; longer ones up to twice of it."""
STEPWISE_MODEL_TYPES = ("falcon_mamba", "jamba", "mamba", "recurrent_gemma", "rwkv", "zamba")
"""Models whose own code goes through a row token by token; what that keeps is linear in the length, so short rows are
traced, as long ones would take minutes."""


class TracedStep(Record):
    """What a trace gave (trace.step_terms), in the cache."""

    terms: Terms

    @field_validator("terms")
    @classmethod
    def _has_all_marks(cls, terms: Terms) -> Terms:
        if terms.keys() != {*MARKS, TRAINED, PASSES}:
            raise ValueError("these are not the marks of a step")
        return terms


def terms_of(facts: ModelFacts, workload: Workload) -> Terms:
    """The terms of a workload's step, by mark as `trace.step_terms` gives them."""
    return known_terms(step_key(facts, workload)) or _rough_terms(facts, workload)


def is_traced(facts: ModelFacts, workload: Workload) -> bool:
    """Whether the step could be traced; otherwise the prediction rests on a rough formula."""
    return known_terms(step_key(facts, workload)) is not None


@functools.cache
def _traced_code() -> str:
    """Hash of the code that a trace runs: another one makes another trace."""
    here, package = Path(__file__).parent, registry.PACKAGE
    files = [
        here / "trace.py",
        package / "models" / "facts.py",
        *sorted(package.glob("adapters/*.py")),
        *sorted(package.glob("fast/*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@functools.cache
def known_terms(key: StepKey) -> Terms | None:
    """The traced terms, kept on disk for as long as the libraries stay the same; None when tracing fails."""
    made_by = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft")]
    made_by.append(registry.made_by("adapters", key.method))
    text = json.dumps([_traced_code(), made_by, asdict(key)], sort_keys=True)
    path = cache.folder() / "traces" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if kept := cache.read(path, TracedStep):
        return kept.terms
    from hfadapt.plan.memory.trace import step_terms

    try:
        terms = step_terms(key)
    except Exception:
        # Whatever a model's own code raises on fake tensors, for example where shapes depend on values.
        return None
    cache.write(path, TracedStep(terms=terms))
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
    on_cpu = workload.device == "cpu"
    task = registry.task(facts.task)
    config = registry.modality(task.modality).shaped(facts.config, workload.length_tokens)
    method, store = workload.adapter, workload.store
    # peft unpacks weights that it reads by itself, which stand-ins do not know.
    bits = 0 if Access.READ in method.needs else store.bits
    # Only an unpacked weight adds a constant, which takes a third length to find.
    unpacks = 0 if bits else 1
    if registry.modality(task.modality).one_size:
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
        config=json.dumps({k: v for k, v in config.items() if k[0] != "_"}, sort_keys=True, default=str),
        modality=task.modality,
        auto_class=task.auto_class_of(config["model_type"]),
        reads=task.reads,
        generates=facts.generates,
        predicts_tokens=facts.predicts_tokens,
        dtype=_traced_dtype("float32" if method.whole_model else workload.dtype),
        matmul_dtype=_traced_dtype(workload.matmul_dtype),
        bits=bits,
        integer_products=store.integer_products,
        fast=workload.fast,
        without=workload.without,
        dropout=workload.dropout,
        method=method.traced_as or method.name,
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
    """What the layers keep for the backward pass without checkpointing, per token."""
    outside, layer = terms_of(facts, workload.model_copy(update={"checkpointing": False}))["forward_end"]
    kept = max(0.0, outside[1]) + layer[1] * trained_layers(facts, workload)
    # Of rows of one size a trace tells what a whole row keeps.
    return kept / workload.length_tokens if registry.modality_of(facts.task).one_size else kept


def own_passes(facts: ModelFacts, workload: Workload) -> bool:
    """Whether hfadapt has norms, gated activations or positions of its own for this architecture."""
    found = known_terms(step_key(facts, workload))
    return found is not None and found["passes"][0][0] > 0
