"""Metrics equal scikit-learn and plain references; the bootstrap covers what it says and is paired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from hfadapt.core.errors import RequestError
from hfadapt.evaluate.metrics.rows import METRICS, compare, find, usable
from hfadapt.recipe.names import METRICS as NAMED
from hfadapt.tasks import Scores

ON_SCORES = [name for name in METRICS if METRICS[name].needs != "texts"]


def made(gold, predictions, classes=3, confidence=0.8):
    gold, predictions = np.array(gold), np.array(predictions)
    probabilities = np.full((len(gold), classes), (1 - confidence) / (classes - 1))
    probabilities[np.arange(len(gold)), predictions] = confidence
    losses = -np.log(probabilities[np.arange(len(gold)), gold])
    return Scores(gold, predictions, probabilities, losses, np.ones(len(gold), dtype=np.int64))


def drawn(rows, seed, classes=3, right=0.7):
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, classes, rows)
    predictions = np.where(draw.random(rows) < right, gold, draw.integers(0, classes, rows))
    logits = draw.normal(size=(rows, classes))
    logits[np.arange(rows), predictions] = logits.max(-1) + draw.random(rows)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(probabilities[np.arange(rows), gold])
    return Scores(gold, predictions, probabilities, losses, np.ones(rows, dtype=np.int64))


def value(name, scores):
    metric = METRICS[name]
    return float(metric.value(metric.statistics(scores).sum(0)))


pairs_of_labels = st.integers(2, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=60),
    )
)


@settings(max_examples=150, deadline=None)
@given(pairs_of_labels)
def test_accuracy_and_macro_f1_equal_scikit_learn(case):
    classes, rows = case
    gold, predictions = zip(*rows, strict=True)
    scores = made(gold, predictions, classes)
    assert value("accuracy", scores) == pytest.approx(accuracy_score(gold, predictions))
    assert value("label_accuracy", scores) == value("accuracy", scores)
    assert value("macro_f1", scores) == pytest.approx(f1_score(gold, predictions, average="macro", zero_division=0))


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_its_definition(seed):
    scores = drawn(500, seed)
    confidence, hit = scores.probabilities.max(-1), scores.gold == scores.predictions
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence >= low) & (confidence < low + 0.1 + (low > 0.85))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - hit[inside].mean())
    assert value("calibration_error", scores) == pytest.approx(expected)


def test_a_certain_and_right_model_is_calibrated():
    sure = made([0, 1, 2], [0, 1, 2], confidence=1.0 - 1e-12)
    assert value("calibration_error", sure) == pytest.approx(0.0, abs=1e-9)
    wrong = made([1, 2, 0], [0, 1, 2], confidence=1.0 - 1e-12)
    assert value("calibration_error", wrong) == pytest.approx(1.0)


def test_loss_and_perplexity_are_per_label_not_per_row():
    scores = Scores(None, None, None, np.array([2.0, 12.0]), np.array([1, 6]))
    assert value("loss", scores) == pytest.approx(2.0)
    assert value("perplexity", scores) == pytest.approx(np.exp(2.0))
    huge = Scores(None, None, None, np.array([1e6]), np.array([1]))
    assert np.isfinite(value("perplexity", huge))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 80))
def test_the_order_of_rows_does_not_matter(seed, rows):
    scores = drawn(rows, seed)
    order = np.random.default_rng(seed).permutation(rows)
    turned = Scores(
        *(part[order] for part in (scores.gold, scores.predictions, scores.probabilities, scores.losses, scores.tokens))
    )
    for name in ON_SCORES:
        assert value(name, turned) == pytest.approx(value(name, scores))


# --- the bootstrap ---------------------------------------------------------------------------------------------------


def test_the_same_scores_have_no_difference():
    scores = drawn(100, 1)
    for name in ON_SCORES:
        metric = compare(name, scores, scores, resamples=200, confidence=0.95, seed=3)
        assert (metric.delta, metric.low, metric.high) == (0.0, 0.0, 0.0)
        assert metric.base == metric.adapter


def test_rows_are_drawn_in_pairs():
    """An adapter that is better on ten rows and equal elsewhere: the interval is far narrower than unpaired."""
    base = drawn(200, 5, right=0.5)
    better = base.predictions.copy()
    better[np.flatnonzero(base.predictions != base.gold)[:10]] = base.gold[
        np.flatnonzero(base.predictions != base.gold)[:10]
    ]
    adapter = Scores(base.gold, better, base.probabilities, base.losses, base.tokens)
    metric = compare("accuracy", base, adapter, resamples=2000, confidence=0.95, seed=3)
    assert metric.delta == pytest.approx(0.05)
    assert 0 < metric.low < 0.05 < metric.high < 0.1
    unpaired = np.sqrt((metric.base_high - metric.base_low) ** 2 + (metric.adapter_high - metric.adapter_low) ** 2)
    assert metric.high - metric.low < 0.5 * unpaired


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    scores = drawn(400, 2, right=0.7)
    metric = compare("accuracy", None, scores, resamples=4000, confidence=0.95, seed=1)
    spread = 1.96 * np.sqrt(metric.adapter * (1 - metric.adapter) / 400)
    assert metric.adapter_low == pytest.approx(metric.adapter - spread, abs=0.01)
    assert metric.adapter_high == pytest.approx(metric.adapter + spread, abs=0.01)
    assert (metric.base, metric.delta, metric.low, metric.high) == (None, None, None, None)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Two models of known accuracy on 120 rows, 150 times: a 90 % interval misses about 15 times."""
    covered = 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        gold = np.zeros(120, dtype=int)
        base = made(gold, (draw.random(120) > 0.6).astype(int), 2)
        adapter = made(gold, (draw.random(120) > 0.75).astype(int), 2)
        metric = compare("accuracy", base, adapter, resamples=400, confidence=0.9, seed=seed)
        covered += metric.low <= 0.15 <= metric.high
    assert 0.82 <= covered / 150 <= 0.97


def test_it_is_reproducible_and_depends_on_the_seed():
    base, adapter = drawn(60, 1), drawn(60, 2)
    adapter = Scores(base.gold, adapter.predictions, adapter.probabilities, adapter.losses, adapter.tokens)
    first, again, other = (
        compare("macro_f1", base, adapter, resamples=300, confidence=0.95, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_large_sets_are_resampled_in_parts(monkeypatch):
    base, adapter = drawn(50, 1), drawn(50, 1, right=0.9)
    whole = compare("accuracy", base, adapter, resamples=500, confidence=0.95, seed=1)
    monkeypatch.setattr("hfadapt.evaluate.metrics.rows.CHUNK_CELLS", 700)
    assert compare("accuracy", base, adapter, resamples=500, confidence=0.95, seed=1) == whole


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(RequestError, match="no metric of that name") as caught:
        find("acuracy")
    assert "did you mean 'accuracy'?" in str(caught.value)


def test_metrics_that_need_classes_are_left_out_without_them():
    losses_only = Scores(None, None, None, np.ones(3), np.ones(3))
    assert [name for name in METRICS if usable(METRICS[name], losses_only)] == ["loss", "perplexity"]
    assert [name for name in METRICS if usable(METRICS[name], drawn(5, 1))] == ON_SCORES


def test_a_recipe_can_name_every_metric_and_no_other():
    assert tuple(METRICS) == NAMED
