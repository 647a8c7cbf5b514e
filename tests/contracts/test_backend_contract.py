"""Every backend that is found: named like its file, and it starts a worker, says that it has ended, and stops."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import pytest

from hfadapt.backends import Backend
from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.records.job import Job, Resources

FAKE_SLURM = Path(__file__).parents[1] / "backends/slurm"
NEEDS = {"ray": "ray"}
"""Backends that can be tried where this can be imported."""


def a_job(folder: Path, name: str = "0001-train-one") -> Job:
    """A job of which nothing is there but its file."""
    needs = Resources(cpus=1, gpus=0, memory_bytes=1 << 20, seconds=1.0)
    where = {"folder": str(folder / "runs/tiny"), "recipe_folder": ".", "place": str(folder)}
    return Job(name=name, recipe={}, domains=(), cells=("one/here",), stages=("train",), resources=needs, **where)


@pytest.fixture(params=registry.names("backends"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return registry.backend(request.param)


def test_it_is_named_like_its_file_and_says_what_it_is(backend: Backend) -> None:
    assert backend.name in registry.names("backends")
    assert registry.backend(backend.name) is backend
    assert registry.about("backends", backend.name)


def test_a_worker_is_started_and_its_end_is_told(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.name in NEEDS and importlib.util.find_spec(NEEDS[backend.name]) is None:
        with pytest.raises(RequestError, match="pip install"):
            backend.check("")
        pytest.skip(f"{NEEDS[backend.name]} is not installed")
    monkeypatch.setenv("PATH", f"{FAKE_SLURM}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster that somebody has on this machine
    monkeypatch.chdir(tmp_path)
    backend.check("")
    said: list[str] = []
    workers = backend.open("", tmp_path, said.append)
    # Without the folder of its run the worker ends by itself.
    path = a_job(tmp_path).write(tmp_path / "0001-train-one.json")
    workers.submit({path: a_job(tmp_path)})
    ended: dict[str, str] = {}
    until = time.monotonic() + 300
    while not ended and time.monotonic() < until:
        ended |= workers.ended()
        time.sleep(0.2)
    workers.stop()
    assert [*ended] == ["0001-train-one"]
    assert "SIG" not in ended["0001-train-one"], "it ends by itself"
    assert "does not see the folder of the run" in path.with_suffix(".jsonl").read_text()
    assert not workers.ended()
