"""Speed of base and adapter on the machine that evaluates them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hfadapt.evaluate.context import EvaluationContext, spread
from hfadapt.evaluate.generation import chosen_prompts, generate
from hfadapt.modalities import Example
from hfadapt.records.evidence import Efficiency

LATENCY_ROWS = 20
LEAST_LATENCY_ROWS = 8
LATENCY_SECONDS = 5.0
WARM_UP_ROWS = 2
GENERATED_ROWS = 2
GENERATED_TOKENS = 16


def measure_efficiency(context: EvaluationContext, scoring_seconds: float, adapter_bytes: int) -> Efficiency:
    """Latency of one row of base and adapter, and rates.

    Latency is the wall time of scoring one row alone, over 20 rows spread evenly over the test split, after 2 rows that
    are not counted; where that takes more than 5 seconds, over fewer rows, but at least 8. The base is timed on the
    same rows. Greedy generation is timed one row at a time, over 2 rows of up to 16 tokens.

    Args:
        scoring_seconds: What scoring the whole test split in batches took with the adapter.
    """
    examples = context.test
    picked = [examples[i] for i in spread(len(examples), LATENCY_ROWS)]
    own = _latencies(context, picked, adapter=True, budget_seconds=LATENCY_SECONDS)
    other = _latencies(context, picked[: len(own)], adapter=False)
    tokens = sum(example.tokens for example in examples)
    return Efficiency(
        latency_p50_seconds=float(np.quantile(own, 0.5)),
        latency_p95_seconds=float(np.quantile(own, 0.95)),
        base_latency_p50_seconds=float(np.quantile(other, 0.5)),
        latency_rows=len(own),
        batch_rows=context.lock.evaluate.batch_rows,
        rows_per_second=len(examples) / scoring_seconds,
        tokens_per_second=tokens / scoring_seconds,
        generated_tokens_per_second=_generation_rate(context) if context.task.writes else None,
        adapter_bytes=adapter_bytes,
    )


def _latencies(
    context: EvaluationContext, examples: Sequence[Example], *, adapter: bool, budget_seconds: float | None = None
) -> list[float]:
    for example in examples[:WARM_UP_ROWS]:
        context.score([example], adapter=adapter)
    seconds: list[float] = []
    for example in examples:
        if budget_seconds is not None and len(seconds) >= LEAST_LATENCY_ROWS:
            over = sum(seconds) > budget_seconds
            # By their own clocks processes would stop after different rows.
            if context.world.any(over) if context.world else over:
                break
        started = time.perf_counter()
        context.score([example], adapter=adapter)
        seconds.append(time.perf_counter() - started)
    return seconds


def _generation_rate(context: EvaluationContext) -> float | None:
    """Tokens a second of greedy generation, one row at a time; None where no row has a prompt."""
    prompts = [prompt.ids for prompt in chosen_prompts(context.test, GENERATED_ROWS + 1)]
    if not prompts:
        return None
    generate(context, prompts[:1], 2, batch_rows=1)
    started = time.perf_counter()
    written = generate(context, prompts[1:] or prompts, GENERATED_TOKENS, batch_rows=1)
    seconds = time.perf_counter() - started
    # The end token is generated too.
    tokens = sum(min(GENERATED_TOKENS, len(ids) + 1) for ids in written)
    return tokens / seconds if tokens else None
