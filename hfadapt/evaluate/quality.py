"""What lies behind the leading metric: paired tests, slices of the test rows, reliability, and the surest errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from typing_extensions import Unpack

from hfadapt.data.rows import GROUP
from hfadapt.evaluate.metrics.rows import CHOSEN, Sampling, compare, decisions, reliability_bins, subset
from hfadapt.modalities import Example, Row
from hfadapt.records.evidence import Calibration, FailingExample, PairedTest, ReliabilityBin, Slice
from hfadapt.schemas import LabelKind
from hfadapt.tasks import Scores, ragged

LEAST_SLICE_ROWS = 20
MOST_FAILURES = 20
SIDES = ("better", "worse")


def paired_tests(base: Scores, adapter: Scores) -> tuple[PairedTest, ...]:
    """Base against adapter on the same rows.

    Hits: exact McNemar test, the binomial test of the rows on which one of the two is right (McNemar 1947). Losses:
    Wilcoxon signed-rank test of the loss per label of each row (Wilcoxon 1945); rows without a difference are left out.
    `better` and `worse` count rows on which the adapter is.
    """
    from scipy import stats

    tests = []
    own, other = hits(adapter), hits(base)
    if own is not None and other is not None:
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
    facts: Mapping[str, str] = {},
    **how: Unpack[Sampling],
) -> tuple[Slice, ...]:
    """The metric on each class, third of the lengths or other measures, and source that has at least 20 rows.

    Args:
        metric: One that reads Scores.
        examples: (N,) test rows as encoded; `length` is in tokens.
        names: Names of the classes.
        facts: Measures of the rows with their units, which files have in place of a length.
    """
    found = []
    parts = _of_facts(rows, facts) if facts else _of_lengths(examples)
    for by, name, inside in chain(_of_classes(adapter, names), parts, _of_columns(rows, bool(facts))):
        if len(inside) < LEAST_SLICE_ROWS:
            continue
        part = compare(metric, subset(base, inside), subset(adapter, inside), **how)
        shared = part.model_dump(include={"rows", "base", "adapter", "delta", "low", "high"})
        found.append(Slice(by=by, name=name, metric=metric, **shared))
    return tuple(found)


Parts = Iterator[tuple[str, str, np.ndarray]]
"""Kind, name and row numbers of slices; a kind that would not divide the rows is left out."""


def _of_classes(adapter: Scores, names: Sequence[str]) -> Parts:
    having = [(name, has_class(adapter, index)) for index, name in enumerate(names)] if adapter.kind in CHOSEN else []
    present = [(name, own) for name, own in having if own is not None and not own.all()]
    if sum(bool(own.any()) for _, own in present) > 1:
        for name, own in present:
            yield "class", name, np.flatnonzero(own)


def _of_lengths(examples: Sequence[Example]) -> Parts:
    lengths = np.array([example.length for example in examples])
    low, high = (int(value) for value in np.quantile(lengths, [1 / 3, 2 / 3], method="lower"))
    if lengths.min() <= low < high < lengths.max():
        yield "length", f"up to {low} tokens", np.flatnonzero(lengths <= low)
        yield "length", f"{low + 1} to {high} tokens", np.flatnonzero((lengths > low) & (lengths <= high))
        yield "length", f"over {high} tokens", np.flatnonzero(lengths > high)


def _of_facts(rows: Sequence[Row], facts: Mapping[str, str]) -> Parts:
    """Thirds by each measure; of measures that divide the rows alike, as of squares their sides do, the first."""
    known: list[np.ndarray] = []
    for fact, unit in facts.items():
        values = np.array([row[fact] for row in rows], dtype=np.float64)
        low, high = np.quantile(values, [1 / 3, 2 / 3], method="lower")
        third = (values > low).astype(int) + (values > high)
        if not values.min() <= low < high < values.max() or any(np.array_equal(third, other) for other in known):
            continue
        known.append(third)
        names = (
            f"up to {_plain(low)} {unit}",
            f"{_plain(low)} to {_plain(high)} {unit}",
            f"over {_plain(high)} {unit}",
        )
        for number, name in enumerate(names):
            yield fact, name, np.flatnonzero(third == number)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.2g}"


def _of_columns(rows: Sequence[Row], grouped: bool) -> Parts:
    for column in ("source", GROUP) if grouped else ("source",):
        values = np.array([str(row.get(column) or "") for row in rows])
        if len(set(values)) > 1:
            for value in sorted(set(values) - {""}):
                yield column, value, np.flatnonzero(values == value)


def calibration(base: Scores, adapter: Scores) -> Calibration | None:
    """Reliability of both; None without probabilities."""
    if adapter.probabilities is None or adapter.gold is None or adapter.kind not in CHOSEN:
        return None

    def bins(scores: Scores) -> tuple[ReliabilityBin, ...]:
        if scores.probabilities is None or scores.gold is None:
            return ()
        return tuple(
            ReliabilityBin(rows=rows, confidence=sure, accuracy=hit) for rows, sure, hit in reliability_bins(scores)
        )

    return Calibration(base=bins(base), adapter=bins(adapter))


def hits(scores: Scores) -> np.ndarray | None:
    """(N,) whether all that was chosen for a row is right; None where nothing is chosen among classes."""
    if scores.gold is None or scores.predictions is None or scores.kind not in CHOSEN:
        return None
    if scores.kind == "class":
        right: np.ndarray = scores.predictions == scores.gold
        return right
    pairs = zip(scores.predictions, scores.gold, strict=True)
    return np.array([bool(np.array_equal(chosen, gold)) for chosen, gold in pairs], dtype=bool)


def has_class(scores: Scores, index: int) -> np.ndarray | None:
    """(N,) whether a class is right for a row, or for one of its tokens."""
    if scores.gold is None:
        return None
    if scores.kind == "tokens":
        return np.array([index in gold for gold in scores.gold], dtype=bool)
    return np.asarray(scores.gold[:, index] == 1 if scores.kind == "classes" else scores.gold == index)


def said(values: np.ndarray, kind: LabelKind, names: Sequence[str]) -> list[Any]:
    """Gold or predictions by name, one a row: a class, a list of them, or a number."""
    if kind == "number":
        return [float(value) for value in values]
    if kind == "classes":
        return [[names[i] for i in np.flatnonzero(row).tolist()] for row in values]
    if kind == "tokens":
        return [[names[i] for i in row] for row in values]
    if kind == "ranks":
        return [[int(rank) for rank in row] for row in values]
    return [names[i] for i in values]


def unsaid(values: Sequence[Any], kind: LabelKind, names: Sequence[str]) -> np.ndarray:
    """What `said` was made of."""
    index = {name: i for i, name in enumerate(names)}
    if kind == "number":
        return np.array(values, dtype=np.float64)
    if kind == "classes":
        return np.array([[int(name in row) for name in names] for row in values])
    if kind == "tokens":
        return ragged([np.array([index[name] for name in row], dtype=np.int64) for row in values])
    if kind == "ranks":
        return ragged([np.array(row, dtype=np.int64) for row in values])
    return np.array([index[name] for name in values])


def sides_said(base: Scores, adapter: Scores) -> dict[str, np.ndarray]:
    """Of both answers of each pair: its log-probability before training in nats, what base and adapter have gained on
    that, and its tokens."""
    columns: dict[str, np.ndarray] = {}
    for place, side in enumerate(SIDES):
        if adapter.sides is None or base.sides is None:
            break
        (logp, before, tokens), (other, _, _) = adapter.sides[:, place].T, base.sides[:, place].T
        parts = {"before": before, "base_gain": other - before, "gain": logp - before, "tokens": tokens}
        columns |= {f"{side}_{name}": values for name, values in parts.items()}
    return columns


def sides_unsaid(table: Mapping[str, Sequence[Any]]) -> np.ndarray | None:
    """`Scores.sides` of the base, of which `sides_said` was made; None where there are none."""
    if f"{SIDES[0]}_before" not in table:
        return None

    def of(side: str) -> np.ndarray:
        before, gain, tokens = (np.array(table[f"{side}_{name}"]) for name in ("before", "base_gain", "tokens"))
        return np.stack([before + gain, before, tokens], axis=-1)

    return np.stack([of(side) for side in SIDES], axis=1)


def confidence(scores: Scores) -> np.ndarray:
    """(N,) probability of what was chosen for a row; of several choices, of the least sure one."""
    rows, sure, _ = decisions(scores)
    found = np.ones(len(scores.losses))
    np.minimum.at(found, rows, sure)
    return found


def failures(base: Scores, adapter: Scores, names: Sequence[str]) -> tuple[FailingExample, ...]:
    """Rows on which the adapter is wrong, those it is surest about first, else those it is farthest off; at most 20."""
    right = hits(adapter)
    if adapter.gold is None or adapter.predictions is None or (right is not None and adapter.probabilities is None):
        return ()
    gold, chosen, other = (
        [""] * len(adapter.losses) if values is None else [*map(in_words, said(values, adapter.kind, names))]
        for values in (adapter.gold, adapter.predictions, base.predictions)
    )
    if right is None:
        wrong = [row for row, pair in enumerate(zip(gold, chosen, strict=True)) if pair[0] != pair[1]]
        sure, off = None, adapter.losses
    else:
        wrong = np.flatnonzero(~right).tolist()
        sure = off = confidence(adapter)
    return tuple(
        FailingExample(
            split_row=row,
            gold=gold[row],
            adapter=chosen[row],
            base=other[row],
            confidence=None if sure is None else float(sure[row]),
        )
        for row in sorted(wrong, key=lambda row: (-off[row], row))[:MOST_FAILURES]
    )


def in_words(value: Any) -> str:
    """What is right or was said of a row, for people: names of classes, a number, or ranks."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, list):
        return str(value)
    ranks = f"{'rank' if len(value) == 1 else 'ranks'} " if value and isinstance(value[0], int) else ""
    return ranks + ", ".join(map(str, value))


