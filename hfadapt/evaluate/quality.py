"""What lies behind the leading metric: paired tests, slices of the test rows, reliability, and the surest errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hfadapt.evaluate.metrics.rows import compare, reliability_bins, subset
from hfadapt.records.evidence import Calibration, FailingExample, PairedTest, ReliabilityBin, Slice
from hfadapt.tasks import Example, Row, Scores

LEAST_SLICE_ROWS = 20
MOST_FAILURES = 20


def paired_tests(base: Scores, adapter: Scores) -> tuple[PairedTest, ...]:
    """Base against adapter on the same rows.

    Hits: exact McNemar test, the binomial test of the rows on which one of the two is right (McNemar 1947). Losses:
    Wilcoxon signed-rank test of the loss per label of each row (Wilcoxon 1945); rows without a difference are left out.
    `better` and `worse` count rows on which the adapter is.
    """
    from scipy import stats

    tests = []
    if adapter.gold is not None and adapter.predictions is not None and base.predictions is not None:
        own, other = adapter.predictions == adapter.gold, base.predictions == adapter.gold
        better, worse = int((own & ~other).sum()), int((other & ~own).sum())
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
        tests.append(PairedTest(metric="hit", test="mcnemar-exact", better=better, worse=worse, p_value=p))
    change = adapter.losses / np.maximum(adapter.tokens, 1) - base.losses / np.maximum(base.tokens, 1)
    better, worse = int((change < 0).sum()), int((change > 0).sum())
    p = float(stats.wilcoxon(change).pvalue) if better + worse else 1.0
    tests.append(PairedTest(metric="loss", test="wilcoxon-signed-rank", better=better, worse=worse, p_value=p))
    return tuple(tests)


def slices(
    metric: str,
    base: Scores,
    adapter: Scores,
    examples: Sequence[Example],
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Slice, ...]:
    """The metric on each class, each third of the lengths and each source that has at least 20 rows.

    Args:
        metric: One that reads Scores.
        examples: (N,) test rows as encoded; `length` is in tokens.
        names: Names of the classes.
    """
    found = []
    for by, name, inside in _groups(adapter, examples, rows, names):
        if len(inside) < LEAST_SLICE_ROWS:
            continue
        part = compare(
            metric,
            subset(base, inside),
            subset(adapter, inside),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
        shared = part.model_dump(include={"rows", "base", "adapter", "delta", "low", "high"})
        found.append(Slice(by=by, name=name, metric=metric, **shared))
    return tuple(found)


def _groups(
    adapter: Scores, examples: Sequence[Example], rows: Sequence[Row], names: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kind, name and row numbers of every slice; a kind that would not divide the rows is left out."""
    if adapter.gold is not None and len(np.unique(adapter.gold)) > 1:
        for index, name in enumerate(names):
            yield "class", name, np.flatnonzero(adapter.gold == index)
    lengths = np.array([example.length for example in examples])
    low, high = (int(value) for value in np.quantile(lengths, [1 / 3, 2 / 3], method="lower"))
    if lengths.min() <= low < high < lengths.max():
        yield "length", f"up to {low} tokens", np.flatnonzero(lengths <= low)
        yield "length", f"{low + 1} to {high} tokens", np.flatnonzero((lengths > low) & (lengths <= high))
        yield "length", f"over {high} tokens", np.flatnonzero(lengths > high)
    sources = np.array([str(row["source"]) for row in rows])
    if len(set(sources)) > 1:
        for source in sorted(set(sources)):
            yield "source", source, np.flatnonzero(sources == source)


def calibration(base: Scores, adapter: Scores) -> Calibration | None:
    """Reliability of both; None without probabilities."""
    if adapter.probabilities is None or adapter.gold is None:
        return None

    def bins(scores: Scores) -> tuple[ReliabilityBin, ...]:
        if scores.probabilities is None:
            return ()
        return tuple(
            ReliabilityBin(rows=rows, confidence=sure, accuracy=hit) for rows, sure, hit in reliability_bins(scores)
        )

    return Calibration(base=bins(base), adapter=bins(adapter))


def failures(base: Scores, adapter: Scores, names: Sequence[str]) -> tuple[FailingExample, ...]:
    """Rows on which the adapter is wrong, those it is surest about first; at most 20."""
    if adapter.gold is None or adapter.predictions is None or adapter.probabilities is None:
        return ()
    sure = adapter.probabilities.max(-1)
    wrong = np.flatnonzero(adapter.predictions != adapter.gold)
    order = sorted(wrong, key=lambda row: (-sure[row], row))[:MOST_FAILURES]
    chosen = base.predictions
    return tuple(
        FailingExample(
            split_row=int(row),
            gold=names[adapter.gold[row]],
            adapter=names[adapter.predictions[row]],
            base=names[chosen[row]] if chosen is not None else "",
            confidence=float(sure[row]),
        )
        for row in order
    )


def confusion(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows by right class and chosen class."""
    if scores.gold is None or scores.predictions is None:
        return {}
    table = {name: dict.fromkeys(names, 0) for name in names}
    for gold, chosen in zip(scores.gold, scores.predictions, strict=True):
        table[names[gold]][names[chosen]] += 1
    return table


def per_class(base: Scores, adapter: Scores, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rows of each class; recall of baseline and adapter (`base`, `adapter`), precision and F1 of the adapter."""
    if adapter.gold is None or adapter.predictions is None or base.predictions is None:
        return {}
    table = {}
    for index, name in enumerate(names):
        own, chosen = adapter.gold == index, adapter.predictions == index
        if own.any():
            hits = float((own & chosen).sum())
            table[name] = {
                "rows": float(own.sum()),
                "base": float((base.predictions[own] == index).mean()),
                "adapter": hits / float(own.sum()),
                "adapter_precision": hits / float(chosen.sum()) if chosen.any() else 0.0,
                "adapter_f1": 2 * hits / float(own.sum() + chosen.sum()),
            }
    return table
