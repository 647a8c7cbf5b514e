"""JSON that is nested too deeply is told, and harms nothing else."""

from __future__ import annotations

import gc
import sys

import pytest

from hfadapt.core.errors import DataError
from hfadapt.files import reading


class Left:
    """Garbage in a cycle, whose finalizer needs some room on the stack."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        deep(300)


def deep(levels):
    return levels and deep(levels - 1)


def test_deep_nesting_leaves_what_is_collected_meanwhile_its_room(tmp_path, monkeypatch):
    failed = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    (tmp_path / "deep.json").write_text("[" * 200_000)
    usual = gc.get_threshold()
    gc.collect()
    # The next collection begins 800 lists below here, where the limit is not far.
    gc.set_threshold(800)
    try:
        Left()
        with pytest.raises(DataError, match="nested too deeply"):
            list(reading.rows(tmp_path / "deep.json"))
    finally:
        gc.set_threshold(*usual)
        gc.collect()
    assert failed == []
