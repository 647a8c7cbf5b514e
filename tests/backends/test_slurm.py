"""Array jobs, with commands in Slurm's place that really start the tasks of the script as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from jobs import ready, told
from tiny import command, finish, start

from hfadapt.backends.slurm import SlurmWorkers, script_of
from hfadapt.records.job import Job, Resources

HERE = Path(__file__).parent / "slurm"
GIB = 1 << 30


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands keep what they know."""
    state = tmp_path / "slurm"
    state.mkdir()
    monkeypatch.setenv("PATH", f"{HERE}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def a_job(name: str, cpus: int = 4, gpus: int = 1, gib: int = 3, seconds: float | None = 3600.0) -> Job:
    needs = Resources(cpus=cpus, gpus=gpus, memory_bytes=gib * GIB, seconds=seconds)
    where = {"folder": "runs/my tiny", "recipe_folder": ".", "place": "/"}
    return Job(name=name, recipe={}, domains=(), cells=("one/here",), stages=("train",), resources=needs, **where)


def asked(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.M))


def test_the_script_asks_for_what_the_plans_say(tmp_path: Path) -> None:
    jobs = {tmp_path / "it's one.json": a_job("one", gib=3), tmp_path / "two.json": a_job("two", gib=5, seconds=60.0)}
    script = script_of(jobs, tmp_path / "array-1.sh")
    said = asked(script)
    assert said["array"] == "0-1"
    assert (said["cpus-per-task"], said["gres"], said["mem"]) == ("4", "gpu:1", "5120M")
    assert said["time"] == "211", "half an hour, and three times the longer of both"
    assert said["signal"] == "B:USR1@120"
    assert "#SBATCH --requeue" in script
    assert said["job-name"] == "hfadapt-my tiny"


def test_without_a_gpu_and_without_a_known_time_nothing_is_asked_of_them(tmp_path: Path) -> None:
    said = asked(script_of({tmp_path / "one.json": a_job("one", gpus=0, seconds=None)}, tmp_path / "array-1.sh"))
    assert "gres" not in said
    assert "time" not in said


def test_jobs_of_other_sizes_are_other_arrays_of_no_more_tasks_than_slurm_takes(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfadapt.backends.slurm.MOST_TASKS", 2)
    monkeypatch.setattr("hfadapt.backends.slurm.sys.executable", "true")
    said: list[str] = []
    workers = SlurmWorkers(tmp_path, said.append)
    names = ["a", "b", "c", "d"]
    workers.submit({tmp_path / f"{name}.json": a_job(name, gpus=int(name != "d")) for name in names})
    assert [re.sub(r" submitted.*", "", each) for each in said] == [
        "array job 100 of 2", "array job 101 of 1", "array job 102 of 1"
    ]  # fmt: skip
    ended: dict[str, str] = {}
    until = time.monotonic() + 60
    while len(ended) < 4 and time.monotonic() < until:
        ended |= workers.ended()
        time.sleep(0.1)
    assert sorted(ended) == names


def test_what_sbatch_says_is_told(slurm: Path, models: Path, tmp_path: Path) -> None:
    ready(tmp_path, models, count=1)
    (slurm / "refuse").touch()
    done = command("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    assert done.code == 2
    assert "invalid partition specified" in done.err
    assert "SBATCH_PARTITION" in done.err


@pytest.mark.slow
def test_a_task_is_killed_and_every_cell_is_done(slurm: Path, models: Path, tmp_path: Path) -> None:
    ready(tmp_path, models, steps=60)
    process = start("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    job = tmp_path / "runs/tiny/.jobs/0001-train-d0-this-machine.jsonl"
    while not any(event["event"] == "step" for event in told(job)):
        assert process.poll() is None, finish(process).err
    os.kill(int((slurm / "100_0.pid").read_text()), signal.SIGKILL)
    done = finish(process)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "runs/tiny/report.json").read_text())
    assert [cell["status"] for cell in report["cells"]] == ["done", "done"]
    assert "d0/this-machine: its worker was lost" in done.err
    assert [event["event"] for event in told(job)].count("run_started") == 2
    script = next(slurm.glob("100.array")).read_text()
    assert asked(script)["array"] == "0-1"
