"""Generation: prompts of different lengths are continued in one batch, each up to its end token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hfadapt.models.facts import position_limit
from hfadapt.models.load import pad_token_id


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_rows: int,
    adapters: Sequence[str] = (),
    sampled: bool = False,
) -> list[list[int]]:
    """What a model writes after each prompt: token ids, without the prompt, the end token and what follows it.

    Prompts are padded on the left, so that every row's last token is the last column; the attention mask keeps padding
    out, and positions are counted from each row's first token. Of the base's own generation settings only its end
    tokens count: a text ends at them and at the tokenizer's, which is the one that is learned. Where every position has
    an embedding, a long prompt loses its start, so that there are positions left to write in.

    Args:
        prompts: Token ids of each prompt.
        batch_rows: Prompts at once.
        adapters: For each prompt the name of its adapter inside the model, where it has several.
        sampled: Draw from the whole distribution at temperature 1; otherwise greedy.
    """
    import torch

    pad, ends = pad_token_id(tokenizer), _end_tokens(model, tokenizer)
    most, table = position_limit(model, model.config)
    if most and table:
        max_new_tokens = min(max_new_tokens, max(1, most // 2))
        prompts = [prompt[-(most - max_new_tokens) :] for prompt in prompts]
    how: dict[str, Any] = {"do_sample": False}
    if sampled:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    # Like lengths go together.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    written: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_rows):
        numbers = order[start : start + batch_rows]
        longest = len(prompts[numbers[-1]])
        ids = torch.full((len(numbers), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(numbers):
            ids[line, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[line, longest - len(prompts[i]) :] = 1
        if adapters:
            how["adapter_names"] = [adapters[i] for i in numbers]
        with torch.inference_mode(), _plain_settings(model, pad, ends):
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                num_beams=1,
                use_cache=True,
                **how,
            )
        for line, i in enumerate(numbers):
            written[i] = _until(output[line, longest:].tolist(), ends)
    return written


@contextmanager
def _plain_settings(model: Any, pad: int, ends: set[int]) -> Iterator[None]:
    """Takes the base's generation settings away for a while, all but its special tokens.

    transformers fills everything that a call leaves open from them, also where the call brings settings of its own.
    """
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=sorted(ends) or None, pad_token_id=pad
    )
    try:
        yield
    finally:
        base.generation_config = own


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    return {int(token) for token in (*named, tokenizer.eos_token_id) if token is not None}


def _until(ids: list[int], ends: set[int]) -> list[int]:
    return next((ids[:position] for position, token in enumerate(ids) if token in ends), ids)
