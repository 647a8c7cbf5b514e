"""Time and memory that a foreign program may take within this one."""

from __future__ import annotations

import resource
import signal
import sys
import threading

import pytest

from hfadapt.core.limits import limited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


def endless():
    while True:
        pass


def test_what_does_not_end_is_ended_and_nothing_of_it_stays():
    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(TimeoutError), limited(0.05, 1 << 30):
        endless()
    assert (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_fills_memory_is_refused_it():
    with pytest.raises(MemoryError), limited(60, 1 << 28):
        bytes(1 << 29)
    assert len(bytes(1 << 29)) == 1 << 29


def test_what_is_modest_goes_on_in_any_thread():
    found = []

    def work():
        with limited(5, 1 << 30):
            found.append(sum(range(1000)))

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [499500] * 2
