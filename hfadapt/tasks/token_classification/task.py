"""One label per word: named entities (NER), parts of speech (POS); encoders and decoders with a head on each token.

The first token of a word learns and says its label; the word's other tokens carry none. Words are joined by spaces, so
that a tokenizer sees them as in running text, and found again by its offsets. Of a text that is cut, only the words
that the model was shown are scored, as `seqeval` users score what a model returns; the audit counts the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.modalities.text import labelled_tokens, pad, pad_labelled, require_offsets, text_example
from hfadapt.schemas import LabelKind
from hfadapt.schemas._words import words_in
from hfadapt.tasks import Answer, Batches, RowMetric, Scores, Served, Task, index_of, ragged

if TYPE_CHECKING:
    import numpy as np
    import torch

Place = tuple[int, int]
"""Start and end of a word in its text."""
KINDS: frozenset[LabelKind] = frozenset({"tokens"})
_SPAN_TAG = re.compile(r"[BIES](-.+)?")


# --- words and tokens ------------------------------------------------------------------------------------------------


def _tokenised(
    rows: Sequence[Sequence[str]], tokenizer: Any, max_length: int
) -> list[tuple[list[int], list[int | None], int]]:
    """Of each row's words: the token ids, the first token of each word (None where it has none), the uncut length.

    Raises:
        DataError: the tokenizer does not say where its tokens stand in a text.
    """
    require_offsets(tokenizer, "word")
    texts = [" ".join(words) for words in rows]
    if not texts:
        return []
    whole = tokenizer(texts, return_offsets_mapping=True, verbose=False)
    found = []
    for words, text, ids, offsets in zip(rows, texts, whole["input_ids"], whole["offset_mapping"], strict=True):
        kept = {"input_ids": ids, "offset_mapping": offsets}
        if len(ids) > max_length:
            kept = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        found.append((list(kept["input_ids"]), first_tokens(words, kept["offset_mapping"]), len(ids)))
    return found


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The first token of each word in the words joined by spaces; no token is the first of two words."""
    found: list[int | None] = []
    token = start = 0
    for word in words:
        end = start + len(word)
        # Before the word, or special: those stand at (0, 0).
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        inside = token < len(offsets) and offsets[token][0] < end and bool(word)
        found.append(token if inside else None)
        token += inside
        start = end + 1
    return found


# --- metrics ---------------------------------------------------------------------------------------------------------


