"""Greedy generation in batches: base and adapter complete the same prompts of the test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hfadapt.evaluate.bench import Bench
from hfadapt.evaluate.text_metrics import Texts
from hfadapt.tasks import IGNORED, Example

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
    return Prompt(example.row, example.input_ids[:start], example.input_ids[start:end])


def chosen_prompts(examples: Sequence[Example], count: int) -> list[Prompt]:
    """At most `count` rows that have an answer, spread evenly over the split."""
    found = [prompt for example in examples if (prompt := answered(example)) is not None]
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def new_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens that may be generated: half as many again as the longest answer has, at most 128."""
    longest = max((len(prompt.answer) for prompt in prompts), default=0)
    return min(MOST_NEW_TOKENS, longest * 3 // 2 + SLACK_TOKENS)


def generate(
    bench: Bench, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, adapter: bool = True, batch_rows: int = 0
) -> list[list[int]]:
    """Greedy continuations, without the prompt and without what follows the end token.

    Prompts are padded on the left, so that every row's last token is the last column; the attention mask keeps padding
    out, and positions are counted from each row's first token.

    Args:
        prompts: Token ids of each prompt.
        batch_rows: Prompts at once; by default at most 16.
    """
    if adapter:
        return _generate(bench, bench.model, prompts, max_new_tokens, batch_rows)
    with bench.adapter_off() as model:
        return _generate(bench, model, prompts, max_new_tokens, batch_rows)


def _generate(
    bench: Bench, model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_rows: int
) -> list[list[int]]:
    tokenizer = bench.base.tokenizer
    pad = int(tokenizer.pad_token_id or 0)
    ends = _end_tokens(model, tokenizer)
    count = batch_rows or max(1, min(MOST_BATCH_ROWS, bench.lock.evaluate.batch_rows))
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    written: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), count):
        numbers = order[start : start + count]
        longest = max(len(prompts[i]) for i in numbers)
        ids = torch.full((len(numbers), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(numbers):
            ids[line, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[line, longest - len(prompts[i]) :] = 1
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(bench.device),
                attention_mask=mask.to(bench.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                use_cache=True,
                pad_token_id=pad,
                eos_token_id=sorted(ends),
            )
        for line, i in enumerate(numbers):
            written[i] = _until(output[line, longest:].tolist(), ends)
    return written


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The token that ends what was learned, and those the base's own settings name."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    return {int(token) for token in (*named, tokenizer.eos_token_id) if token is not None}


def _until(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[:position]
    return ids


def generated_texts(bench: Bench) -> tuple[Texts, Texts] | None:
    """What base and adapter write for `evaluate.generate_rows` test rows; None where no row has prompt and answer."""
    prompts = chosen_prompts(bench.test, bench.lock.evaluate.generate_rows)
    if not prompts:
        return None
    tokenizer = bench.base.tokenizer

    def decoded(rows: Sequence[Sequence[int]]) -> list[str]:
        return [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in rows]

    rows = [prompt.row for prompt in prompts]
    references = decoded([prompt.answer for prompt in prompts])
    ids, limit = [prompt.ids for prompt in prompts], new_tokens(prompts)
    base = Texts(rows, decoded(generate(bench, ids, limit, adapter=False)), references)
    return base, Texts(rows, decoded(generate(bench, ids, limit)), references)
