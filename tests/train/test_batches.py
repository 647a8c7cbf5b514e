"""Which rows go together: every row once, a pure function, and the same number of micro-batches everywhere."""

from __future__ import annotations

import random
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfadapt.modalities.text import text_example
from hfadapt.tasks.causal_lm.task import KIND
from hfadapt.train.batches import MEGA_BATCHES, epoch_batches, micro_batches, padded

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=400)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_every_row_once_an_epoch(lengths, rows, seed, epoch):
    batches = epoch_batches(lengths, rows, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // rows)
    sizes = sorted(map(len, batches))
    assert sizes[1:] == [rows] * (len(sizes) - 1), "only one batch may be smaller"


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_a_pure_function_that_leaves_the_global_state_alone(lengths, rows, seed, epoch):
    random.seed(1)
    state = random.getstate()
    once = epoch_batches(lengths, rows, seed, epoch)
    assert random.getstate() == state
    random.seed(2)
    assert epoch_batches(lengths, rows, seed, epoch) == once


def test_epochs_and_seeds_differ():
    lengths = list(range(1, 101))
    made = [epoch_batches(lengths, 8, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert made[0] != made[1]
    assert made[0] != made[2]


def test_rows_of_a_batch_are_of_similar_length():
    draw = random.Random(3)
    lengths = [draw.randint(1, 512) for _ in range(2000)]

    def padding(batches):
        return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) / sum(lengths)

    unsorted = [list(range(start, start + 16)) for start in range(0, 2000, 16)]
    assert padding(epoch_batches(lengths, 16, 1, 0)) < 1.2 < padding(unsorted)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=70), st.integers(90, 400), st.booleans())
def test_micro_batches_keep_the_order_and_the_budget(lengths, budget, padded):
    rows = list(range(100, 100 + len(lengths)))
    parts = micro_batches(rows, lengths, budget, padded=padded)
    assert [row for part in parts for row in part] == rows

    def tokens(part):
        own = [lengths[row - 100] for row in part]
        return max(own) * len(own) if padded else sum(own)

    assert all(part and tokens(part) <= budget for part in parts)
    assert all(tokens([*one, other[0]]) > budget for one, other in pairwise(parts))


def test_a_row_over_the_budget_stands_alone():
    assert micro_batches([1, 2, 3], [5, 50, 5], 20, padded=False) == [[1], [2], [3]]


def test_one_window_holds_whole_batches():
    """A window is a multiple of the batch, so that only the end of the epoch makes a small batch."""
    lengths = [1] * (8 * MEGA_BATCHES * 2 + 3)
    sizes = [len(batch) for batch in epoch_batches(lengths, 8, 1, 0)]
    assert sorted(sizes)[0] == 3
    assert sizes.count(8) == 2 * MEGA_BATCHES


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 12))
def test_scoring_batches_hold_every_row_and_pad_on_the_right(lengths, rows):
    examples = [
        text_example(tuple(range(1, n + 1)), tuple(range(1, n + 1)), length=n, row=i) for i, n in enumerate(lengths)
    ]
    seen = []
    for numbers, batch in padded(KIND, examples, 0, torch.device("cpu"), rows):
        seen += numbers
        assert len(numbers) <= rows
        for number, ids, mask, labels in zip(
            numbers, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            n = lengths[number]
            assert ids[:n].tolist() == list(range(1, n + 1))
            assert mask.tolist() == [1] * n + [0] * (len(mask) - n)
            assert (labels[n:] == -100).all()
    assert sorted(seen) == list(range(len(lengths)))


def test_rows_of_one_length_stay_shuffled():
    # Sources often have the rows of a class one after the other, and pictures are all of one length.
    classes = [row // 100 for row in range(1000)]
    batches = epoch_batches([64] * 1000, 16, 1, 0)
    assert all(len({classes[row] for row in batch}) > 3 for batch in batches)
