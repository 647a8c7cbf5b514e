"""Metrics as sums over rows, so that a bootstrap is one matrix product.

Every metric says what each row contributes (`statistics`, shape (N, K)) and how its value follows from the summed
contributions (`value`, shape (..., K) → (...)). Resampling rows is then a product of a (resamples, N) count matrix with
the statistics (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hfadapt.errors import RequestError, choice_problem
from hfadapt.records import Metric
from hfadapt.tasks import Scores

BINS = 10
CHUNK_CELLS = 20_000_000


@dataclass(frozen=True)
class RowMetric:
    """A metric of N rows.

    Args:
        needs: Parts of Scores it reads: `classes`, `probabilities` or `losses`.
        higher_is_better: Direction of improvement.
    """

    name: str
    needs: str
    higher_is_better: bool
    statistics: Callable[[Scores], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def _classes(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    assert scores.gold is not None
    assert scores.predictions is not None
    return scores.gold, scores.predictions


def _hits(scores: Scores) -> np.ndarray:
    gold, predictions = _classes(scores)
    return np.stack([gold == predictions, np.ones(len(gold))], axis=1).astype(np.float64)


def _per_class(scores: Scores) -> np.ndarray:
    """For each class: hit, predicted, present."""
    gold, predictions = _classes(scores)
    count = (
        scores.probabilities.shape[1]
        if scores.probabilities is not None
        else int(max(gold.max(), predictions.max())) + 1
    )
    columns = []
    for label in range(count):
        columns += [(gold == label) & (predictions == label), predictions == label, gold == label]
    return np.stack(columns, axis=1).astype(np.float64)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean of 2·hit / (predicted + present) over the classes that occur (as gold or as prediction)."""
    hit, predicted, present = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    occurs = (predicted + present) > 0
    f1 = np.where(occurs, 2 * hit / np.maximum(predicted + present, 1e-12), 0.0)
    return f1.sum(-1) / np.maximum(occurs.sum(-1), 1)


def _bins(scores: Scores) -> np.ndarray:
    """Per bin of confidence: count·(1), confidence, hit."""
    assert scores.probabilities is not None
    gold, predictions = _classes(scores)
    confidence = scores.probabilities.max(-1)
    own = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = np.eye(BINS)[own]
    hit = (gold == predictions).astype(np.float64)
    return np.concatenate([inside, inside * confidence[:, None], inside * hit[:, None]], axis=1)


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error over ten equal bins (Guo et al. 2017, arXiv 1706.04599)."""
    count, confidence, hit = np.split(sums, 3, axis=-1)
    return np.abs(confidence - hit).sum(-1) / np.maximum(count.sum(-1), 1e-12)


def _losses(scores: Scores) -> np.ndarray:
    return np.stack([scores.losses, scores.tokens.astype(np.float64)], axis=1)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


METRICS = {
    metric.name: metric
    for metric in (
        RowMetric("accuracy", "classes", True, _hits, _ratio),
        RowMetric("label_accuracy", "classes", True, _hits, _ratio),
        RowMetric("macro_f1", "classes", True, _per_class, _macro_f1),
        RowMetric("calibration_error", "probabilities", False, _bins, _calibration_error),
        RowMetric("loss", "losses", False, _losses, _ratio),
        RowMetric("perplexity", "losses", False, _losses, lambda sums: np.exp(np.minimum(_ratio(sums), 700.0))),
    )
}


def find(name: str) -> RowMetric:
    """The metric of that name. Raises RequestError with the nearest one."""
    if name not in METRICS:
        problem = choice_problem("there is no metric of that name", name, METRICS, place="evaluate.metrics")
        raise RequestError(problem.what, problems=[problem])
    return METRICS[name]


def usable(metric: RowMetric, scores: Scores) -> bool:
    """Whether the scores hold what the metric reads."""
    if metric.needs == "losses":
        return True
    return scores.predictions is not None and (metric.needs == "classes" or scores.probabilities is not None)


def compare(name: str, base: Scores | None, adapter: Scores, *, resamples: int, confidence: float, seed: int) -> Metric:
    """One metric of base and adapter on the same rows, with percentile intervals of a paired bootstrap.

    Args:
        resamples: Number of bootstrap samples; row i is drawn for base and adapter alike.
        confidence: Coverage of the intervals, such as 0.95.
    """
    metric = find(name)
    own = metric.statistics(adapter)
    other = metric.statistics(base) if base is not None else None
    rows = len(own)
    generator = np.random.default_rng(seed)
    own_values, other_values = [], []
    chunk = max(1, CHUNK_CELLS // max(rows, 1))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)
        own_values.append(metric.value(weights @ own))
        if other is not None:
            other_values.append(metric.value(weights @ other))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    adapter_value = float(metric.value(own.sum(0)))
    adapter_low, adapter_high = (float(v) for v in np.quantile(np.concatenate(own_values), tails))
    if other is None:
        return Metric(
            name=name,
            base=None,
            adapter=adapter_value,
            delta=None,
            low=None,
            high=None,
            rows=rows,
            higher_is_better=metric.higher_is_better,
            adapter_low=adapter_low,
            adapter_high=adapter_high,
        )
    base_value = float(metric.value(other.sum(0)))
    base_samples = np.concatenate(other_values)
    base_low, base_high = (float(v) for v in np.quantile(base_samples, tails))
    low, high = (float(v) for v in np.quantile(np.concatenate(own_values) - base_samples, tails))
    return Metric(
        name=name,
        base=base_value,
        adapter=adapter_value,
        delta=adapter_value - base_value,
        low=low,
        high=high,
        rows=rows,
        higher_is_better=metric.higher_is_better,
        base_low=base_low,
        base_high=base_high,
        adapter_low=adapter_low,
        adapter_high=adapter_high,
    )
