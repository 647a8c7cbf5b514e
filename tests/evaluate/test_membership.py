"""Membership inference: the measures are the textbook's, a leak is told from chance and from a shift of the data."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from tiny import BAD, GOOD, PLAIN

from hfadapt.core import registry
from hfadapt.evaluate.privacy.membership import (
    _wins,
    choice_attacks,
    membership,
    row_text,
    sample,
    token_attacks,
    tpr_at_fpr,
)
from hfadapt.evaluate.privacy.token_scores import TokenScores
from hfadapt.modalities.text import text_example
from hfadapt.tasks import Scores

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


@given(values, values)
def test_auc_is_the_area_under_the_curve(members, others):
    found = _wins(members, others).mean()
    gold = np.repeat([1, 0], [len(members), len(others)])
    assert found == pytest.approx(roc_auc_score(gold, np.concatenate([members, others])))
    assert 0 <= found <= 1
    assert found + _wins(others, members).mean() == pytest.approx(1)


@given(values, values, st.floats(0, 1))
def test_the_true_positive_rate_is_the_best_threshold_within_the_allowance(members, others, allowed):
    best = max(
        [0.0]
        + [
            float((members >= threshold).mean())
            for threshold in members
            if (others >= threshold).mean() <= allowed + 1e-12
        ]
    )
    assert tpr_at_fpr(members, others, allowed) == pytest.approx(best)


def words(count, seed, vocabulary=PLAIN):
    draw = random.Random(seed)
    return [" ".join(draw.choices(vocabulary, k=8)) for _ in range(count)]


def infer(attacks, texts, seed=1):
    return membership(attacks, texts, resamples=400, confidence=0.95, seed=seed)


def noise(count, seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, count)


def test_a_strong_attack_on_like_pools_is_a_leak():
    attacks = {"loss": (noise(150, 1, 1.0), noise(150, 2)), "other": (noise(150, 3), noise(150, 4))}
    found = infer(attacks, (words(150, 1), words(150, 2)))
    assert found.leaks
    assert (found.members, found.non_members) == (150, 150)
    leaking = found.attacks[0]
    assert leaking.auc.low > found.blind.auc.value
    assert leaking.auc.value == pytest.approx(_wins(*attacks["loss"]).mean())
    assert 0 <= leaking.tpr_at_1pct_fpr.low <= leaking.tpr_at_1pct_fpr.value <= leaking.tpr_at_1pct_fpr.high <= 1
    assert found == infer(attacks, (words(150, 1), words(150, 2)))


def test_a_shift_between_the_pools_is_no_leak():
    texts = words(150, 1, [*PLAIN, *GOOD]), words(150, 2, [*PLAIN, *BAD])
    # An attack that sees no more than the words do: it notices the shift, not the membership.
    attacks = {
        "loss": tuple(
            np.array([sum(w in GOOD for w in t.split()) - sum(w in BAD for w in t.split()) for t in side])
            + noise(150, n)
            for n, side in enumerate(texts)
        )
    }
    found = infer(attacks, texts)
    assert found.attacks[0].auc.low > 0.5
    assert found.blind.auc.value > found.attacks[0].auc.low
    assert not found.leaks


def test_the_best_of_several_attacks_by_chance_is_rarely_called_a_leak():
    texts = words(60, 1), words(60, 2)
    alarms = 0
    for seed in range(20):
        attacks = {str(n): (noise(60, (seed, n, 0)), noise(60, (seed, n, 1))) for n in range(6)}
        alarms += membership(attacks, texts, resamples=200, confidence=0.95, seed=seed).leaks
    # In each, one side of an interval that is corrected for six attacks: 2.5 %; uncorrected it would be 14 %.
    assert alarms <= 2


def test_fewer_than_two_rows_are_refused():
    with pytest.raises(ValueError, match="two"):
        infer({"loss": (noise(1, 1), noise(5, 2))}, (words(1, 1), words(5, 2)))


def token_scores(logprobs):
    return TokenScores(np.array(logprobs), np.array(logprobs) / 2, np.array(logprobs) > -0.1)


def test_token_attacks_by_hand():
    rows = [token_scores([-1.0, -2.0, -3.0, -4.0, -5.0]), token_scores([-0.5] * 10)]
    examples = [text_example((1,) * (n + 1), (-100, *range(n)), length=n + 1, row=i) for i, n in enumerate((5, 10))]
    base = [token_scores([-4.0] * 5), token_scores([-1.0] * 10)]
    found = token_attacks(rows, base, examples, lambda ids: "a" * len(ids))
    np.testing.assert_allclose(found["loss"], [-3, -0.5])
    np.testing.assert_allclose(found["loss difference"], [1, 0.5])
    np.testing.assert_allclose(found["Min-20%"], [-5, -0.5])
    np.testing.assert_allclose(found["Min-20%++"], [-2.5, -0.25])
    assert found["zlib ratio"][0] < found["zlib ratio"][1] < 0
    short = token_attacks([token_scores([-1.0])] * 2, [token_scores([-2.0])] * 2, examples, str)
    assert set(short) == {"loss", "loss difference"}


def test_choice_attacks_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    scores = Scores(np.array([0, 1]), np.array([0, 0]), probabilities, np.array([0.3, 0.9]), np.ones(2))
    base = Scores(scores.gold, None, None, np.array([1.3, 1.0]), np.ones(2))
    found = choice_attacks(scores, base)
    np.testing.assert_allclose(found["loss difference"], [1.0, 0.1])
    np.testing.assert_allclose(found["confidence"], [0.7, 0.5])
    np.testing.assert_allclose(found["margin"], [0.5, -0.1])
    assert set(choice_attacks(scores, None)) == {"loss", "confidence", "margin"}


def test_samples_are_seeded_and_texts_leave_labels_out():
    rows = list(range(100))
    assert sample(rows, 10, 1, "a") == sample(rows, 10, 1, "a") != sample(rows, 10, 2, "a")
    assert sample(rows, 10, 1, "a") != sample(rows, 10, 1, "b")
    assert sample(rows, 200, 1, "a") == rows
    assert row_text(registry.schema("labelled"), {"text": "so", "label": "good"}) == "so"
    assert row_text(registry.schema("completion"), {"prompt": "p", "completion": "c", "label": None}) == "p\nc"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert row_text(registry.schema("messages"), {"messages": turns}) == "hi\nho"
