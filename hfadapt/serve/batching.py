"""Requests of many clients as few batches: one thread owns the model, and takes from a queue what fits together.

While it works others wait, and are the next batch; only after a pause does it wait a moment for more. A request that
finds the queue full is refused at once, and what was taken in is answered also when the server stops.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from hfadapt.core.errors import HfadaptError


class Refused(HfadaptError):
    """The server takes no more requests: now, or at all."""


class QueueFull(Refused):
    """Too many rows wait."""


@dataclass(frozen=True)
class Limits:
    """How much is done at once, and how much is taken in.

    Args:
        batch_rows: Rows of a batch.
        batch_tokens: Rows of a batch times the length of its longest, with what is to be written.
        queue_rows: Rows that may wait.
        request_rows: Rows of one request.
        text_characters: Of one text.
        body_bytes: Of one request.
        new_tokens: That may be asked for.
        window_seconds: How long a batch waits for more rows.
    """

    batch_rows: int = 32
    batch_tokens: int = 16_384
    queue_rows: int = 1024
    request_rows: int = 256
    text_characters: int = 100_000
    body_bytes: int = 16 << 20
    new_tokens: int = 1024
    window_seconds: float = 0.002


@dataclass(eq=False)
class Job:
    """One request in the queue.

    Args:
        kind: Which work it is; what is of one kind can share a batch.
        asked: What the work knows it by.
        rows: How many rows it has.
        alone: Whether it shares no batch.
        done: Gets the answer or the error; cancelled, it leaves the queue.
        tokens: The length of its longest row, once it was measured.
    """

    kind: str
    asked: Any
    rows: int = 1
    alone: bool = False
    done: Future[Any] = field(default_factory=Future)
    tokens: int = 0


class Work(Protocol):
    """What the thread does with requests of a kind."""

    def measure(self, asked: Any) -> int:
        """Tokens of the longest row. Raises HfadaptError for what cannot be asked."""

    def do(self, jobs: Sequence[Job]) -> None:
        """Answers all jobs of a batch, in `Job.done`."""


@dataclass
class Counts:
    """What was done since the start, for whoever watches."""

    batches: int = 0
    rows: int = 0
    waiting_rows: int = 0


class Batcher:
    """The queue and its thread.

    Args:
        works: By kind.
    """

    def __init__(self, works: Mapping[str, Work], limits: Limits) -> None:
        self.works, self.limits, self.counts = works, limits, Counts()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hfadapt-model", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> Future[Any]:
        """Takes a request in.

        Raises:
            QueueFull: it would be too many.
            Refused: the server stops.
        """
        with self._changed:
            if self._closed:
                raise Refused("the server is stopping", fix="ask again when it is back")
            if self.counts.waiting_rows + job.rows > self.limits.queue_rows:
                raise QueueFull(
                    "too many requests are waiting",
                    got=f"{self.counts.waiting_rows:,} rows in the queue, {job.rows:,} in this request",
                    allowed=f"{self.limits.queue_rows:,} in all",
                    fix="ask again in a moment, or let fewer clients ask at once",
                )
            self._waiting.append(job)
            self.counts.waiting_rows += job.rows
            self._changed.notify()
        return job.done

    def close(self) -> None:
        """Takes nothing more in, and returns when everything that was is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._changed.wait_for(self._enough, self.limits.window_seconds)
                jobs = self._taken()
            if batch := self._fitting(jobs):
                self._answer(batch)

    def _enough(self) -> bool:
        return self._closed or self.counts.waiting_rows >= self.limits.batch_rows

    def _taken(self) -> list[Job]:
        """The first job and those that can share its batch, out of the queue."""
        found: list[Job] = []
        for job in list(self._waiting):
            first = found[0] if found else job
            rows = job.rows + sum(each.rows for each in found)
            if found and (job.alone or first.alone or job.kind != first.kind or rows > self.limits.batch_rows):
                continue
            self._waiting.remove(job)
            self.counts.waiting_rows -= job.rows
            # One that was cancelled is gone.
            if job.done.set_running_or_notify_cancel() if not job.tokens else True:
                found.append(job)
        return found

    def _fitting(self, jobs: Sequence[Job]) -> list[Job]:
        """As many as fit by their tokens, the first in any case; the others go back to the front of the queue."""
        batch: list[Job] = []
        back: list[Job] = []
        for job in jobs:
            try:
                job.tokens = job.tokens or self.works[job.kind].measure(job.asked)
            except Exception as error:
                job.done.set_exception(error)
                continue
            rows, longest = job.rows, job.tokens
            for each in batch:
                rows, longest = rows + each.rows, max(longest, each.tokens)
            fits = not batch or rows * longest <= self.limits.batch_tokens
            (batch if fits else back).append(job)
        if back:
            with self._changed:
                self._waiting.extendleft(reversed(back))
                self.counts.waiting_rows += sum(job.rows for job in back)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        self.counts.batches += 1
        self.counts.rows += sum(job.rows for job in batch)
        try:
            self.works[batch[0].kind].do(batch)
        except Exception as error:
            for job in batch:
                if not job.done.done():
                    job.done.set_exception(error)
