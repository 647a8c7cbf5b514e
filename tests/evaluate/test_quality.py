"""Paired tests against exact probabilities, slices, reliability and the surest errors."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from hfadapt.evaluate.quality import calibration, confusion, failures, paired_tests, per_class, slices
from hfadapt.modalities.text import text_example
from hfadapt.tasks import Scores
from hfadapt.tasks.embedding.search import rank_scores

NAMES = ("bad", "good")


def made(gold, predictions, confidence=None, losses=None):
    gold, predictions = np.array(gold), np.array(predictions)
    sure = np.full(len(gold), 0.8) if confidence is None else np.array(confidence)
    table = np.stack([1 - sure, 1 - sure], axis=1)
    table[np.arange(len(gold)), predictions] = sure
    own = -np.log(table[np.arange(len(gold)), gold]) if losses is None else np.array(losses)
    return Scores(gold, predictions, table, own, np.ones(len(gold), dtype=np.int64))


def by_name(tests):
    return {test.test: test for test in tests}


def test_mcnemar_is_the_binomial_test_of_discordant_rows():
    gold = np.zeros(20, dtype=int)
    base = np.array([1] * 9 + [0] * 11)
    adapter = np.array([0] * 8 + [1] * 3 + [0] * 9)
    found = by_name(paired_tests(made(gold, base), made(gold, adapter)))["mcnemar-exact"]
    assert (found.better, found.worse) == (8, 2)
    assert found.p_value == pytest.approx(2 * sum(comb(10, k) for k in range(3)) / 2**10)


def test_wilcoxon_of_few_rows_is_exact():
    """Five rows, all better, no ties: two-sided p = 2 / 2^5."""
    losses = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    base = Scores(None, None, None, losses, np.ones(5))
    adapter = Scores(None, None, None, losses - np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.ones(5))
    (found,) = paired_tests(base, adapter)
    assert (found.metric, found.better, found.worse) == ("loss", 5, 0)
    assert found.p_value == pytest.approx(2 / 32)


def test_losses_are_compared_per_label():
    base = Scores(None, None, None, np.array([4.0, 6.0]), np.array([2, 3]))
    adapter = Scores(None, None, None, np.array([2.0, 9.0]), np.array([1, 3]))
    (found,) = paired_tests(base, adapter)
    assert (found.better, found.worse) == (0, 1), "the first row's loss per label is the same"


def test_equal_models_have_p_one():
    scores = made([0, 1], [0, 0])
    assert [test.p_value for test in paired_tests(scores, scores)] == [1.0, 1.0]


def sliced(rows=90, sources=("a",)):
    draw = np.random.default_rng(0)
    gold = np.array([0] * (rows - 15) + [1] * 15)
    base = made(gold, draw.integers(0, 2, rows))
    adapter = made(gold, gold)
    examples = [text_example((0,) * (i % 30 + 1), (0,), length=i % 30 + 1, row=i) for i in range(rows)]
    found = slices(
        "accuracy",
        base,
        adapter,
        examples,
        [{"source": sources[i % len(sources)]} for i in range(rows)],
        NAMES,
        {},
        resamples=200,
        confidence=0.95,
        seed=1,
    )
    return base, found


def test_slices_are_by_class_length_and_source_and_hold_twenty_rows():
    base, found = sliced(sources=("a", "b"))
    assert [(part.by, part.name) for part in found] == [
        ("class", "bad"),
        ("length", "up to 10 tokens"),
        ("length", "11 to 20 tokens"),
        ("length", "over 20 tokens"),
        ("source", "a"),
        ("source", "b"),
    ], "the class good has 15 rows only"
    lengths = [part for part in found if part.by == "length"]
    assert [part.rows for part in lengths] == [30, 30, 30]
    first = next(part for part in found if part.name == "bad")
    assert first.base == pytest.approx((base.predictions[:75] == 0).mean())
    assert first.low <= first.delta <= first.high
    assert first.adapter == 1.0


def test_files_are_sliced_by_their_measures_and_groups():
    """Thirds of 0 to 89; a measure that divides the rows as an earlier one does, and one without thirds, are none."""
    scores = made([0] * 90, [0] * 45 + [1] * 45)
    rows = [
        {
            "source": "a",
            "width": i,
            "height": 2 * i,
            "bright": i / 89,
            "dark": 1 - i / 89,
            "flat": 1.0,
            "group": "xy"[i > 44],
        }
        for i in range(90)
    ]
    examples = [text_example((0,), (0,), length=i + 1, row=i) for i in range(90)]
    facts = {"width": "pixels", "height": "pixels", "bright": "of 1", "dark": "of 1", "flat": "of 1"}
    found = slices("accuracy", scores, scores, examples, rows, NAMES, facts, resamples=200, confidence=0.95, seed=1)
    assert [(part.by, part.name, part.rows, part.adapter) for part in found] == [
        ("width", "up to 29 pixels", 30, 1.0),
        ("width", "29 to 59 pixels", 30, 0.5),
        ("width", "over 59 pixels", 30, 0.0),
        ("dark", "up to 0.33 of 1", 30, 0.0),
        ("dark", "0.33 to 0.66 of 1", 30, 0.5),
        ("dark", "over 0.66 of 1", 30, 1.0),
        ("group", "x", 45, 1.0),
        ("group", "y", 45, 0.0),
    ]
    assert not slices(
        "accuracy", scores, scores, examples[:1] * 90, rows, NAMES, resamples=200, confidence=0.95, seed=1
    )


def test_one_source_is_no_slice():
    assert "source" not in {part.by for part in sliced()[1]}


def test_reliability_counts_every_row_once():
    base = made([0, 1, 1, 0], [0, 1, 0, 0], [0.55, 0.95, 0.95, 1.0])
    found = calibration(base, base)
    assert sum(part.rows for part in found.adapter) == 4
    assert [(part.rows, part.accuracy) for part in found.adapter] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert found.adapter[1].confidence == pytest.approx((0.95 + 0.95 + 1) / 3)
    assert calibration(base, Scores(None, None, None, np.ones(4), np.ones(4))) is None


def test_the_surest_errors_come_first():
    gold = [0] * 30
    confidence = [0.5 + i / 100 for i in range(30)]
    adapter = made(gold, [1] * 28 + [0] * 2, confidence)
    found = failures(made(gold, [0] * 30), adapter, NAMES)
    assert [case.split_row for case in found] == list(range(27, 7, -1))
    assert (found[0].gold, found[0].adapter, found[0].base) == ("bad", "good", "bad")
    assert found[0].confidence == pytest.approx(0.77)


def test_of_numbers_and_ranks_the_farthest_off_come_first():
    def numbers(values):
        values, gold = np.array(values), np.array([3.0, 1.0, 2.0])
        return Scores(gold, values, None, (values - gold) ** 2, np.ones(3, dtype=np.int64), "number")

    found = failures(numbers([3.0, 3.0, 3.0]), numbers([3.00001, 1.25, 9.728193283081055]), NAMES)
    assert [(one.split_row, one.gold, one.adapter, one.base, one.confidence) for one in found] == [
        (2, "2", "9.728", "3", None),
        (1, "1", "1.25", "3", None),
    ]

    def ranks(*rows):
        return rank_scores([np.array(row, dtype=np.int64) for row in rows], np.array([float(sum(row)) for row in rows]))

    found = failures(ranks([1], [2], [1, 3], []), ranks([1], [7], [2, 30], []), NAMES)
    assert [(one.split_row, one.gold, one.adapter, one.base) for one in found] == [
        (2, "ranks 1, 2", "ranks 2, 30", "ranks 1, 3"),
        (1, "rank 1", "rank 7", "rank 2"),
    ]


def test_confusion_and_recall_agree():
    base, adapter = made([0, 0, 1], [1, 1, 1]), made([0, 0, 1], [0, 1, 1])
    assert confusion(adapter, NAMES) == {"bad": {"bad": 1, "good": 1}, "good": {"bad": 0, "good": 1}}
    found = per_class(base, adapter, NAMES)["bad"]
    assert (found["rows"], found["base"], found["adapter"]) == (2.0, 0.0, 0.5)
    assert (found["adapter_precision"], found["adapter_f1"]) == (1.0, pytest.approx(2 / 3))
