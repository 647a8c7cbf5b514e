"""What tasks with any number of classes for each row have in common, whatever a row is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.tasks import Answer, Batches, RowMetric, Scores, index_of
from hfadapt.tasks._classes import OneClass
from hfadapt.tasks._numbers import mean

if TYPE_CHECKING:
    import numpy as np
    import torch

NONE = "none of them"


class SeveralClasses(OneClass):
    """Binary cross-entropy, of which the loss is the mean over rows and classes.

    A class is chosen where its probability is at least one half.
    """

    label_kind = "classes"
    metrics = ("micro_f1", "macro_f1_of_labels", "average_precision", "subset_accuracy", "calibration_error", "loss")
    problem_type = "multi_label_classification"
    soft_labels = False
    meaning = "Each class of LABELS whose number is above 0 holds, none or several."
    reading = 'print(", ".join(label for label, logit in zip(labels, out) if logit > 0) or "none")'

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed the classes that the evaluation saw."""
        return printed == (", ".join(prediction) or NONE)

    def head_start(self, rows: int, labels: int) -> float:
        """The probe itself: of 24 licenses, nearer to its mean, 0.733 were found in place of 0.784."""
        return 1.0

    def target(self, row: Row, labels: Sequence[str], number: int) -> tuple[Any, ...]:
        """1 for each class that the row has, else 0."""
        if row.get("label") is None:
            return ()
        own = {index_of(name, labels, row, number) for name in row["label"]}
        return tuple(int(index in own) for index in range(len(labels)))

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """The model's inputs, and labels (B, C)."""
        import torch

        batch = super().collate(examples, pad_token_id)
        if "labels" in batch:
            batch["labels"] = torch.tensor([example.labels for example in examples], dtype=torch.float32)
        return batch

    def criterion(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy in nats of each of the C classes of a row: (L, C)."""
        import torch

        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(logits.float(), targets.float(), reduction="none")

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A loss for each class of each row (B·C,), and the row."""
        _, targets, rows = self.targets(batch)
        found = self.criterion(self.label_logits(model, batch), targets)
        return found.flatten(), rows.repeat_interleave(found.shape[1])

    def divergence(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """KL divergence of the C yes-or-no answers of a row, summed."""
        import torch

        p, kl = reference.sigmoid(), torch.zeros_like(reference)
        for sign, share in ((1, p), (-1, 1 - p)):
            log = torch.nn.functional.logsigmoid
            kl += share * (log(sign * reference) - log(sign * other))
        return kl.sum(-1)

    def alike(self, reference: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each yes or no (L, C)."""
        return (reference > 0) == (other > 0), (2 * reference.sigmoid() - 1).abs()

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Probability of every class, the chosen ones, and the summed loss of every row."""
        import numpy as np

        probabilities = np.zeros((len(examples), int(model.config.num_labels)))
        for numbers, batch in batches(examples):
            probabilities[numbers] = self.label_logits(model, batch).float().sigmoid().cpu().numpy()
        gold = np.array([example.labels for example in examples], dtype=np.int64).reshape(probabilities.shape)
        right = np.where(gold == 1, probabilities, 1 - probabilities)
        losses = -np.log(np.maximum(right, 1e-12)).sum(-1)
        tokens = np.full(len(gold), probabilities.shape[1], dtype=np.int64)
        return Scores(gold, (probabilities >= 0.5).astype(np.int64), probabilities, losses, tokens, self.label_kind)

    def read(self, text: str, logits: torch.Tensor, labels: Sequence[str]) -> Answer:
        """The classes that are chosen, and how sure the least sure choice is."""
        probabilities = logits.sigmoid()
        chosen = [label for label, share in zip(labels, probabilities.tolist(), strict=True) if share >= 0.5]
        sure = float((probabilities - 0.5).abs().min()) + 0.5
        return Answer(text=text, label=", ".join(chosen) or NONE, probability=sure)


def _counts(scores: Scores) -> np.ndarray:
    """For each class: hit, chosen, present."""
    import numpy as np

    assert scores.gold is not None
    assert scores.predictions is not None
    parts = [scores.gold * scores.predictions, scores.predictions, scores.gold]
    return np.stack(parts, axis=2).reshape(len(scores.gold), -1).astype(np.float64)


def _f1(sums: np.ndarray, micro: bool) -> np.ndarray:
    import numpy as np

    hit, chosen, present = (sums[..., part::3] for part in range(3))
    if micro:
        hit, chosen, present = (part.sum(-1, keepdims=True) for part in (hit, chosen, present))
    occurs = (chosen + present) > 0
    f1 = np.where(occurs, 2 * hit / np.maximum(chosen + present, 1e-12), 0.0)
    return np.asarray(f1.sum(-1) / np.maximum(occurs.sum(-1), 1))


def _exact(scores: Scores) -> np.ndarray:
    import numpy as np

    assert scores.gold is not None
    right = (scores.gold == scores.predictions).all(-1)
    return np.stack([right, np.ones(len(right))], axis=1).astype(np.float64)


def _average_precision(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of the precision at each of their rows, the likeliest first (S,).

    Args:
        weights: (S, N) how often each row was drawn; rows of equal probability count together.
    """
    import numpy as np

    assert scores.gold is not None
    assert scores.probabilities is not None
    found, occurs = np.zeros(len(weights)), np.zeros(len(weights))
    for gold, sure in zip(scores.gold.T, scores.probabilities.T, strict=True):
        order = np.argsort(-sure, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))
        drawn, hit = weights[:, order].cumsum(-1)[:, ends], (weights * gold)[:, order].cumsum(-1)[:, ends]
        more = np.diff(hit, axis=-1, prepend=0)
        present = hit[:, -1]
        average = (more * hit / np.maximum(drawn, 1e-12)).sum(-1) / np.maximum(present, 1e-12)
        found += np.where(present > 0, average, 0.0)
        occurs += present > 0
    return np.asarray(found / np.maximum(occurs, 1))


def _metric(name: str, about: str, needs: str, statistics: Any, value: Any, weighted: Any = None) -> RowMetric:
    return RowMetric(name, about, needs, True, statistics, value, frozenset({"classes"}), True, weighted=weighted)


SeveralClasses.own_metrics = (
    _metric("micro_f1", "F1 over all choices of a class", "classes", _counts, lambda sums: _f1(sums, True)),
    _metric(
        "macro_f1_of_labels",
        "F1 averaged over the classes that occur, where a row may have several",
        "classes",
        _counts,
        lambda sums: _f1(sums, False),
    ),
    _metric(
        "average_precision",
        "area under precision and recall, averaged over the classes that occur",
        "probabilities",
        _counts,
        lambda sums: sums[..., 0],
        _average_precision,
    ),
    _metric("subset_accuracy", "share of rows whose classes are all right", "classes", _exact, mean),
)
