"""Greedy generation in batches: base and adapter complete the same prompts of the test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hfadapt.evaluate.context import EvaluationContext, spread
from hfadapt.evaluate.metrics.text import Texts
from hfadapt.modalities import IGNORED, Example
from hfadapt.modalities.text import token_ids
from hfadapt.models.generate import continuations

MOST_BATCH_ROWS = 16
MOST_NEW_TOKENS = 128
SLACK_TOKENS = 8


@dataclass(frozen=True)
class Prompt:
    """The token ids before a row's last answer, and those of the answer with its end token."""

    row: int
    ids: tuple[int, ...]
    answer: tuple[int, ...]


def answered(example: Example) -> Prompt | None:
    """The last answer of an encoded row and what precedes it; None where there is no prompt or the row was cut."""
    labels = example.labels
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    if example.truncated or start in (0, end):
        return None
    return Prompt(example.row, token_ids(example)[:start], token_ids(example)[start:end])


def chosen_prompts(examples: Sequence[Example], count: int) -> list[Prompt]:
    """At most `count` rows that have an answer, spread evenly over the split."""
    # Of several sequences the first is what is to be written.
    found = [prompt for example in examples if (prompt := answered(example.parts[0])) is not None]
    return [found[i] for i in spread(len(found), count)]


def new_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens that may be generated: half as many again as the longest answer has, at most 128."""
    longest = max((len(prompt.answer) for prompt in prompts), default=0)
    return min(MOST_NEW_TOKENS, longest * 3 // 2 + SLACK_TOKENS)


def generate(
    context: EvaluationContext,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    adapter: bool = True,
    batch_rows: int = 0,
) -> list[list[int]]:
    """Greedy continuations by the adapter or, with `adapter=False`, the base.

    Args:
        prompts: Token ids of each prompt.
        batch_rows: Prompts at once; by default at most 16.
    """
    count = batch_rows or max(1, min(MOST_BATCH_ROWS, context.lock.evaluate.batch_rows))
    with context.adapter_on(adapter) as model:
        return continuations(model, context.base.tokenizer, prompts, max_new_tokens, batch_rows=count)


def generated_texts(context: EvaluationContext) -> tuple[Texts, Texts] | None:
    """What base and adapter write for `evaluate.generate_rows` test rows; None where no row has prompt and answer."""
    prompts = chosen_prompts(context.test, context.lock.evaluate.generate_rows)
    if not prompts:
        return None
    tokenizer = context.base.tokenizer

    def decoded(rows: Sequence[Sequence[int]]) -> list[str]:
        return [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in rows]

    rows = [prompt.row for prompt in prompts]
    references = decoded([prompt.answer for prompt in prompts])
    ids, limit = [prompt.ids for prompt in prompts], new_tokens(prompts)
    base = Texts(rows, decoded(generate(context, ids, limit, adapter=False)), references)
    return base, Texts(rows, decoded(generate(context, ids, limit)), references)
