"""Time and memory for a program that somebody else wrote and that runs within this one, such as a chat template."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

STATM = Path("/proc/self/statm")


@contextlib.contextmanager
def limited(seconds: float, more_bytes: int) -> Iterator[None]:
    """Inside, so much time of the processor and so much further memory at most; in the main thread, where the system
    can.

    Raises:
        TimeoutError, MemoryError: it took more.
    """
    with _time(seconds), _memory(more_bytes):
        yield


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TimeoutError

    try:
        before = signal.signal(signal.SIGVTALRM, end)
    except (ValueError, AttributeError):  # not the main thread, or a system without it
        yield
        return
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _memory(more_bytes: int) -> Iterator[None]:
    try:
        import resource

        now = int(STATM.read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = min(each for each in (soft, hard, now + more_bytes) if each != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
