"""Exposure: right bits, a threshold whose false alarms are what it says they are."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfadapt.evaluate.privacy.exposure import FALSE_ALARMS, TOP, chance, chance_of_first, chance_of_sum, judge

REFERENCES = 320


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 4, 16]), st.integers(1, REFERENCES + 1)), min_size=1, max_size=40),
)
def test_bits_are_bounded_by_the_number_of_references(canaries):
    repeats, ranks = zip(*canaries, strict=True)
    found = judge(repeats, ranks, REFERENCES)
    most = math.log2(REFERENCES + 1)
    assert 0 < found.threshold_bits <= most
    assert sum(group.canaries for group in found.groups) == len(canaries)
    for group in found.groups:
        assert 0 <= group.exposure_median_bits <= group.exposure_most_bits <= most + 1e-9
        assert 0 <= group.found <= group.canaries
        assert 0 < group.p_value <= 1
        # A canary is found by itself exactly where its bits reach the threshold.
        assert (group.found > 0) == (group.exposure_most_bits >= found.threshold_bits - 1e-9)


def test_first_ranks_are_found_and_any_ranks_are_not():
    repeats = [16, 16, 16, 4, 4, 4, 0, 0, 0]
    assert judge(repeats, [1, 2, 1, 50, 200, 300, 100, 9, 320], REFERENCES).found
    assert not judge(repeats, [80, 140, 30, 50, 200, 300, 100, 9, 320], REFERENCES).found


def test_controls_alone_are_never_a_find():
    assert not judge([0, 0, 0, 1, 1, 1], [1, 1, 1, 50, 60, 70], REFERENCES).found


def test_a_single_canary_can_be_found():
    assert judge([16, 4, 1, 0], [1, 30, 200, 100], REFERENCES).found
    assert not judge([16, 4, 1, 0], [2, 30, 200, 100], REFERENCES).found


def test_many_that_are_rather_likely_are_found_as_a_few_that_are_the_likeliest_are():
    ahead, some = [20, 12, 30, 9], [1, 1, 1, 300, 250, 200, 280, 310, 100, 290]
    assert chance_of_first(0, 4, TOP, REFERENCES) == pytest.approx(1)
    assert chance(ahead, REFERENCES) < 0.001
    assert chance_of_sum(some, REFERENCES) > 0.1
    assert chance(some, REFERENCES) < 0.001


def test_the_chances_are_those_of_a_shuffle():
    draw = np.random.default_rng(1)
    canaries, references, top, times = 5, 30, 3, 20_000
    values = draw.random((times, canaries + references))
    ranks = 1 + (values[:, None, canaries:] >= values[:, :canaries, None]).sum(2)
    first = (ranks <= top).sum(1)
    for found in range(canaries + 1):
        assert chance_of_first(found, canaries, top, references) == pytest.approx((first >= found).mean(), abs=0.012)
    sums = ranks.sum(1)
    for own in ranks[:10]:
        assert chance_of_sum(own, references) == pytest.approx((sums <= own.sum()).mean(), abs=0.012)


@given(st.integers(2, 6), st.data())
def test_the_chances_are_those_of_counting_every_order(references, data):
    ranks = data.draw(st.lists(st.integers(1, references + 1), min_size=1, max_size=4))
    size = len(ranks)
    # Where the canaries stand in a line with the references, and the rank that gives to each.
    orders = [[place - i + 1 for i, place in enumerate(c)] for c in combinations(range(size + references), size)]
    as_small = sum(sum(order) <= sum(ranks) for order in orders)
    assert chance_of_sum(ranks, references) == pytest.approx(as_small / len(orders), rel=1e-12)
    found = sum(rank <= 2 for rank in ranks)
    as_many = sum(sum(rank <= 2 for rank in order) >= found for order in orders)
    assert chance_of_first(found, size, 2, references) == pytest.approx(as_many / len(orders), rel=1e-12)


def test_small_chances_keep_their_digits():
    assert chance_of_first(8, 8, TOP, REFERENCES) == pytest.approx(math.comb(10, 8) / math.comb(328, 8), rel=1e-11)
    assert chance_of_sum([1] * 8, REFERENCES) == pytest.approx(1 / math.comb(328, 8), rel=1e-11)


def test_the_approximation_meets_the_exact_count():
    """With one canary more than are counted exactly: nine that lie like the eight before are a little less likely."""
    for rank in (60, 90, 120):
        eight, nine = (chance_of_sum([rank] * size, REFERENCES) for size in (8, 9))
        assert 0.5 * eight < nine < eight


@pytest.mark.parametrize("size", [1, 2, 4, 10])
def test_false_alarms_keep_to_their_share(size):
    draw, rounds = np.random.default_rng(size), 400
    repeats = np.repeat([1, 4, 16], size)
    alarms = 0
    for _ in range(rounds):
        values = draw.random(len(repeats) + REFERENCES)
        ranks = 1 + (values[len(repeats) :] >= values[: len(repeats), None]).sum(1)
        alarms += judge(repeats.tolist(), ranks.tolist(), REFERENCES).found
    # Three standard deviations above the share.
    assert alarms / rounds <= FALSE_ALARMS + 3 * math.sqrt(FALSE_ALARMS / rounds)
