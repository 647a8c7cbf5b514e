"""Whether weights and tokenizer of a base fit its config, before anything is trained.

Weights are matched with the model by transformers' own rules; on the meta device that takes a second for any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hfadapt.core.errors import Problem
from hfadapt.models.folders import AGAIN

SHOWN = 3


def fit_problems(model: Any, info: Mapping[str, Any], place: str, needs_head: bool) -> Iterator[Problem]:
    """What of the weights does not fit the config, from what transformers says it loaded.

    Args:
        info: `output_loading_info`; sizes of the head's classes are looked at elsewhere.
        needs_head: The task needs the output layer as it was trained.
    """
    from torch import nn

    from hfadapt.models.facts import body_name

    stacks = {path: len(stack) for path, stack in model.named_modules() if isinstance(stack, nn.ModuleList)}
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    body = f"{body_name(model)}."
    missing = sorted(info["missing_keys"])
    lost = [
        key
        for key in missing
        if any(key.startswith(f"{stack}.") for stack in stacks)
        or key.rpartition(".")[0] in embeddings
        or (needs_head and not key.startswith(body))
    ]
    if lost and not any(key.startswith(body) for key in lost):
        yield Problem(
            f"this base has no output layer of {type(model).__name__}: it was saved without",
            place,
            got="without " + ", ".join(lost[:SHOWN]) + (" …" if len(lost) > SHOWN else ""),
            allowed="a base whose weights hold it, as those of BertForMaskedLM do",
            fix="take another base; or adapt this one to texts without it: another task with pretrain",
        )
    elif lost:
        yield Problem(
            f"{len(lost)} tensors of this model are not in its weights{_layers(lost, stacks)}",
            place,
            got="without " + ", ".join(lost[:SHOWN]) + (" …" if len(lost) > SHOWN else ""),
            allowed=f"weights of every layer of {type(model).__name__}",
            fix="take weights and config.json of the same model; " + AGAIN,
        )
    more = [
        (stack, int(match[2]))
        for key in info["unexpected_keys"]
        if (match := re.match(r"(?:(.+?)\.)?(\d+)\.", key))
        for stack, count in stacks.items()
        if match[1] and f".{stack}".endswith(f".{match[1]}") and int(match[2]) >= count
    ]
    if more:
        stack, number = max(more, key=lambda found: found[1])
        yield Problem(
            "the weights have more layers than config.json gives",
            place,
            got=f"{number + 1} in {stack}",
            allowed=str(stacks[stack]),
            fix="take weights and config.json of the same model; " + AGAIN,
        )


def _layers(lost: list[str], stacks: Mapping[str, int]) -> str:
    """': 1 of 2 layers of model.layers', where whole layers are missing."""
    for stack, count in stacks.items():
        pattern = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
        numbers = {int(match[1]) for key in lost if (match := pattern.match(key))}
        if numbers:
            return f": {len(numbers)} of {count} layers of {stack} are not whole"
    return ""


def size_problem(found: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], place: str) -> Problem:
    """Tensors of the weights that have other sizes than the config gives: name → (found, needed)."""
    shown = [f"{name} {list(sizes[0])} instead of {list(sizes[1])}" for name, sizes in sorted(found.items())[:SHOWN]]
    return Problem(
        f"{len(found)} tensors of the weights do not have the sizes that config.json gives",
        place,
        got="; ".join(shown),
        allowed="weights and config.json of the same model",
        fix=AGAIN,
    )


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def token_problems(tokenizer: Any, embeddings: int, place: str) -> Iterator[Problem]:
    """Tokens for which the model has no embedding."""
    lost = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= embeddings)
    if lost:
        shown = ", ".join(f"{token!r} is {number}" for number, token in lost[:SHOWN])
        yield Problem(
            f"the tokenizer has {len(lost)} {'token' if len(lost) == 1 else 'tokens'} without an embedding",
            place,
            got=f"{shown}{' …' if len(lost) > SHOWN else ''}; the model has {embeddings:,} embeddings",
            allowed=f"tokens 0 to {embeddings - 1}",
            fix="give it room for them: model.resize_token_embeddings(len(tokenizer)), then model.save_pretrained",
        )
