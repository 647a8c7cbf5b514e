"""Measured peaks: what was held and given back again is seen, what was there before is not."""

from __future__ import annotations

import gc

import pytest
import torch

from hfadapt.hardware import peak_memory
from hfadapt.hardware.peak_memory import PeakMemory, is_out_of_memory, load_libraries, release_memory, resident_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


def hold(mebibytes):
    """Touches that much memory and gives it back."""
    return float(torch.ones(mebibytes * MIB // 4).sum())


@pytest.mark.parametrize("way", ["kernel", "thread"])
def test_a_peak_that_is_over_is_still_seen(monkeypatch, way):
    if way == "thread":
        monkeypatch.setattr(PeakMemory, "_reset_high_water", lambda self: False)
        monkeypatch.setattr(peak_memory, "SAMPLE_SECONDS", 0.001)
    elif not PeakMemory(CPU, 0)._reset_high_water():
        pytest.skip("this system keeps no high-water mark")
    release_memory()
    with PeakMemory(CPU, resident_bytes()) as small:
        hold(1)
    with PeakMemory(CPU, resident_bytes()) as large:
        for _ in range(3):
            hold(96)
    assert 90 * MIB < large.peak_bytes < 200 * MIB
    assert small.peak_bytes < 60 * MIB


def test_the_floor_is_taken_off_and_no_peak_is_negative():
    with PeakMemory(CPU, resident_bytes() + 10_000 * MIB) as peak:
        hold(1)
    assert peak.peak_bytes == 0


def test_errors_pass_through():
    with pytest.raises(ValueError, match="mine"), PeakMemory(CPU, 0):
        raise ValueError("mine")


def test_errors_that_mean_too_little_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("not enough memory of it"))


@pytest.mark.parametrize("own", [True, False])
def test_only_in_a_process_of_its_own_libraries_are_put_aside_and_once(monkeypatch, own):
    """What a user's program holds there stays collectable."""
    frozen = []
    monkeypatch.setattr(peak_memory, "own_process", own)
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(frozen))
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    load_libraries()
    load_libraries()
    assert len(frozen) == own


def test_the_command_line_has_a_process_of_its_own(monkeypatch):
    from hfadapt import __main__ as entry
    from hfadapt.cli import app
    from hfadapt.hardware import allocator

    seen = []
    monkeypatch.setattr(peak_memory, "own_process", False)
    monkeypatch.setattr(allocator, "restart", lambda: None)
    monkeypatch.setattr(app, "main", lambda: seen.append(peak_memory.own_process))
    for words in (["run", "a.yaml"], ["--version"]):
        monkeypatch.setattr("sys.argv", ["hfadapt", *words])
        peak_memory.own_process = False
        entry.start()
    assert seen == [True, False]
