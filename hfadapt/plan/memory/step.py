"""What is asked of a trace (trace.py), and what it answers; apart, because who knows the answer needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

MARKS = ("forward_peak", "forward_end", "backward_peak", "validate_peak", "evaluate_peak")
FORWARD_ONLY = ("validate_peak", "evaluate_peak")
TRAINED = "trained_parameters"
"""A mark beside these: the number of parameters with a gradient, which depends on the layers alone."""
PASSES = "passes"
"""Another: norms, gated activations and positions that are hfadapt's own, of a model with few layers."""
Three = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
Terms = dict[str, tuple[Three, Three]]


@dataclass(frozen=True)
class StepKey:
    """What the trace depends on; `config` is JSON, `lengths` the traced tokens per row (one for images)."""

    config: str
    modality: str
    auto_class: str
    reads: str
    generates: bool
    predicts_tokens: bool
    dtype: str
    matmul_dtype: str
    bits: int
    integer_products: bool
    fast: bool
    without: tuple[str, ...]
    dropout: bool
    method: str
    rank: int
    modules: tuple[str, ...]
    checkpointing: bool
    on_cpu: bool
    kernels: bool
    tiles: bool
    attention_on_tiles: bool
    lengths: tuple[int, ...]
    pattern: tuple[int, int] = (0, 1)
