"""The queue of a server: what shares a batch, what is refused, and that nothing is lost."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.serve.batching import Batcher, Job, Limits, QueueFull, Refused

SECONDS = 30


class Doubling:
    """Doubles numbers, once it may; keeps what came together."""

    def __init__(self):
        self.may, self.batches = threading.Event(), []

    def measure(self, asked):
        if asked < 0:
            raise RequestError("below zero")
        return asked

    def do(self, jobs):
        assert self.may.wait(SECONDS)
        self.batches.append([job.asked for job in jobs])
        if any(job.asked == 13 for job in jobs):
            raise ZeroDivisionError
        for job in jobs:
            job.done.set_result(2 * job.asked)


@pytest.fixture
def made():
    """A work, and a batcher of it; the first job keeps it busy until it may."""
    works, batchers = [], []

    def make(**limits):
        works.append(Doubling())
        batchers.append(Batcher({"a": works[-1], "b": works[-1]}, Limits(**limits)))
        return works[-1], batchers[-1]

    yield make
    for work, batcher in zip(works, batchers, strict=True):
        work.may.set()
        batcher.close()


def put(batcher, *numbers, kind="a", **more):
    return [batcher.put(Job(kind, number, **more)) for number in numbers]


def busy(batcher):
    """Waits until the first job is being worked on, so that all others queue."""
    (first,) = put(batcher, 1)
    while not first.running():
        pass
    return first


def results(jobs):
    assert not wait(jobs, SECONDS).not_done
    return [job.result() for job in jobs]


def test_what_waits_is_one_batch_within_rows(made):
    work, batcher = made(batch_rows=3)
    jobs = [busy(batcher), *put(batcher, 2, 3, 4, 5)]
    work.may.set()
    assert results(jobs) == [2, 4, 6, 8, 10]
    assert work.batches == [[1], [2, 3, 4], [5]]
    assert (batcher.counts.batches, batcher.counts.rows, batcher.counts.waiting_rows) == (3, 5, 0)


def test_a_batch_has_so_many_tokens_and_order_is_kept(made):
    work, batcher = made(batch_tokens=20)
    jobs = [busy(batcher), *put(batcher, 5, 4, 11, 3, 50)]
    work.may.set()
    results(jobs)
    # 3 rows times 11 would be 33. What is too long for any batch has one of its own.
    assert work.batches == [[1], [5, 4, 3], [11], [50]]


def test_kinds_and_lonely_jobs_do_not_mix(made):
    work, batcher = made()
    jobs = [busy(batcher), *put(batcher, 2), *put(batcher, 3, kind="b"), *put(batcher, 4), *put(batcher, 5, alone=True)]
    work.may.set()
    results(jobs)
    assert work.batches == [[1], [2, 4], [3], [5]]


def test_a_job_that_cannot_be_asked_or_fails_leaves_the_others(made):
    work, batcher = made()
    first = busy(batcher)
    good, bad = put(batcher, 2, -1)
    work.may.set()
    assert results([first, good]) == [2, 4]
    with pytest.raises(RequestError, match="below zero"):
        bad.result(SECONDS)
    with pytest.raises(ZeroDivisionError):
        put(batcher, 13)[0].result(SECONDS)
    assert results(put(batcher, 6)) == [12]


def test_a_full_queue_refuses(made):
    work, batcher = made(queue_rows=3)
    jobs = [busy(batcher), *put(batcher, 2, rows=3)]
    with pytest.raises(QueueFull) as caught:
        put(batcher, 3)
    assert "3 rows in the queue, 1 in this request" in str(caught.value)
    work.may.set()
    assert results(jobs) == [2, 4]
    assert results(put(batcher, 3)) == [6]


def test_a_cancelled_job_is_not_done(made):
    work, batcher = made()
    first = busy(batcher)
    gone, kept = put(batcher, 2, 3)
    assert gone.cancel()
    work.may.set()
    assert results([first, kept]) == [2, 6]
    assert work.batches == [[1], [3]]


def test_a_closed_queue_finishes_what_it_has(made):
    work, batcher = made()
    jobs = [busy(batcher), *put(batcher, 2)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        pass
    with pytest.raises(Refused, match="stopping"):
        put(batcher, 3)
    work.may.set()
    closing.join(SECONDS)
    assert results(jobs) == [2, 4]
