"""One class per text: encoders and decoders with a classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.modalities.text import cut, pad, text_example
from hfadapt.tasks import Answer, Batches, Scores, Served, Task, index_of

if TYPE_CHECKING:
    import torch


class TextClassification(Task):
    """Rows of `text` and `label`; cross-entropy over C classes; compared with a linear probe."""

    name = "text-classification"
    title = "text classification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    schemas = frozenset({"labelled"})
    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "calibration_error", "loss")
    folder = Path(__file__).parent
    problem_type = "single_label_classification"

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed the class that the evaluation saw."""
        return printed.startswith(f"{prediction} (")

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Label names for the config."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": self.problem_type,
        }

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Tokenises with the model's special tokens; a cut keeps them. Raises DataError for an unknown label."""
        texts = [str(row["text"]) for row in rows]
        whole = tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return [
            text_example(
                cut(text, ids, tokenizer, max_length), self.target(row, labels, number), length=len(ids), row=number
            )
            for number, (row, text, ids) in enumerate(zip(rows, texts, whole, strict=True))
        ]

    def target(self, row: Row, labels: Sequence[str], number: int) -> tuple[Any, ...]:
        """What is learned from a row; nothing where it has no label. Raises DataError for an unknown label."""
        label = row.get("label")
        return () if label is None else (index_of(label, labels, row, number),)

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids (B, T), attention_mask (B, T), labels (B,)."""
        import torch

        batch = pad(examples, pad_token_id)
        if all(example.labels for example in examples):
            batch["labels"] = torch.tensor([example.labels[0] for example in examples])
        return batch

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every row has one label."""
        import torch

        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        return rows, batch["labels"], rows

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, C)."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Class probabilities, predictions and losses of every row."""
        import numpy as np
        import torch

        probabilities = np.zeros((len(examples), int(model.config.num_labels)), dtype=np.float64)
        for numbers, batch in batches(examples):
            probabilities[numbers] = torch.softmax(self.label_logits(model, batch).float(), -1).cpu().numpy()
        gold = np.array([example.labels[0] for example in examples], dtype=np.int64)
        losses = -np.log(np.maximum(probabilities[np.arange(len(gold)), gold], 1e-12))
        return Scores(gold, probabilities.argmax(-1), probabilities, losses, np.ones(len(gold), dtype=np.int64))

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The head's outputs for each text, in words."""
        import torch

        model, tokenizer = served[0].model, served[0].tokenizer
        examples = [
            self.encode([{"text": text}], tokenizer, max_length=each.max_length, labels=each.labels)[0]
            for each, text in zip(served, texts, strict=True)
        ]
        batch = self.collate(examples, served[0].pad_token_id)
        named = {"adapter_names": list(names)} if names else {}
        with torch.inference_mode():
            logits = model(**{name: part.to(model.device) for name, part in batch.items()}, **named).logits
        return [
            self.read(text, row, each.labels)
            for each, text, row in zip(served, texts, logits.float().cpu(), strict=True)
        ]

    def read(self, text: str, logits: torch.Tensor, labels: Sequence[str]) -> Answer:
        """The answer in a row of logits (C,)."""
        probabilities = logits.softmax(-1)
        return Answer(text=text, label=labels[int(probabilities.argmax())], probability=float(probabilities.max()))


KIND = TextClassification()
