"""What tasks with one class for each row have in common, whatever a row is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.tasks import Answer, Batches, Scores, Task, index_of

if TYPE_CHECKING:
    import torch


def class_targets(examples: Sequence[Example]) -> torch.Tensor:
    """The classes of examples (B,), or their shares (B, C) where an example has several."""
    import torch

    labels = [example.labels[0] for example in examples]
    classes = next((len(label) for label in labels if isinstance(label, tuple)), 0)
    if not classes:
        return torch.tensor(labels)
    eye = torch.eye(classes)
    return torch.stack([torch.tensor(label) if isinstance(label, tuple) else eye[label] for label in labels])


class OneClass(Task):
    """Cross-entropy over C classes."""

    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "calibration_error", "loss")
    problem_type = "single_label_classification"
    meaning = "The largest says which of LABELS."
    reading = (
        "chances = np.exp(out - out.max()) / np.exp(out - out.max()).sum()\n"
        'print(f"{labels[chances.argmax()]} ({chances.max():.2f})")'
    )

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

    def target(self, row: Row, labels: Sequence[str], number: int) -> tuple[Any, ...]:
        """What is learned from a row: the number of its class, or (C,) shares; nothing where it has no label.

        Raises:
            DataError: a label is unknown.
        """
        label = row.get("label")
        if isinstance(label, Mapping):
            shares = {index_of(name, labels, row, number): share for name, share in label.items()}
            return (tuple(shares.get(index, 0.0) for index in range(len(labels))),)
        return () if label is None else (index_of(label, labels, row, number),)

    def targets(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every row has one label (B,), or shares of classes (B, C)."""
        import torch

        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        return rows, batch["labels"], rows

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

    def read(self, text: str, logits: torch.Tensor, labels: Sequence[str]) -> Answer:
        """The answer in a row of logits (C,)."""
        probabilities = logits.softmax(-1)
        return Answer(text=text, label=labels[int(probabilities.argmax())], probability=float(probabilities.max()))