def confusion(scores: Scores, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows, or tokens, by right class and chosen class; none where there may be several classes."""
    if scores.gold is None or scores.predictions is None or scores.kind not in ("class", "tokens"):
        return {}
    table = {name: dict.fromkeys(names, 0) for name in names}
    for gold, chosen in zip(_flat(scores.gold, scores.kind), _flat(scores.predictions, scores.kind), strict=True):
        table[names[gold]][names[chosen]] += 1
    return table


def per_class(base: Scores, adapter: Scores, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rows (or tokens) of each class; recall of baseline and adapter (`base`, `adapter`), precision and F1 of the
    adapter."""
    if adapter.gold is None or adapter.predictions is None or base.predictions is None or adapter.kind not in CHOSEN:
        return {}
    kind = adapter.kind
    gold, own, other = (_flat(values, kind) for values in (adapter.gold, adapter.predictions, base.predictions))

    def of(values: np.ndarray, index: int) -> np.ndarray:
        return np.asarray(values[:, index] == 1 if kind == "classes" else values == index)

    table = {}
    for index, name in enumerate(names):
        present, chosen = of(gold, index), of(own, index)
        if present.any():
            found = float((present & chosen).sum())
            table[name] = {
                "rows": float(present.sum()),
                "base": float(of(other, index)[present].mean()),
                "adapter": found / float(present.sum()),
                "adapter_precision": found / float(chosen.sum()) if chosen.any() else 0.0,
                "adapter_f1": 2 * found / float(present.sum() + chosen.sum()),
            }
    return table


def _flat(values: np.ndarray, kind: LabelKind) -> np.ndarray:
    """Of tokens, those of all rows one after the other."""
    return np.concatenate(list(values)) if kind == "tokens" and len(values) else values
