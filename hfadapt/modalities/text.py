"""Texts: token ids as a model takes them, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import IGNORED, Example

if TYPE_CHECKING:
    import torch


def text_example(ids: Sequence[int], labels: Sequence[Any], *, length: int, row: int) -> Example:
    """An example of token ids; `length` counts the tokens before any cut."""
    return Example({"input_ids": tuple(ids)}, tuple(labels), len(ids), length, row)


def token_ids(example: Example) -> tuple[int, ...]:
    """The token ids of a text's example."""
    ids: tuple[int, ...] = example.inputs["input_ids"]
    return ids


def cut(text: str, ids: Sequence[int], tokenizer: Any, max_length: int) -> Sequence[int]:
    """Token ids of a text, of at most `max_length`; a cut keeps the special tokens at both ends.

    Args:
        ids: Of the whole text.
    """
    if len(ids) <= max_length:
        return ids
    kept: Sequence[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return kept


def pad(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both (B, T), padded on the right to the longest example."""
    import torch

    longest = max(example.size for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for i, example in enumerate(examples):
        input_ids[i, : example.size] = torch.tensor(token_ids(example))
        attention_mask[i, : example.size] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def packed(examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows one after the other: input_ids, position_ids, labels, and the row of each token, all (1, `tokens`).

    The first token of a row is no label: nothing of its row comes before it. Tokens after the last row are padding.
    """
    import torch

    lengths = [example.size for example in examples]
    left = tokens - sum(lengths)
    ids = [token for example in examples for token in token_ids(example)]
    labels = [label for example in examples for label in (IGNORED, *example.labels[1:])]
    positions = [torch.arange(length) for length in (*lengths, left)]
    rows = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * left]),
        "labels": torch.tensor([labels + [IGNORED] * left]),
        "position_ids": torch.cat(positions)[None],
        "rows": torch.nn.functional.pad(rows, (0, left))[None],
    }
