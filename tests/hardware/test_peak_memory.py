"""Measured peaks: what was held and given back again is seen, what was there before is not."""

from __future__ import annotations

import pytest
import torch

from hfadapt.hardware import peak_memory
from hfadapt.hardware.peak_memory import PeakMemory, is_out_of_memory, release_memory, resident_bytes

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
