"""A score for a query and a document that are read together: encoders and decoders with a head of one output."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError
from hfadapt.core.hashing import stable_hash, text_key
from hfadapt.modalities import Example, Row
from hfadapt.modalities.text import pad, started
from hfadapt.tasks import Answer, Batches, Scores, Served, Task, unique_parts
from hfadapt.tasks._answers import Cut
from hfadapt.tasks._numbers import OneNumber
from hfadapt.tasks.embedding.search import rank_scores
from hfadapt.tasks.embedding.task import row_example

if TYPE_CHECKING:
    import torch

CANDIDATES = 16
"""Documents of a row: its own, the negatives that it gives, and others drawn from the rows beside it."""
SCORED = 32
"""Documents that are answered at once."""


class Reranking(OneNumber):
    """Rows of `anchor` and `positive`: cross-entropy of the positive among 16 documents (Gao et al. 2021, arXiv
    2101.08751).

    A row's documents are drawn once, by its own texts, so that every epoch and every model sees the same.
    """

    name = "reranking"
    title = "reranking"
    pipeline_tag = "text-ranking"
    peft_task_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    schemas = frozenset({"pairs"})
    label_kind = "ranks"
    metrics: tuple[str, ...] = ("ndcg_at_10", "mrr_at_10", "recall_at_10", "loss")
    joint = True
    compares = True
    assumed_parts = float(CANDIDATES)
    answer_rows = 1 << 20
    library = "sentence-transformers"
    usage = (
        "from sentence_transformers import CrossEncoder\n\n"
        'model = CrossEncoder(".")  # this folder, or its name on the Hub\n'
        'scores = model.predict([("a query", "a document"), ("a query", "another")])'
    )
    meaning = "Its one number says how well a document fits the query, beside those of other documents."
    folder = Path(__file__).parent

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed a number; which one follows from the other documents, which it does not see."""
        try:
            float(printed)
        except ValueError:
            return False
        return True

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output."""
        return {"num_labels": 1}

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """The anchor of each row with each of its documents, its positive first."""
        documents = list(_documents(rows))
        anchors = [str(row["anchor"]) for row, own in zip(rows, documents, strict=True) for _ in own]
        parts = iter(pair_parts(anchors, [text for own in documents for text in own], tokenizer, max_length))
        found = []
        for number, (row, own) in enumerate(zip(rows, documents, strict=True)):
            keys = [text_key(text) for text in (str(row["anchor"]), *own)]
            judged = [replace(next(parts), labels=(float(place == 0),)) for place in range(len(own))]
            found.append(row_example(judged, keys, (1,), number))
        return found

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """All S sequences: input_ids, attention_mask and token_type_ids where the tokenizer has them, (S, T);
        `labels` (S,), 1 for what belongs to its query."""
        import torch

        parts = [part for example in examples for part in example.parts]
        batch = pad(parts, pad_token_id)
        if "token_type_ids" in parts[0].inputs:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
            for number, part in enumerate(parts):
                batch["token_type_ids"][number, : part.size] = torch.tensor(part.inputs["token_type_ids"])
        batch["labels"] = torch.tensor([part.labels[0] if part.labels else 0.0 for part in parts])
        return batch

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every sequence has one label."""
        import torch

        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        return rows, batch["labels"], rows

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores (S, 1)."""
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    def criterion(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Where sequences are looked at one by one: binary cross-entropy in nats (S,) of scores (S, 1)."""
        import torch

        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(logits.float().flatten(), targets.float(), reduction="none")

    def joint_losses(
        self, outputs: torch.Tensor, examples: Sequence[Example], places: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Cross-entropy of each row's positive among its documents."""
        import torch

        scores = outputs.float()[:, 0]
        return torch.stack([torch.logsumexp(scores[own], 0) - scores[own[0]] for own in map(list, places)])

    def joint_distances(
        self, outputs: torch.Tensor, reference: torch.Tensor, places: Sequence[Sequence[int]], relations: bool | None
    ) -> torch.Tensor:
        """The squared distance of scores from the mean of their row's documents, as only differences rank (Hofstaetter
        et al. 2020, arXiv 2010.02666); for `relations` the divergence of which document belongs to the query."""
        import torch

        found = []
        for own in map(list, places):
            one, other = outputs.float()[own, 0], reference[own, 0]
            if relations:
                found.append(Task.divergence(self, other.log_softmax(0), one.log_softmax(0)))
            else:
                found.append(((one - one.mean()) - (other - other.mean())).square().mean())
        return torch.stack(found)

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """The rank of each row's positive among its documents; documents with the same score count as higher."""
        import numpy as np
        import torch

        parts, places = unique_parts(examples)
        outputs = torch.zeros(len(parts), 1)
        for numbers, batch in batches(parts):
            outputs[list(numbers)] = self.label_logits(model, batch).float().cpu()
        losses = self.joint_losses(outputs, examples, places).numpy()
        scores = outputs[:, 0].numpy()
        ranks = [np.array([1 + int((scores[own[1:]] >= scores[own[0]]).sum())]) for own in map(list, places)]
        return rank_scores(ranks, losses)

    def setting(self, examples: Sequence[Example]) -> str | None:
        """Among how many documents."""
        most = max(len(example.parts) for example in examples)
        return (
            f"{len(examples):,} queries, each among {most} documents: negatives that are given, others drawn at random"
        )

    def write_beside(self, folder: Path, model: Any, tokenizer: Any, max_length: int) -> None:
        """Takes the chat template out: sentence-transformers would put query and document into it."""
        (folder / "chat_template.jinja").unlink(missing_ok=True)

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The score of each text as a document for the first text of its adapter, which is the query."""
        import torch

        first: dict[Any, int] = {}
        asked = [names[row] if names else "" for row in range(len(texts))]
        firsts = [first.setdefault(name, row) for row, name in enumerate(asked)]
        rows = [row for row in range(len(texts)) if firsts[row] != row]
        if not rows:
            raise RequestError(
                "a query and a document are needed",
                got=f"{len(texts)} text",
                allowed="the query, then one or more documents",
                fix='give both: hfadapt predict CELL "query" "document"',
            )
        model, tokenizer = served[0].model, served[0].tokenizer
        found: dict[int, float] = {}
        cuts: dict[int, Cut | None] = {}
        for start in range(0, len(rows), SCORED):
            some = rows[start : start + SCORED]
            queries, documents = [texts[firsts[row]] for row in some], [texts[row] for row in some]
            parts = pair_parts(queries, documents, tokenizer, served[some[0]].max_length)
            cuts |= {row: Cut.of(part.length, part.size) for row, part in zip(some, parts, strict=True)}
            batch = self.collate(parts, served[0].pad_token_id)
            inputs = {name: part.to(model.device) for name, part in batch.items() if name != "labels"}
            named = {"adapter_names": [names[row] for row in some]} if names else {}
            with torch.inference_mode():
                found |= zip(some, model(**inputs, **named).logits.float()[:, 0].tolist(), strict=True)
        return [
            Answer(
                text=text,
                number=found.get(row),
                generated=None if row in found else f"query: {text}",
                cut=cuts.get(row),
            )
            for row, text in enumerate(texts)
        ]


def pair_parts(queries: Sequence[str], documents: Sequence[str], tokenizer: Any, max_length: int) -> list[Example]:
    """A sequence of each query with its document; where the two are too long the longer one is cut."""
    if not queries:
        return []
    pairs = (list(queries), list(documents))
    whole = tokenizer(*pairs, verbose=False)["input_ids"]
    cut = tokenizer(*pairs, truncation=True, max_length=max_length, verbose=False)
    types = cut.get("token_type_ids")
    found = []
    for number, (ids, length) in enumerate(zip(cut["input_ids"], map(len, whole), strict=True)):
        kept = tuple(started(ids, tokenizer))
        inputs: dict[str, Any] = {"input_ids": kept}
        if types is not None:
            inputs["token_type_ids"] = tuple(types[number]) if len(ids) else (0,)
        found.append(Example(inputs, (), len(kept), length, -1))
    return found


def _documents(rows: Sequence[Row]) -> Iterator[list[str]]:
    """The documents of each row, its positive first: the negatives that it gives, then others of these rows."""
    texts: dict[int, str] = {}
    belongs: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        key = text_key(str(row["positive"]))
        texts.setdefault(key, str(row["positive"]))
        belongs[text_key(str(row["anchor"]))].add(key)
    pool = sorted(texts)
    for row in rows:
        right = belongs[text_key(str(row["anchor"]))]
        own = {text_key(str(row["positive"])): str(row["positive"])}
        own |= {key: text for text in row.get("negatives") or () if (key := text_key(text)) not in right}
        # By the positive, so that a query that is written otherwise meets the same documents.
        draw = random.Random(stable_hash("candidates", next(iter(own))))
        for key in draw.sample(pool, min(len(pool), CANDIDATES + len(right))):
            if len(own) < CANDIDATES and key not in right:
                own.setdefault(key, texts[key])
        yield list(own.values())[:CANDIDATES]


KIND = Reranking()
