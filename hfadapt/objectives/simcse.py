"""Contrasts of texts: SimCSE (Gao, Yao and Chen 2021, arXiv 2104.08821), for encoders without a head.

Each text goes through the encoder twice, with other values dropped; its two vectors are to be closer than those of two
different texts. A text is told from those of its group, so groups are what goes through the model together: neither the
number of processes nor the memory for a step changes what it is told from. Groups are drawn anew in each epoch.

Shapes: G texts of a group, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.modalities.text import pad, row_seed, text_example, tokenised
from hfadapt.objectives import SelfSupervised
from hfadapt.objectives._learner import FIXED, Learner, no_texts

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.tasks import Task

GROUP, TEMPERATURE, DROPPED = 16, 0.05, 0.1
"""Texts of a group; as in the paper, what similarities are divided by, and the share of values that is dropped."""


class Contrasts(Learner):
    """Rows of `text`; an example is a group of them, cross-entropy over the G texts of a group."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        import torch

        # Those of the base alone: an adapter's dropout is the recipe's.
        for name, module in base.model.named_modules():
            if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
                module.p = DROPPED

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Groups of texts that are always the same."""
        texts = tokenised([str(row["text"]) for row in rows], tokenizer, max_length)
        return _groups(rows, [tuple(ids) for ids, _ in texts], FIXED)

    def in_epoch(
        self, rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any, draw: tuple[int, int]
    ) -> list[Example]:
        """Other groups in each epoch, as many."""
        of_row = {
            row: ids for each in examples for row, ids in zip(each.inputs["rows"], each.inputs["texts"], strict=True)
        }
        return _groups(rows, [of_row[number] for number in range(len(rows))], draw)

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (texts of all groups, T), sizes of `groups`, `seeds` of what is dropped."""
        import torch

        texts = [text_example(ids, (), length=len(ids), row=0) for each in examples for ids in each.inputs["texts"]]
        sizes = torch.tensor([len(each.inputs["texts"]) for each in examples])
        seeds = torch.tensor([each.inputs["seed"] for each in examples])
        return {**pad(texts, pad_token_id), "groups": sizes, "seeds": seeds}

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each text among those of its group; every group goes through by itself, with noise of its own."""
        import torch

        found, rows, start = [], [], 0
        device = batch["input_ids"].device
        for number, (size, seed) in enumerate(zip(batch["groups"].tolist(), batch["seeds"].tolist(), strict=True)):
            twice = {name: batch[name][start : start + size].repeat(2, 1) for name in ("input_ids", "attention_mask")}
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                one, other = torch.nn.functional.normalize(self.vectors(twice), dim=-1).chunk(2)
            found.append(self.criterion(one @ other.t() / TEMPERATURE, torch.arange(size, device=device)))
            rows.append(torch.full((size,), number, device=device))
            start += size
        return torch.cat(found), torch.cat(rows)


def _groups(rows: Sequence[Row], texts: Sequence[tuple[int, ...]], draw: tuple[int, int]) -> list[Example]:
    """Texts in groups of about the same size, in an order that the draw and the rows alone decide."""
    keys = [row_seed(row, draw) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: (keys[number], number))
    count = max(1, len(order) // GROUP)
    examples = []
    for group in range(count):
        own = order[group::count]
        inputs = {"texts": tuple(texts[row] for row in own), "rows": tuple(own), "seed": keys[own[0]] >> 2}
        size = 2 * sum(len(texts[row]) for row in own)
        examples.append(Example(inputs, tuple(range(len(own))), size, size, group))
    return examples


class Contrasting(SelfSupervised):
    """`Contrasts`."""

    name = "simcse"
    title = "contrasts of texts"
    rank = 4
    because = "vectors of texts are told apart"
    passes = 2.0
    text_rows = GROUP

    def unfit(self, facts: ModelFacts) -> str | None:
        """It has no vectors of texts."""
        return no_texts(facts)

    def learner(self, base: Base, seed: int) -> Task:
        """Groups, and the dropout of the base."""
        return Contrasts(base)


KIND = Contrasting()
