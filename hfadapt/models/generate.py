"""Generation: prompts of different lengths are continued in one batch, each up to its end token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hfadapt.models.facts import position_limit
from hfadapt.models.load import pad_token_id

if TYPE_CHECKING:
    import torch

Reason = Literal["stop", "length"]
"""Why a continuation is over: its end was written, or it is as long as it may be."""


@dataclass(frozen=True)
class Wanted:
    """A continuation that somebody waits for, in a batch with those of others.

    Args:
        prompt: Token ids.
        max_new_tokens: The end token counts.
        hear: Told after every token all that is written, without the end token, and once the reason for which it is
            over. False ends it.
        adapter: Its name inside the model, where that has several.
        temperature: 0 takes the likeliest token.
        top_p: Tokens are drawn from the likeliest ones, as many as have this probability together.
        seed: Of the draw; None for another one each time.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    hear: Callable[[list[int], Reason | None], bool]
    adapter: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


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
    ends = _end_tokens(model, tokenizer)
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
        names = [adapters[i] for i in numbers] if adapters else ()
        output = _generated(model, tokenizer, [prompts[i] for i in numbers], max_new_tokens, names, how)
        for line, i in enumerate(numbers):
            written[i] = _until(output[line].tolist(), ends)
    return written


def write(model: Any, tokenizer: Any, wanted: Sequence[Wanted]) -> None:
    """Writes one batch of continuations; each is over when its own end is reached, and tells how it goes."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    ends = _end_tokens(model, tokenizer)
    watch = StoppingCriteriaList([_watching(wanted, max(len(each.prompt) for each in wanted), ends)])
    how: dict[str, Any] = {"do_sample": False, "stopping_criteria": watch}
    if any(each.temperature for each in wanted):
        how["logits_processor"] = LogitsProcessorList([_drawing(wanted)])
    names = [each.adapter for each in wanted] if wanted[0].adapter else ()
    _generated(
        model, tokenizer, [each.prompt for each in wanted], max(each.max_new_tokens for each in wanted), names, how
    )


def _watching(wanted: Sequence[Wanted], start: int, ends: set[int]) -> Any:
    """Tells each row what it has, and ends it by itself; `start` is the column of the first token that is new."""
    import torch

    going: list[list[int] | None] = [[] for _ in wanted]

    def watch(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, token in enumerate(ids[:, -1].tolist()):
            written, own = going[row], wanted[row]
            if written is None:
                continue
            length = ids.shape[1] - start
            reason: Reason | None = "stop" if token in ends else "length" if length >= own.max_new_tokens else None
            if token not in ends:
                written.append(token)
            if not own.hear(written, reason) or reason is not None:
                going[row] = None
        return torch.tensor([each is None for each in going], device=ids.device)

    return watch


def _drawing(wanted: Sequence[Wanted]) -> Any:
    """Makes the likeliest token of a row one that is drawn: each row has a temperature and a seed of its own."""
    import torch

    chances = [torch.Generator() for _ in wanted]
    for own, chance in zip(wanted, chances, strict=True):
        chance.seed() if own.seed is None else chance.manual_seed(own.seed)

    def draw(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, (own, chance) in enumerate(zip(wanted, chances, strict=True)):
            if not own.temperature:
                continue
            chosen = (scores[row].float().cpu() / own.temperature).softmax(-1)
            if own.top_p < 1:
                ordered, places = chosen.sort(descending=True)
                # The likeliest always stays.
                chosen[places[ordered.cumsum(-1) - ordered > own.top_p]] = 0
            # The largest of p / e with exponential e is a draw from p.
            waits = torch.empty_like(chosen).exponential_(generator=chance)
            scores[row] = (chosen / waits).to(scores)
        return scores

    return draw


def _generated(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    adapters: Sequence[str],
    how: dict[str, Any],
) -> torch.Tensor:
    """What follows each prompt of a batch (B, new), after the end of a row padding; `how` goes to `generate`."""
    import torch

    pad, longest = pad_token_id(tokenizer), max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):
        ids[line, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[line, longest - len(prompt) :] = 1
    if adapters:
        how = {**how, "adapter_names": list(adapters)}
    with torch.inference_mode(), _plain_settings(model, pad, _end_tokens(model, tokenizer)):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            use_cache=True,
            **how,
        )
    new: torch.Tensor = output[:, longest:]
    return new


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
