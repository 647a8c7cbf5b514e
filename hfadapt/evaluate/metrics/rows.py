"""Metrics as sums over rows, so that a bootstrap is one matrix product.

Every metric says what each row contributes (`statistics`, shape (N, K)) and how its value follows from the summed
contributions (`value`, shape (..., K) → (...)). Resampling rows is then a product of a (resamples, N) count matrix with
the statistics (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from typing_extensions import Unpack

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.evaluate.metrics import text
from hfadapt.evaluate.metrics.text import Texts
from hfadapt.records.stages import Metric
from hfadapt.schemas import LabelKind
from hfadapt.tasks import RowMetric, Scores, Task

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock, Recipe

BINS = 10
CHUNK_CELLS = 20_000_000
ROW_PARTS = ("gold", "predictions", "probabilities", "losses", "tokens", "sides")
"""The parts of Scores that hold something for each row."""
Side = tuple[float, Callable[[np.ndarray], np.ndarray]]
"""A metric of base or adapter: its value, and its values (S,) where rows count as (S, N) weights say."""


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


def decisions(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every choice of a class that was made: its row, the probability of what was chosen, whether it is right; (M,).

    One a row, one a token, or, where a row may have several classes, one a row and class.
    """
    assert scores.probabilities is not None
    gold, predictions = _classes(scores)
    if scores.kind == "tokens":
        rows = np.repeat(np.arange(len(gold)), [len(each) for each in gold])
        if not len(rows):
            return rows, np.zeros(0), np.zeros(0, dtype=bool)
        sure = np.concatenate([each.max(-1) for each in scores.probabilities])
        return rows, sure, np.concatenate(list(gold)) == np.concatenate(list(predictions))
    if scores.kind == "classes":
        rows = np.repeat(np.arange(len(gold)), gold.shape[1])
        sure = np.maximum(scores.probabilities, 1 - scores.probabilities).ravel()
        return rows, sure, (gold == predictions).ravel()
    return np.arange(len(gold)), scores.probabilities.max(-1), gold == predictions


def _bins(scores: Scores) -> np.ndarray:
    """Of each row, per bin of confidence: decisions, their confidence, hits."""
    rows, confidence, hit = decisions(scores)
    sums = np.zeros((len(scores.losses), 3 * BINS))
    own = np.minimum((confidence * BINS).astype(int), BINS - 1)
    for part, values in enumerate((np.ones(len(rows)), confidence, hit.astype(np.float64))):
        np.add.at(sums, (rows, part * BINS + own), values)
    return sums


