"""Masked language modelling: words of plain text are hidden, and the model says what stood there (Devlin et al. 2019).

Whole words are hidden, 15 % of a row's tokens: of these 80 % become the mask, 10 % another token, 10 % stay (arXiv
1810.04805). Training draws them anew in each epoch from (seed, epoch, source, row), so neither a resume nor the number
of processes changes them; every other reading of a row hides what follows from its text alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError
from hfadapt.core.hashing import stable_hash
from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.modalities.text import (
    in_pieces,
    labelled_tokens,
    pad_labelled,
    require_offsets,
    row_seed,
    text_example,
    token_ids,
    tokenised,
    with_words,
)
from hfadapt.tasks import Answer, Batches, Scores, Served, Task
from hfadapt.tasks._answers import Cut

if TYPE_CHECKING:
    import torch

SHARE, AS_MASK, AS_OTHER = 0.15, 0.8, 0.1
"""Of the tokens of a row that are hidden; of these, that become the mask, and another token."""
NO_WORD = -1


class MaskedLM(Task):
    """Rows of `text`; cross-entropy over V tokens at those that are hidden; compared with the base."""

    name = "masked-lm"
    title = "masked language modelling"
    pipeline_tag = "fill-mask"
    # peft has no type for it; this one hands a model's outputs on as they are.
    peft_task_type = "FEATURE_EXTRACTION"
    auto_class = "AutoModelForMaskedLM"
    schemas = frozenset({"text"})
    label_kind = "none"
    baseline = "base"
    metrics = ("perplexity",)
    per_token = True
    needs_head = True
    meaning = "For each token the largest says which token of the vocabulary stands there."
    fits = frozenset({"text"})
    redraws = True
    counted = "hidden tokens"
    folder = Path(__file__).parent

    def outputs(self, labels: Sequence[str]) -> int:
        """The vocabulary's, whatever the labels."""
        return 0

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Nothing beyond the defaults."""
        return {}

    # --- rows --------------------------------------------------------------------------------------------------------

    def fitted(self, row: Row, tokenizer: Any, max_length: int | None = None) -> list[Row]:
        """A long text in pieces."""
        return in_pieces(row, tokenizer, max_length)

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Tokens of which some are hidden, always the same ones of a text; labels are what stood there.

        `inputs["words"]` has the number of the word that each token belongs to, `NO_WORD` for special ones.

        Raises:
            DataError: the tokenizer has no mask, or does not say which word a token belongs to.
        """
        if tokenizer.mask_token_id is None:
            raise DataError(
                "the tokenizer has no mask token, so nothing can be hidden",
                place=str(tokenizer.name_or_path),
                fix="use an encoder that was trained on masked words, such as bert or roberta",
            )
        require_offsets(tokenizer, "word")
        texts = [str(row["text"]) for row in rows]
        examples = []
        for number, (ids, words, length) in enumerate(with_words(texts, tokenizer, max_length)):
            inputs = {"input_ids": tuple(ids), "words": tuple(NO_WORD if word is None else word for word in words)}
            plain = Example(inputs, (IGNORED,) * len(ids), len(ids), length, number)
            examples.append(hidden(plain, tokenizer, random.Random(stable_hash(texts[number]))))
        return examples

    def in_epoch(
        self, rows: Sequence[Row], examples: Sequence[Example], tokenizer: Any, draw: tuple[int, int]
    ) -> list[Example]:
        """Other words are hidden in each epoch."""
        return [
            hidden(example, tokenizer, random.Random(row_seed(row, draw)))
            for row, example in zip(rows, examples, strict=True)
        ]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels, all (B, T)."""
        return pad_labelled(examples, pad_token_id)

    # --- loss --------------------------------------------------------------------------------------------------------

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The hidden tokens."""
        return labelled_tokens(batch["labels"])

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (L, V): of each row the head is given the vectors of as many tokens as any row has hidden ones, these
        first, so that rows stay with the adapters that they belong to."""
        import torch

        hidden = batch["labels"] != IGNORED
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not hasattr(base, "base_model_prefix"):
            # An exported file has no parts: it says something of every token.
            whole: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return whole[hidden]
        most = max(1, int(hidden.sum(1).max()))
        taken = torch.argsort((~hidden).to(torch.int8), dim=1, stable=True)[:, :most]

        def chosen(module: Any, inputs: Any, output: Any) -> Any:
            vectors = torch.take_along_dim(output[0], taken[..., None], 1)
            return (vectors, *output[1:]) if isinstance(output, tuple) else type(output)(last_hidden_state=vectors)

        hook = getattr(base, base.base_model_prefix).register_forward_hook(chosen)
        try:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        finally:
            hook.remove()
        found: torch.Tensor = logits[torch.gather(hidden, 1, taken)]
        return found

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """The loss of each row's hidden tokens."""
        import numpy as np

        losses, tokens = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
        for numbers, batch in batches(examples):
            found, rows = self.losses(model, batch)
            of_row = rows.cpu().numpy()
            losses[numbers] = np.bincount(of_row, found.cpu().numpy().astype(np.float64), len(numbers))
            tokens[numbers] = np.bincount(of_row, minlength=len(numbers))
        return Scores(None, None, None, losses, tokens, "tokens")

    # --- answers -----------------------------------------------------------------------------------------------------

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The likeliest token for each mask in a text, and the text with them; one without a mask stays as it is."""
        import torch

        model, tokenizer, mask = served[0].model, served[0].tokenizer, served[0].tokenizer.mask_token_id
        examples = []
        for number, (text, each) in enumerate(zip(texts, served, strict=True)):
            ((ids, length),) = tokenised([text], tokenizer, each.max_length)
            labels = [token if token == mask else IGNORED for token in ids]
            examples.append(text_example(ids, labels, length=length, row=number))
        batch = self.collate(examples, served[0].pad_token_id)
        named = {"adapter_names": list(names)} if names else {}
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            logits = model(**inputs, **named).logits
        answers = []
        for text, example, row in zip(texts, examples, logits, strict=True):
            places = [place for place, label in enumerate(example.labels) if label != IGNORED]
            sure, tokens = row[places].float().softmax(-1).max(-1)
            words = [tokenizer.decode([token]).strip() for token in tokens.tolist()]
            filled = text
            for word in words:
                filled = filled.replace(tokenizer.mask_token, word, 1)
            label = ", ".join(words) if words else None
            chance = float(sure.min()) if words else None
            shorter = Cut.of(example.length, example.size)
            answers.append(Answer(text=text, label=label, probability=chance, generated=filled, cut=shorter))
        return answers


def hidden(example: Example, tokenizer: Any, draw: random.Random) -> Example:
    """The example with other words hidden: at least one where there are any, and tokens for 15 % at most beyond that.

    Args:
        example: With `words`; what is hidden in it is known from its labels.
    """
    labels = zip(token_ids(example), example.labels, strict=True)
    ids = [token if label == IGNORED else label for token, label in labels]
    spans = [
        [place for place, _ in part]
        for word, part in groupby(enumerate(example.inputs["words"]), key=lambda pair: pair[1])
        if word != NO_WORD
    ]
    draw.shuffle(spans)
    most, chosen = max(1, round(SHARE * sum(map(len, spans)))), list[int]()
    for span in spans:
        if not chosen or len(chosen) + len(span) <= most:
            chosen += span
    shown, marks = list(ids), [IGNORED] * len(ids)
    for place in chosen:
        marks[place], lot = ids[place], draw.random()
        if lot < AS_MASK:
            shown[place] = tokenizer.mask_token_id
        elif lot < AS_MASK + AS_OTHER:
            shown[place] = _other(tokenizer, draw)
    return replace(example, inputs={**example.inputs, "input_ids": tuple(shown)}, labels=tuple(marks))


def _other(tokenizer: Any, draw: random.Random) -> int:
    """A token at random, no special one."""
    special = set(tokenizer.all_special_ids)
    while (token := draw.randrange(tokenizer.vocab_size)) in special:
        pass
    return token


KIND: Task = MaskedLM()
