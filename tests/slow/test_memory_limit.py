"""A process given what the plan asks for finishes; with the next larger plan it would not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory_limit.py"


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_the_planned_memory_is_enough_and_the_next_plans_is_needed(quant: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--quant", quant], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    smaller, larger = found["runs"]
    assert smaller["finished"], done.stderr[-2000:]
    assert smaller["predicted_peak_bytes"] > 300 << 20
    assert larger["predicted_peak_bytes"] > found["limit_bytes"]
    assert not larger["finished"]
    assert larger["exit_code"] == -9