def spans_of(names: Sequence[str]) -> bool:
    """Whether tags mark spans (IOB1, IOB2, IOBES) rather than a class for each word."""
    marked = [name for name in names if name != "O"]
    return bool(marked) and all(_SPAN_TAG.fullmatch(name) for name in marked)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of each span, by the convention of conlleval as `seqeval` has it by default.

    A span also begins where `I-` follows `O` or another type, and ends where the type changes.
    """
    found: set[tuple[str, int, int]] = set()
    before, kind_before, first = "O", "_", 0
    for number, each in enumerate((*tags, "O")):
        tag, kind = each[0], each[1:].split("-", 1)[-1] or "_"
        changed = kind != kind_before
        if before in "ES" or (before in "BI" and tag in "BSO") or (before not in "O." and changed):
            found.add((kind_before, first, number - 1))
        if tag in "BS" or (before in "ESO" and tag in "EI") or (tag not in "O." and changed):
            first = number
        before, kind_before = tag, kind
    return found


def _span_counts(scores: Scores) -> np.ndarray:
    """(N, 3): of each row the spans that are right, those predicted, those there are."""
    import numpy as np

    assert scores.gold is not None
    assert scores.predictions is not None
    counts = np.zeros((len(scores.gold), 3))
    for row, (gold, chosen) in enumerate(zip(scores.gold, scores.predictions, strict=True)):
        own, other = (spans([scores.names[i] for i in each]) for each in (gold, chosen))
        counts[row] = len(own & other), len(other), len(own)
    return counts


def _word_hits(scores: Scores) -> np.ndarray:
    """(N, 2): of each row the words whose tag is right, and all words."""
    import numpy as np

    assert scores.gold is not None
    assert scores.predictions is not None
    pairs = zip(scores.gold, scores.predictions, strict=True)
    return np.array([[float((gold == chosen).sum()), float(len(gold))] for gold, chosen in pairs]).reshape(-1, 2)


def _share(part: int, of: int) -> Any:
    """One sum over another, 0 where there is nothing."""

    def value(sums: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.asarray(sums[..., part] / np.maximum(sums[..., of], 1e-12))

    return value


def _f1(sums: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1e-12))


def _span_metric(name: str, about: str, value: Any, hub_name: str) -> RowMetric:
    return RowMetric(
        name, about, "classes", True, _span_counts, value, KINDS, True, lambda scores: spans_of(scores.names), hub_name
    )


METRICS = (
    _span_metric("span_f1", "micro F1 of whole spans (CoNLL), for tags such as B-PER", _f1, "f1"),
    _span_metric("span_precision", "share of the predicted spans that are right", _share(0, 1), "precision"),
    _span_metric("span_recall", "share of the spans that are found", _share(0, 2), "recall"),
    RowMetric(
        "token_accuracy",
        "share of words whose tag is right",
        "classes",
        True,
        _word_hits,
        _share(0, 1),
        KINDS,
        True,
        hub_name="accuracy",
    ),
)


# --- the task --------------------------------------------------------------------------------------------------------


class TokenClassification(Task):
    """Rows of `tokens` and `tags`; cross-entropy over C classes at the first token of each word."""

    name = "token-classification"
    title = "token classification"
    pipeline_tag = "token-classification"
    peft_task_type = "TOKEN_CLS"
    auto_class = "AutoModelForTokenClassification"
    schemas = frozenset({"tokens", "spans"})
    label_kind = "tokens"
    per_token = True
    counted = "words"
    meaning = "For each token, special ones too, the largest says which of LABELS."
    reading = "print([labels[number] for number in out.argmax(-1)])  # one for each token"
    own_metrics = METRICS
    metrics = ("span_f1", "token_accuracy", "span_precision", "span_recall", "calibration_error", "loss")
    # Accuracy of MiniLM with 150 sentences of news (parts of speech): 0.58 after 20 steps, 0.80 after 100; that of a
    # linear probe is 0.70.
    least_steps = 100
    folder = Path(__file__).parent

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed the tags that the evaluation saw, one at the end of each line."""
        return [line.rsplit("\t", 1)[-1] for line in printed.split("\n")] == list(prediction)

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Label names for the config."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Tokenises with the model's special tokens; a cut keeps them. Raises DataError for an unknown tag."""
        found = _tokenised([row["tokens"] for row in rows], tokenizer, max_length)
        examples = []
        for number, (row, (ids, first, length)) in enumerate(zip(rows, found, strict=True)):
            targets: list[int] = []
            if row.get("tags") is not None:
                targets = [IGNORED] * len(ids)
                for token, tag in zip(first, row["tags"], strict=True):
                    if token is not None:
                        targets[token] = index_of(tag, labels, row, number)
            examples.append(text_example(ids, targets, length=length, row=number))
        return examples

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels, all (B, T)."""
        form = pad_labelled if all(example.labels for example in examples) else pad
        return form(examples, pad_token_id)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first tokens of words."""
        return labelled_tokens(batch["labels"])

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (L, C) of the first tokens of words."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        chosen: torch.Tensor = logits.flatten(0, 1)[self.targets(batch)[0]]
        return chosen

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Class probabilities, predictions and summed losses of the words of every row."""
        import numpy as np
        import torch

        gold = [np.zeros(0, dtype=np.int64)] * len(examples)
        probabilities = [np.zeros((0, int(model.config.num_labels)))] * len(examples)
        for numbers, batch in batches(examples):
            _, targets, rows = self.targets(batch)
            chances = torch.softmax(self.label_logits(model, batch).float(), -1).cpu().numpy().astype(np.float64)
            ends = torch.bincount(rows, minlength=len(numbers)).cumsum(0)[:-1].tolist()
            for number, own, of_words in zip(
                numbers, np.split(targets.cpu().numpy(), ends), np.split(chances, ends), strict=True
            ):
                gold[number], probabilities[number] = own, of_words
        pairs = list(zip(gold, probabilities, strict=True))
        right = [chances[np.arange(len(own)), own] for own, chances in pairs]
        return Scores(
            ragged(gold),
            ragged([chances.argmax(-1) for chances in probabilities]),
            ragged(probabilities),
            np.array([-np.log(np.maximum(each, 1e-12)).sum() for each in right]),
            np.array([len(own) for own in gold], dtype=np.int64),
            "tokens",
            tuple(model.config.id2label[i] for i in range(int(model.config.num_labels))),
        )

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """Tags of the words of texts, or of those that are given; what is too long for the model is answered piece by
        piece."""
        import torch

        model, tokenizer = served[0].model, served[0].tokenizer
        said: list[list[tuple[Place, str, float]]] = [[] for _ in texts]
        left = {row: own for row, text in enumerate(texts) if (own := words_in(text))}
        while left:
            words = {row: [texts[row][start:end] for start, end in own] for row, own in left.items()}
            found = {row: _tokenised([own], tokenizer, served[row].max_length)[0] for row, own in words.items()}
            examples = [text_example(ids, (), length=length, row=row) for row, (ids, _, length) in found.items()]
            batch = self.collate(examples, served[0].pad_token_id)
            named = {"adapter_names": [names[row] for row in left]} if names else {}
            with torch.inference_mode():
                logits = model(**{name: part.to(model.device) for name, part in batch.items()}, **named).logits
            for (row, (ids, first, length)), own in zip(found.items(), logits.float().cpu().softmax(-1), strict=True):
                shown = [number for number, token in enumerate(first) if token is not None]
                for number in shown:
                    chance, tag = own[first[number]].max(-1)
                    said[row].append((left[row][number], served[row].labels[int(tag)], float(chance)))
                # Where nothing of the first word fits, that word is passed over.
                left[row] = left[row][max(shown, default=0) + 1 :] if length > len(ids) else []
            left = {row: own for row, own in left.items() if own}
        return [_answer(text, own, each.labels) for text, own, each in zip(texts, said, served, strict=True)]


def _answer(text: str, said: Sequence[tuple[Place, str, float]], labels: Sequence[str]) -> Answer:
    """Spans of words where the tags say spans, else every word; the probability is that of the least sure word."""
    tags = [tag for _, tag, _ in said]
    if spans_of(labels):
        found = [(first, last, kind) for kind, first, last in sorted(spans(tags), key=lambda span: span[1])]
    else:
        found = [(number, number, tag) for number, tag in enumerate(tags)]
    parts = [(" ".join(text[said[first][0][0] : said[last][0][1]].split()), kind) for first, last, kind in found]
    label = ", ".join(f"{piece} [{kind}]" for piece, kind in parts)
    sure = min((chance for _, _, chance in said), default=None)
    return Answer(text=text, label=label or "no spans", probability=sure, parts=tuple(parts))


KIND: Task = TokenClassification()
