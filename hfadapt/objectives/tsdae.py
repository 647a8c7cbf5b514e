"""Texts from the vectors of their ruins: TSDAE (Wang et al. 2021, arXiv 2104.06979), for encoders without a head.

Three of five words are left out, the encoder makes one vector of the rest, and a decoder writes the whole text from
that vector. The paper's decoder is a copy of the encoder; this one is a single layer over the base's own embeddings, so
that it is learned in the few steps of an adaptation. It is trained with the adapter and left behind.

Shapes: B texts, S tokens of a whole text, D hidden, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.modalities.text import pad, require_offsets, row_seed, with_words
from hfadapt.objectives import SelfSupervised
from hfadapt.objectives._learner import FIXED, Learner, no_texts

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.tasks import Task

LEFT_OUT = 0.6


class Denoiser(Learner):
    """Rows of `text`; cross-entropy over V tokens at every token but the first."""

    def __init__(self, base: Base, seed: int) -> None:
        super().__init__(base)
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = _decoder(base.model.get_input_embeddings(), int(base.model.config.num_attention_heads))
        self.module.to(base.model.device)

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """What is left of each text; `whole` has all its tokens, `words` the word of each.

        Raises:
            DataError: the tokenizer does not say which word a token belongs to.
        """
        require_offsets(tokenizer, "word")
        texts = [str(row["text"]) for row in rows]
        whole = [
            Example({"whole": tuple(ids), "words": tuple(words)}, (IGNORED, *ids[1:]), len(ids), length, number)
            for number, (ids, words, length) in enumerate(with_words(texts, tokenizer, max_length))
        ]
        return self.in_epoch(rows, whole, tokenizer, FIXED)

    def in_epoch(
        self, rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any, draw: tuple[int, int]
    ) -> list[Example]:
        """Other words are left out in each epoch."""
        return [
            _ruined(example, random.Random(row_seed(row, draw))) for row, example in zip(rows, examples, strict=True)
        ]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (B, T) of what is left, labels (B, S) of the whole texts."""
        import torch

        batch = pad(examples, pad_token_id)
        longest = max(len(example.labels) for example in examples)
        batch["whole"] = torch.full((len(examples), longest), pad_token_id)
        batch["labels"] = torch.full((len(examples), longest), IGNORED)
        for i, example in enumerate(examples):
            batch["whole"][i, : len(example.labels)] = torch.tensor(example.inputs["whole"])
            batch["labels"][i, : len(example.labels)] = torch.tensor(example.labels)
        return batch

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token but the first, given those before it and the vector of what is left."""
        assert self.module is not None
        labels = batch["labels"][:, 1:]
        rows, places = (labels != IGNORED).nonzero(as_tuple=True)
        logits = self.module(self.vectors(batch), batch["whole"][:, :-1], (rows, places))
        return self.criterion(logits, labels[rows, places]), rows


def _ruined(example: Example, draw: random.Random) -> Example:
    """The example with three of five words left out, and at least one left."""
    ids, words = example.inputs["whole"], example.inputs["words"]
    names = sorted({word for word in words if word is not None})
    kept = {word for word in names if draw.random() >= LEFT_OUT} or set(names[:1])
    left = tuple(token for token, word in zip(ids, words, strict=True) if word is None or word in kept) or ids[:1]
    return Example({**example.inputs, "input_ids": left}, example.labels, len(left), example.length, example.row)


def _decoder(embeddings: Any, heads: int) -> torch.nn.Module:
    """One layer of a transformer over frozen embeddings, to every position of which a text's vector is added."""
    import torch
    from torch import nn

    size = int(embeddings.weight.shape[1])

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector, self.start = nn.Linear(size, size), nn.LayerNorm(size)
            self.layer = nn.TransformerEncoderLayer(
                size, heads, 2 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.end = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size))

        def forward(self, vectors: torch.Tensor, ids: torch.Tensor, chosen: Any) -> torch.Tensor:
            """Logits (L, V) of the tokens after the L chosen (row, place) of ids (B, S)."""
            table = embeddings.weight.float()
            hidden = self.start(nn.functional.embedding(ids, table)) + self.vector(vectors)[:, None]
            hidden = hidden + _angles(ids.shape[1], size).to(hidden)
            mask = torch.full((ids.shape[1],) * 2, float("-inf"), device=ids.device).triu(1)
            found: torch.Tensor = self.end(self.layer(hidden, src_mask=mask))[chosen] @ table.t()
            return found

    return Decoder()


def _angles(length: int, size: int) -> torch.Tensor:
    """Sinusoidal positions, (length, size) (Vaswani et al. 2017, arXiv 1706.03762)."""
    import torch

    rates = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :size]


class Denoising(SelfSupervised):
    """`Denoiser`."""

    name = "tsdae"
    title = "whole texts from the vectors of what is left of them"
    rank = 3
    because = "better than contrasts for vectors of texts (arXiv 2104.06979)"
    labelled_share = 1.0
    own_decoder = True

    def unfit(self, facts: ModelFacts) -> str | None:
        """It has no vectors of texts."""
        return no_texts(facts)

    def learner(self, base: Base, seed: int) -> Task:
        """A denoiser with a fresh decoder."""
        return Denoiser(base, seed)


KIND = Denoising()
