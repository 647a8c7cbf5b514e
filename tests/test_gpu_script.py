"""benchmarks/gpu.sh: steps that fail or hang are lines of its table, and the next ones run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def test_it_goes_on_after_what_fails_and_hangs(tmp_path) -> None:
    steps = ("one 9 bash -c 'echo said; exit 3'", "two 1 sleep 60", "three 9 echo a")
    lines = "; ".join([f"source {SCRIPT} {tmp_path}", "begin", *(f"step {each}" for each in steps)])
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[1] for line in table] == ["failed, exit code 3", "cut off after 1 s", "ok"]
    assert table[0].endswith("| said |")
    assert (tmp_path / "three.log").read_text() == "a\n"
    assert "said" in done.stdout


@pytest.mark.slow
def test_the_whole_script_runs_dry_on_a_cpu(tmp_path) -> None:
    environment = {**os.environ, "DRY": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    table = (tmp_path / "table.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["ok"] * 4, done.stdout[-3000:]
