"""What tasks that answer with one number have in common, whatever a row is made of, and the metrics that are a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.tasks import Answer, Batches, RowMetric, Scores, Task
from hfadapt.tasks._classes import OneClass

if TYPE_CHECKING:
    import numpy as np
    import torch


def mean(sums: np.ndarray) -> np.ndarray:
    """The first of summed contributions (..., 2), divided by the second."""
    import numpy as np

    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


class OneNumber(Task):
    """A head of one output."""

    meaning = "Its one number is the answer."
    reading = 'print(f"{out[0]:.4g}")'
    alike_means = "numbers within a tenth of their spread"
    in_spreads = True

    def outputs(self, labels: Sequence[str]) -> int:
        """One."""
        return 1

    def divergence(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """KL divergence of normal distributions with variance 1 around the two answers: half the squared difference."""
        return 0.5 * (reference - other).square().sum(-1)

    def unit(self, reference: Sequence[torch.Tensor]) -> float:
        """The standard deviation of the reference's answers."""
        import torch

        return max(float(torch.cat(list(reference)).std(correction=0)), 1e-6)

    def alike(self, reference: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Within a tenth of their spread; every number is decided."""
        import torch

        return ((reference - other).abs() <= 0.1).all(-1), torch.ones(len(reference))


class Regression(OneNumber, OneClass):
    """Squared error, in the square of the user's own unit.

    A fresh head starts at the mean of the training rows and with their standard deviation (`start_head`), so that
    numbers between 0 and 100 are learned like numbers between 0 and 1, and what is saved answers in the user's unit.
    """

    label_kind = "number"
    metrics = ("rmse", "mae", "pearson", "spearman", "loss")
    soft_labels = False
    problem_type = "regression"

    def snippet_agrees(self, printed: str, prediction: Any) -> bool:
        """It printed the number that the evaluation saw, to rounding in another batch."""
        try:
            return abs(float(printed) - float(prediction)) <= 0.01 * (1 + abs(float(prediction)))
        except ValueError:
            return False

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """One output, of which transformers takes the squared error too."""
        return {"num_labels": 1, "problem_type": self.problem_type}

    def head_start(self, rows: int, labels: int) -> float:
        """The probe itself: no answer of it is surer than another."""
        return 1.0

    def target(self, row: Row, labels: Sequence[str], number: int) -> tuple[Any, ...]:
        """The number."""
        return () if row.get("label") is None else (float(row["label"]),)

    def criterion(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Squared error (L,) of outputs (L, 1)."""
        return (logits.float().flatten() - targets.float()).square()

    def start_head(self, head: torch.nn.Module, targets: Sequence[float]) -> None:
        """Scales the last linear layer to the standard deviation of the targets, and moves it to their mean."""
        import torch

        last = [module for module in head.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1]
        values = torch.tensor(targets, dtype=torch.float64)
        if not last or len(values) < 2:
            return
        with torch.no_grad():
            last[-1].weight.mul_(max(float(values.std()), 1e-6))
            if last[-1].bias is not None:
                last[-1].bias.fill_(float(values.mean()))

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """The number and the squared error of every row."""
        import numpy as np

        predictions = np.zeros(len(examples))
        for numbers, batch in batches(examples):
            predictions[numbers] = self.label_logits(model, batch).float().flatten().cpu().numpy()
        gold = np.array([example.labels[0] for example in examples])
        ones = np.ones(len(gold), dtype=np.int64)
        return Scores(gold, predictions, None, (predictions - gold) ** 2, ones, self.label_kind)

    def read(self, text: str, logits: torch.Tensor, labels: Sequence[str]) -> Answer:
        """The one output."""
        return Answer(text=text, number=float(logits[0]))


def _error(scores: Scores, power: int) -> np.ndarray:
    import numpy as np

    assert scores.gold is not None
    assert scores.predictions is not None
    return np.stack([np.abs(scores.predictions - scores.gold) ** power, np.ones(len(scores.gold))], axis=1)


def _moments(gold: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    import numpy as np

    x, y = gold - gold.mean(), predictions - predictions.mean()
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's r from the sums of `_moments`; 0 where one side does not vary."""
    import numpy as np

    n, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
    spread = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    return np.asarray(np.where(spread > 1e-12, (n * xy - x * y) / np.maximum(spread, 1e-12), 0.0))


def _pearson(scores: Scores) -> np.ndarray:
    assert scores.gold is not None
    assert scores.predictions is not None
    return _moments(scores.gold, scores.predictions)


def _spearman(scores: Scores) -> np.ndarray:
    from scipy.stats import rankdata

    return _moments(rankdata(scores.gold), rankdata(scores.predictions))


def _metric(name: str, about: str, better: bool, statistics: Any, value: Any, unit_range: bool = False) -> RowMetric:
    return RowMetric(name, about, "classes", better, statistics, value, frozenset({"number"}), unit_range)


_UNIT = "in the unit of the labels"
Regression.own_metrics = (
    *(
        # What learns their order alone answers with numbers of another range.
        replace(each, suits=lambda task: task.label_kind == "number")
        for each in (
            _metric(
                "rmse", f"root mean squared error, {_UNIT}", False, lambda s: _error(s, 2), lambda x: mean(x) ** 0.5
            ),
            _metric("mae", f"mean absolute error, {_UNIT}", False, lambda scores: _error(scores, 1), mean),
        )
    ),
    _metric("pearson", "Pearson's correlation", True, _pearson, _correlation, True),
    _metric("spearman", "Spearman's, the interval of ranks among all rows", True, _spearman, _correlation, True),
)
