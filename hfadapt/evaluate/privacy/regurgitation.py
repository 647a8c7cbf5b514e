"""What a language model gives away when it writes: training rows word for word, and personal data.

Neither is looked for where the answer is one of a few labels: a label is no secret, and repeating it is the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from hfadapt.data.clean import find_pii, pii_kinds
from hfadapt.modalities import IGNORED, Example
from hfadapt.modalities.text import token_ids
from hfadapt.models.generate import continuations
from hfadapt.records.evidence import Estimate, PersonalData, Verbatim

if TYPE_CHECKING:
    from hfadapt.evaluate.context import EvaluationContext
    from hfadapt.evaluate.privacy.token_scores import TokenScores

CONTINUED_TOKENS = 32
LEAST_CONTINUED = 8
"""A shorter answer is guessed or known rather than remembered, so its row is left out."""

NEW_TOKENS = 40
LONGEST_PROMPT = 128
FIRST_TOKENS = 4
"""Of a plain text this many tokens are given to begin with."""


def verbatim(
    members: Sequence[Example],
    scores: Sequence[TokenScores],
    base: Sequence[TokenScores],
    others: Sequence[Example],
    other_scores: Sequence[TokenScores],
    *,
    confidence: float,
) -> Verbatim | None:
    """How often the greedy continuation of a row's beginning repeats the row for 32 tokens, or to its end.

    Of a plain text up to 32 tokens are shown; of prompts and chats everything before the (first) answer, and none of
    it. A greedy continuation equals the row exactly when each next token of the row is the likeliest one after the
    tokens before it, so one pass over the row tells without generating.

    Args:
        members: N training rows.
        scores: What the adapter says of their tokens.
        base: What the base says of them.
        others: Held-out rows.
        other_scores: What the adapter says of those.
        confidence: Coverage of the Wilson intervals.

    Returns:
        None where no row is long enough.
    """
    spans = [span(example) for example in members]
    kept = [i for i, found in enumerate(spans) if found is not None]
    if not kept:
        return None
    held = [i for i, example in enumerate(others) if span(example) is not None]

    def rate(examples: Sequence[Example], found: Sequence[TokenScores], rows: Sequence[int]) -> Estimate:
        return wilson(sum(_repeats(examples[i], found[i]) for i in rows), len(rows), confidence)

    return Verbatim(
        prompts=len(kept),
        prefix_tokens=max(found[0] for found in spans if found is not None),
        continued_tokens=max(found[1] - found[0] for found in spans if found is not None),
        rate=rate(members, scores, kept),
        base_rate=rate(members, base, kept),
        held_out_rate=rate(others, other_scores, held) if held else None,
    )


def span(example: Example) -> tuple[int, int] | None:
    """Which of the row's labels have to be repeated: from the first number up to, not including, the second.

    A row without a prompt shows the first half of its labels, up to 32. None where fewer than 8 would be left.
    """
    labelled = [position for position, label in enumerate(example.labels) if label != IGNORED]
    if not labelled:
        return None
    first = labelled[0]
    # The first answer: labels up to the first gap.
    answer = next((n for n, position in enumerate(labelled) if position != first + n), len(labelled))
    # The very first token is never predicted, so the labels that were scored begin with the second.
    scored = answer - (first == 0)
    start = min(CONTINUED_TOKENS, scored // 2) if first == 0 else 0
    end = min(scored, start + CONTINUED_TOKENS)
    return (start, end) if end - start >= LEAST_CONTINUED else None


def _repeats(example: Example, scores: TokenScores) -> bool:
    found = span(example)
    assert found is not None
    return bool(scores.hits[found[0] : found[1]].all())


def wilson(hits: int, rows: int, confidence: float) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    ends = binomtest(hits, rows).proportion_ci(confidence, method="wilson")
    return Estimate(value=hits / rows, low=float(ends.low), high=float(ends.high), rows=rows)


def personal_data(
    context: EvaluationContext, prompts: Sequence[Example], training_texts: Iterator[str]
) -> PersonalData:
    """Personal data in what the adapter writes, sampled at temperature 1 with the recipe's seed.

    Args:
        context: The base with the adapter.
        prompts: Held-out rows; the adapter continues each from what precedes its answer, or from the first tokens of
            a plain text.
        training_texts: All training rows, read only when something was found.
    """
    texts = generate(context, [opening(example) for example in prompts], context.lock.data.seed)
    found = dict.fromkeys(pii_kinds(), 0)
    values: Counter[str] = Counter()
    for text in texts:
        for kind, start, end in find_pii(text):
            found[kind] += 1
            values[text[start:end]] += 1
    return PersonalData(generations=len(texts), found=found, repeated=repeated(values, training_texts))


def repeated(values: Mapping[str, int], training_texts: Iterator[str]) -> int:
    """How many of the counted values stand in a training row too."""
    left, count = dict(values), 0
    for text in training_texts if left else ():
        for value in [value for value in left if value in text]:
            count += left.pop(value)
        if not left:
            break
    return count


def opening(example: Example) -> tuple[int, ...]:
    """Token ids that a generation starts from."""
    first = next((position for position, label in enumerate(example.labels) if label != IGNORED), 0)
    return token_ids(example)[:first][-LONGEST_PROMPT:] if first else token_ids(example)[:FIRST_TOKENS]


def generate(context: EvaluationContext, prompts: Sequence[Sequence[int]], seed: int) -> list[str]:
    """One sampled continuation of each prompt, the same for the same seed; the global random state is left alone."""
    tokenizer, rows = context.base.tokenizer, context.lock.evaluate.batch_rows
    with torch.random.fork_rng(devices=[context.device] if context.device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = continuations(context.model, tokenizer, prompts, NEW_TOKENS, batch_rows=rows, sampled=True)
    return [str(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
