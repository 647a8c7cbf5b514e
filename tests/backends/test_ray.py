"""A real Ray cluster of two nodes with one core each on this machine, of which one is killed in the middle."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import ready, told
from tiny import command, finish, start

from hfadapt.core import registry
from hfadapt.core.errors import RequestError

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.slow
SECONDS = 900.0


@pytest.fixture
def cluster() -> Iterator[tuple[Any, Any]]:
    """The cluster and its second node."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 4 << 30, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=size)
    second = made.add_node(**{name: value for name, value in size.items() if name != "include_dashboard"})
    yield made, second
    made.shutdown()


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_node_is_killed_and_every_cell_is_done(cluster: tuple[Any, Any], models: Path, tmp_path: Path) -> None:
    made, second = cluster
    ready(tmp_path, models, count=4, steps=60)
    jobs = tmp_path / "runs/tiny/.jobs"
    run = start("run", "tiny.yaml", "--on", f"ray://{made.address}", folder=tmp_path)

    def training() -> int:
        return sum(any(event["event"] == "step" for event in told(path)) for path in jobs.glob("*-train-*.jsonl"))

    until(lambda: training() == 2 or run.poll() is not None)
    assert run.poll() is None, finish(run).err
    made.remove_node(second, allow_graceful=False)
    done = finish(run, SECONDS)
    assert done.code == 0, done.err
    assert "started again from what is saved (1 of 2)" in done.err
    report = json.loads((tmp_path / "runs/tiny/report.json").read_text())
    assert [cell["status"] for cell in report["cells"]] == ["done"] * 4
    begun = Counter({path.stem: sum(event["event"] == "run_started" for event in told(path))
                     for path in jobs.glob("*-train-*.jsonl")})  # fmt: skip
    assert sorted(begun.values()) == [1, 1, 1, 2], "only what the lost node was doing is done again"


def test_a_cluster_that_is_lost_is_told(cluster: tuple[Any, Any], models: Path, tmp_path: Path) -> None:
    """Ray itself would end the command without a word."""
    made, _ = cluster
    head = made.address
    ready(tmp_path, models, count=1, steps=2000)
    run = start("run", "tiny.yaml", "--on", f"ray://{head}", folder=tmp_path)
    job = tmp_path / "runs/tiny/.jobs/0001-train-d0-this-machine.jsonl"
    until(lambda: any(event["event"] == "step" for event in told(job)) or run.poll() is not None)
    made.head_node.kill_gcs_server(check_alive=False)
    done = finish(run, 120)
    assert done.code == 1, done.err
    assert f"the head of the Ray cluster at {head} does not answer" in done.err
    assert "the Ray cluster is gone" in done.err
    assert "Traceback" not in done.err


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    from hfadapt.backends.ray import work

    assert work(str(tmp_path / "job.json"), str(tmp_path), {}, 1) == os.uname().nodename


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:many"])
def test_an_address_where_nothing_is(address: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no Ray cluster"):
        registry.backend("ray").open(address, tmp_path, print)


def test_a_cluster_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RequestError, match="ray stop"):
        registry.backend("ray").open("", tmp_path, print)


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody listens at its address, and says nothing."""
    import socket

    monkeypatch.setattr("hfadapt.backends.ray.JOINED", 2.0)
    monkeypatch.setattr("hfadapt.backends.ray.TOLD_EVERY", 0.7)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestError, match="no answer in 2 s"):
            registry.backend("ray").open(address, tmp_path, said.append)
    assert said[0] == f"waiting for the Ray cluster at {address}, for 1 of at most 2 s"


def test_from_the_command_line(models: Path, tmp_path: Path) -> None:
    ready(tmp_path, models, count=1)
    done = command("run", "tiny.yaml", "--on", "ray://127.0.0.1:1", folder=tmp_path)
    assert done.code == 2
    assert "ray start" in done.err
