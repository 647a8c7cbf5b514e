"""Kernels on AMX tiles run in these tests wherever there is AVX512-BF16: on tiles, or with tiles in plain C++."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from hfadapt.fast import abi, compiled
from hfadapt.fast.limits import SWITCH
from hfadapt.hardware import processor

EMULATION = Path(__file__).with_name("amx_emulation.h")


@pytest.fixture(scope="session")
def emulated_tiles() -> ctypes.CDLL:
    """The library on emulated tiles, whose `emulated_no_memory` makes every allocation fail."""
    if "avx512_bf16" not in processor.cpu_features():
        pytest.skip("the processor has no AVX512-BF16")
    if compiled.switch() in ("off", "passes"):
        pytest.skip(f"{SWITCH} leaves the tiles out")
    found = compiled.library("emulated tiles", compiled.TILES, abi.bind_tiles, ["-include", str(EMULATION)])
    failure = compiled.failures().get("emulated tiles")
    if found is None and failure is None:
        pytest.skip("no C++ compiler")
    assert found is not None, failure
    return found


@pytest.fixture
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the test run on tiles, emulated ones where the processor has none."""
    if compiled.tiles() is None:
        library = request.getfixturevalue("emulated_tiles")
        monkeypatch.setattr(compiled, "tiles", lambda: library)
