"""Signals that stop a program so that what is half done is saved: Ctrl-C, SIGTERM of schedulers and service managers,
and SIGUSR1, by which Slurm warns ahead of the end of a job (`sbatch --signal=USR1@60`)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

KINDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is not on every system."""
BY_USER, BY_SYSTEM = 130, 143
"""Exit codes: a shell's for Ctrl-C, and for SIGTERM whatever else the system has sent."""
_received: list[int] = []


@contextlib.contextmanager
def handled(handle: Callable[[], None]) -> Iterator[None]:
    """Inside, each of the signals calls `handle`; in a thread that is not the main one they keep their meaning."""

    def note(number: int, frame: object) -> None:
        _received.append(number)
        handle()

    try:
        before = [signal.signal(kind, note) for kind in KINDS]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for kind, old in zip(KINDS, before, strict=True):
            signal.signal(kind, old)


def forget() -> None:
    """At the beginning of a program, or of one in the place of another."""
    _received.clear()


def exit_code() -> int:
    """Of a program that was stopped."""
    return BY_SYSTEM if any(number != signal.SIGINT for number in _received) else BY_USER
