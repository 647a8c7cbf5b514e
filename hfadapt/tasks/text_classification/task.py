"""One label per text: encoders and decoders with a classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError, nearest
from hfadapt.tasks import IGNORED, Batches, Example, Row, Scores, Task, pad

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class TextClassification:
    """Rows of `text` and `label`; cross-entropy over C classes; compared with a linear probe."""

    name = "text-classification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    forms = frozenset({"labelled"})
    baseline = "linear probe"
    packs = False
    metrics = ("accuracy", "macro_f1", "calibration_error", "loss")

    @cached_property
    def snippet(self) -> str:
        """The code that opens an adapter of this task, a template of jinja."""
        return Path(__file__).with_name("snippet.py.j2").read_text(encoding="utf-8")

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Label names for the config."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str]
    ) -> list[Example]:
        """Tokenises with the model's special tokens; a cut keeps them. Raises DataError for an unknown label."""
        index = {label: i for i, label in enumerate(labels)}
        texts = [str(row["text"]) for row in rows]
        whole = tokenizer(texts, verbose=False)["input_ids"] if texts else []
        examples = []
        for number, (row, ids) in enumerate(zip(rows, whole, strict=True)):
            label = row.get("label")
            if label is not None and label not in index:
                raise DataError(
                    "a label is not in the label set",
                    place=f"{row.get('source', 'row')} row {row.get('row', number)}",
                    got=repr(label),
                    allowed=", ".join(labels),
                    fix=f"did you mean {nearest(str(label), labels)!r}?" if nearest(str(label), labels) else None,
                )
            kept = ids
            if len(ids) > max_length:
                kept = tokenizer(str(row["text"]), truncation=True, max_length=max_length)["input_ids"]
            examples.append(Example(tuple(kept), (index[label],) if label is not None else (), len(ids), number))
        return examples

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids (B, T), attention_mask (B, T), labels (B,)."""
        import torch

        batch = pad(examples, pad_token_id)
        if all(example.labels for example in examples):
            batch["labels"] = torch.tensor([example.labels[0] for example in examples])
        return batch

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each labelled row, in float32."""
        import torch

        rows = (batch["labels"] != IGNORED).nonzero()[:, 0]
        logits = self.logits(model, batch)[rows]
        return torch.nn.functional.cross_entropy(logits.float(), batch["labels"][rows], reduction="none"), rows

    def logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, C)."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, C): every row has one label."""
        return self.logits(model, batch)

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Class probabilities, predictions and losses of every row."""
        import numpy as np
        import torch

        probabilities = np.zeros((len(examples), int(model.config.num_labels)), dtype=np.float64)
        for numbers, batch in batches(examples):
            probabilities[numbers] = torch.softmax(self.logits(model, batch).float(), -1).cpu().numpy()
        gold = np.array([example.labels[0] for example in examples], dtype=np.int64)
        losses = -np.log(np.maximum(probabilities[np.arange(len(gold)), gold], 1e-12))
        return Scores(gold, probabilities.argmax(-1), probabilities, losses, np.ones(len(gold), dtype=np.int64))


KIND: Task = TextClassification()