def _calibration_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error over ten equal bins (Guo et al. 2017, arXiv 1706.04599)."""
    count, confidence, hit = np.split(sums, 3, axis=-1)
    return np.abs(confidence - hit).sum(-1) / np.maximum(count.sum(-1), 1e-12)


def _losses(scores: Scores) -> np.ndarray:
    return np.stack([scores.losses, scores.tokens.astype(np.float64)], axis=1)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


SINGLE: frozenset[LabelKind] = frozenset({"class"})
CHOSEN: frozenset[LabelKind] = frozenset({"class", "classes", "tokens"})
METRICS = {
    metric.name: metric
    for metric in (
        RowMetric("accuracy", "share of rows whose class is right", "classes", True, _hits, _ratio, SINGLE, True),
        RowMetric(
            "label_accuracy",
            "share of rows for which a language model finds the right answer the most likely one",
            "classes",
            True,
            _hits,
            _ratio,
            SINGLE,
            True,
            suits=lambda task: task.writes,
        ),
        RowMetric(
            "macro_f1",
            "F1 averaged over the classes that occur",
            "classes",
            True,
            _per_class,
            _macro_f1,
            SINGLE,
            True,
        ),
        RowMetric(
            "calibration_error",
            "expected calibration error over ten equal bins of confidence",
            "probabilities",
            False,
            _bins,
            _calibration_error,
            CHOSEN,
            True,
        ),
        RowMetric("loss", "negative log-likelihood in nats per label", "losses", False, _losses, _ratio),
        RowMetric(
            "perplexity",
            "exp of the loss per label",
            "losses",
            False,
            _losses,
            lambda sums: np.exp(np.minimum(_ratio(sums), 700.0)),
            # Of a loss that is no token's, as of a class, a pair or a number, nobody reads the exponential.
            suits=lambda task: "perplexity" in task.metrics,
        ),
        RowMetric(
            "exact_match",
            "share of texts that are the reference but for white space",
            "texts",
            True,
            text.exact_match,
            _ratio,
        ),
        RowMetric(
            "rouge_l",
            "F-measure of the longest common subsequence of words, averaged over rows, from 0 to 1",
            "texts",
            True,
            text.rouge_l,
            _ratio,
        ),
        RowMetric("chrf", "chrF2 of the corpus, from 0 to 100", "texts", True, text.chrf, text.chrf_value),
        RowMetric("bleu", "BLEU of the corpus, from 0 to 100", "texts", True, text.bleu, text.bleu_value),
    )
}


def find(name: str) -> RowMetric:
    """The metric of that name. Raises RequestError with the nearest one."""
    known = known_metrics()
    if name not in known:
        problem = choice_problem("there is no metric of that name", name, known, place="evaluate.metrics")
        raise RequestError(problem.what, problems=[problem])
    return known[name]


@cache
def known_metrics() -> dict[str, RowMetric]:
    """All metrics by name: those of every task, and those that a task brings."""
    own = {metric.name: metric for name in registry.names("tasks") for metric in registry.task(name).own_metrics}
    return METRICS | own


def require_possible(recipe: Recipe) -> None:
    """Raises RequestError for metrics, and gates on metrics, that no rows of the recipe's task can have."""
    metrics = () if isinstance(recipe.evaluate.metrics, str) else recipe.evaluate.metrics
    task, known = registry.task(recipe.task), known_metrics()
    possible = [name for name, metric in known.items() if _possible(metric, task)]
    asked = {f"evaluate.metrics[{number}]": name for number, name in enumerate(metrics)}
    asked |= {f"evaluate.gates.{name}": name for name in recipe.evaluate.gates}
    problems = [
        choice_problem(f"rows of {task.name} have no such metric", name, possible, at)
        for at, name in asked.items()
        if name in known and name not in possible
    ]
    if problems:
        raise RequestError(problems[0].what, problems=problems)


def _possible(metric: RowMetric, task: Task) -> bool:
    """Whether rows of a task can have the metric."""
    if metric in (*task.own_metrics, *map(known_metrics().get, task.metrics)):
        return True
    if metric.needs == "texts":
        return task.writes
    if not metric.suits(task):
        return False
    schemas = [registry.schema(form) for form in task.schemas]
    # What is written may be the name of a class.
    written = any(each.writes and len(each.fields(True)) > len(each.fields(False)) for each in schemas)
    kinds = {each.label_kind for each in schemas} | ({"class"} if written else set())
    return bool(metric.kinds & kinds) if metric.kinds else metric.name in METRICS


def usable(metric: RowMetric, scores: Scores) -> bool:
    """Whether the scores hold what the metric reads."""
    if metric.needs == "texts":
        return False
    if (metric.kinds and scores.kind not in metric.kinds) or not metric.fits(scores):
        return False
    if metric.needs == "losses":
        return True
    return scores.predictions is not None and (metric.needs == "classes" or scores.probabilities is not None)


def leading(names: Sequence[str], scores: Scores) -> RowMetric:
    """The first of the named metrics that the scores can give, else the loss."""
    known = known_metrics()
    return next((known[name] for name in names if name in known and usable(known[name], scores)), known["loss"])


def points_lost(metric: RowMetric, change: float, base: float) -> float:
    """By how many points a metric gets worse with a change: hundredths of a share, else percent of the base's."""
    loss = -change if metric.higher_is_better else change
    # Nothing lost is no negative zero.
    return (loss * 100 if metric.unit_range else loss * 100 / max(abs(base), 1e-12)) + 0.0


def points_allowed(metric: RowMetric, limit: float, rows: int) -> float:
    """The points that may be lost of so many rows: a share of few cannot change by less than one of them."""
    return max(limit, 100 / rows) if metric.unit_range else limit


class Sampling(TypedDict):
    """How an interval is made: bootstrap samples, coverage such as 0.95, seed."""

    resamples: int
    confidence: float
    seed: int


