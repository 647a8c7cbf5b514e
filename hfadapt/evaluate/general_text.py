"""What a language model forgets: perplexity of base and adapter on general English text, which is package data."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from hfadapt.evaluate.context import EvaluationContext
from hfadapt.evaluate.metrics.rows import compare, sampling
from hfadapt.records.stages import Metric
from hfadapt.tasks import Scores

FILE = Path(__file__).with_name("general_text.txt")
MOST_TOKENS = 256
BATCH_ROWS = 4


@cache
def paragraphs() -> tuple[str, ...]:
    """The rows of the text; source and licence are in the file's first lines."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def general_text(context: EvaluationContext) -> Metric:
    """Perplexity per token of base and adapter, with the paired bootstrap over 48 paragraphs.

    Few rows at once: every token has a label here, and so a row of V logits.
    """
    longest = int(getattr(context.base.model.config, "max_position_embeddings", None) or MOST_TOKENS)
    examples = context.task.encode(
        [{"text": text} for text in paragraphs()],
        context.base.tokenizer,
        max_length=min(MOST_TOKENS, longest),
        labels=(),
    )

    def score(adapter: bool) -> Scores:
        with torch.inference_mode(), context.adapter_on(adapter) as model:
            found: Scores = context.task.score(model, examples, lambda rows: context.batches(rows, BATCH_ROWS))
        return found

    return compare("perplexity", score(False), score(True), **sampling(context.lock))
