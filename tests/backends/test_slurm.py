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

from hfadapt import Run
from hfadapt.backends import Left
from hfadapt.backends.slurm import KIND, SUBMITTED, SlurmWorkers, script_of
from hfadapt.core.errors import RequestError
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


# --- left to itself, and followed again ------------------------------------------------------------------------------


def jobs_of(folder: Path, *names: str) -> dict[Path, Job]:
    return {a_job(name).write(folder / f"{name}.json"): a_job(name) for name in names}


def test_what_was_submitted_is_known_to_the_next_command(slurm: Path, tmp_path: Path) -> None:
    (slurm / "hold").touch()
    folder, said = tmp_path / "jobs", list[str]()
    assert KIND.left(folder) == Left()
    first = SlurmWorkers(folder, said.append)
    first.submit(jobs_of(folder, "0001-train-a", "0002-train-b"))
    assert first.leave()
    assert said[-1].startswith("array job 100 goes on in Slurm without this command")
    assert said[-1].endswith("scancel 100")
    assert KIND.left(folder) == Left(frozenset({"0001-train-a", "0002-train-b"}), frozenset(), "scancel 100")
    (slurm / "100_1.waiting").unlink()
    assert KIND.left(folder) == Left(frozenset({"0001-train-a"}), frozenset({"0002-train-b"}), "scancel 100")
    second = SlurmWorkers(folder, said.append)
    assert [second.ended(), second.ended()] == [{}, {"0002-train-b": ""}]
    second.submit(jobs_of(folder, "0002-train-b"))
    assert sorted(KIND.left(folder).there) == ["0001-train-a", "0002-train-b"]
    assert (folder / "array-2.sh").exists()
    (slurm / "deaf").touch()
    with pytest.raises(RequestError, match="cannot be found out") as caught:
        KIND.left(folder)
    assert "scancel 100 101" in str(caught.value)
    (slurm / "deaf").unlink()
    second.stop()
    assert not list(slurm.glob("*.waiting"))
    assert KIND.left(folder) == Left()


def test_on_a_machine_without_slurm_nobody_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert KIND.left(tmp_path) == Left()
    jobs_of(tmp_path, "0001-train-a")
    (tmp_path / SUBMITTED).write_text(json.dumps({"100_0": "0001-train-a"}))
    with pytest.raises(RequestError, match="no squeue on this machine"):
        KIND.left(tmp_path)


def trained(slurm: Path) -> list[Path]:
    """The scripts that were submitted for the training of cells."""
    return sorted(path for path in slurm.glob("*.array") if "-train-" in path.read_text())


@pytest.mark.slow
def test_the_same_command_follows_what_waits_in_the_queue(slurm: Path, models: Path, tmp_path: Path) -> None:
    ready(tmp_path, models)
    (slurm / "hold").touch()
    process = start("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    while not (tmp_path / "runs/tiny/.jobs" / SUBMITTED).exists():
        assert process.poll() is None, finish(process).err
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 130
    assert "scancel 100" in stopped.err
    assert len(list(slurm.glob("100_*.waiting"))) == 2
    for more, named in (
        ((), "--on slurm without --fresh"),
        (("--on", "local"), "--on slurm without --fresh"),
        (("--on", "slurm", "--fresh"), "scancel 100 ends them"),
        (("--on", "slurm", "train.max_steps=5"), "run the same command as before"),
        (("--on", "slurm", "--domain", "d0"), "run the same command as before"),
    ):
        other = command("run", "tiny.yaml", *more, folder=tmp_path)
        assert other.code == 2, more
        assert named in other.err, other.err
    assert len(list(slurm.glob("100_*.waiting"))) == 2
    (slurm / "hold").unlink()
    done = command("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    assert done.code == 0, done.err
    assert "going on with 2 jobs" in done.err
    assert [path.name for path in trained(slurm)] == ["100.array"], "nothing is submitted twice"
    assert [cell.state.status for cell in Run(tmp_path / "runs/tiny").cells()] == ["done", "done"]


@pytest.mark.slow
def test_the_same_command_follows_what_runs(slurm: Path, models: Path, tmp_path: Path) -> None:
    """Its terminal is lost, and one of its workers while nobody looks: only that one's job is submitted again."""
    ready(tmp_path, models, steps=60, checkpoint_every_steps=1)
    process = start("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    jobs = tmp_path / "runs/tiny/.jobs"

    def steps(number: int) -> int:
        told_of = told(jobs / f"000{number + 1}-train-d{number}-this-machine.jsonl")
        return sum(event["event"] == "step" for event in told_of)

    while not (steps(0) and steps(1) > 2):
        assert process.poll() is None, finish(process).err
    process.kill()
    finish(process)
    os.kill(int((slurm / "100_1.pid").read_text()), signal.SIGKILL)
    done = command("run", "tiny.yaml", "--on", "slurm", folder=tmp_path)
    assert done.code == 0, done.err
    assert "d1/this-machine: its worker was lost" in done.err
    arrays = {path.name: asked(path.read_text())["array"] for path in trained(slurm)}
    assert arrays == {"100.array": "0-1", "101.array": "0-0"}
    cells = Run(tmp_path / "runs/tiny").cells()
    assert [cell.state.status for cell in cells] == ["done", "done"]
    assert cells[0].train.resumed_from_step is None
    assert cells[1].train.resumed_from_step


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