def sampling(lock: Lock) -> Sampling:
    """How every interval of a cell is made."""
    return {"resamples": lock.evaluate.resamples, "confidence": lock.evaluate.confidence, "seed": lock.data.seed}


def subset(scores: Scores, rows: Sequence[int] | np.ndarray) -> Scores:
    """The scores of some of the rows."""
    parts = {
        name: value[np.asarray(rows, dtype=np.int64)]
        for name in ROW_PARTS
        if (value := getattr(scores, name)) is not None
    }
    return replace(scores, **parts)


def reliability_bins(scores: Scores) -> list[tuple[int, float, float]]:
    """Rows, mean confidence and share of hits of each of the ten bins of confidence that holds rows."""
    count, confidence, hit = np.split(_bins(scores).sum(0), 3)
    return [
        (int(rows), float(sure / rows), float(right / rows))
        for rows, sure, right in zip(count, confidence, hit, strict=True)
        if rows
    ]


def compare(name: str, base: Scores | Texts | None, adapter: Scores | Texts, **how: Unpack[Sampling]) -> Metric:
    """One metric of base and adapter on the same rows, with percentile intervals of a paired bootstrap.

    Args:
        how: Of the bootstrap; row i is drawn for base and adapter alike.
    """
    metric = find(name)
    if metric.weighted is None:
        other = None if base is None else metric.statistics(base)
        return bootstrap(metric, other, metric.statistics(adapter), **how)
    weigh, rows = metric.weighted, len(adapter.losses)  # type: ignore[union-attr]

    def side(scores: Any) -> Side:
        return float(weigh(scores, np.ones((1, rows)))[0]), lambda weights: weigh(scores, weights)

    return _resampled(metric, rows, None if base is None else side(base), side(adapter), how)


def _draws(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn in each bootstrap sample, (samples, rows), some samples at a time."""
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // max(rows, 1))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        yield generator.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)


def bootstrap(metric: RowMetric, other: np.ndarray | None, own: np.ndarray, **how: Unpack[Sampling]) -> Metric:
    """`compare` from what each row contributes: (N, K) of the base, if there is one, and of the adapter."""

    def side(table: np.ndarray) -> Side:
        return float(metric.value(table.sum(0))), lambda weights: metric.value(weights @ table)

    return _resampled(metric, len(own), None if other is None else side(other), side(own), how)


def _resampled(metric: RowMetric, rows: int, base: Side | None, adapter: Side, how: Sampling) -> Metric:
    other: list[np.ndarray] = []
    own: list[np.ndarray] = []
    for weights in _draws(rows, how["resamples"], how["seed"]):
        own.append(adapter[1](weights))
        if base is not None:
            other.append(base[1](weights))
    return summarise(
        metric.name,
        metric.higher_is_better,
        rows,
        None if base is None else base[0],
        adapter[0],
        np.concatenate(other) if other else None,
        np.concatenate(own),
        how["confidence"],
    )


def percentiles(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval of bootstrap samples (S,) with this coverage."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def summarise(  # noqa: PLR0913 - values and samples of both sides
    name: str,
    higher_is_better: bool,
    rows: int,
    base: float | None,
    adapter: float,
    base_samples: np.ndarray | None,
    adapter_samples: np.ndarray | None,
    confidence: float,
) -> Metric:
    """A metric with percentile intervals of its bootstrap samples; sample i of both is of the same drawn rows."""

    def interval(samples: np.ndarray | None) -> tuple[float | None, float | None]:
        return (None, None) if samples is None else percentiles(samples, confidence)

    paired = None if base_samples is None or adapter_samples is None else adapter_samples - base_samples
    (low, high), (base_low, base_high) = interval(paired), interval(base_samples)
    adapter_low, adapter_high = interval(adapter_samples)
    return Metric(
        name=name,
        base=base,
        adapter=adapter,
        delta=None if base is None else adapter - base,
        low=low,
        high=high,
        rows=rows,
        higher_is_better=higher_is_better,
        base_low=base_low,
        base_high=base_high,
        adapter_low=adapter_low,
        adapter_high=adapter_high,
    )
