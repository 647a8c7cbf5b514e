"""Jobs on this machine: what two workers make is what one process makes, also where one of them is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import ready, told
from tiny import finish, start

from hfadapt import Run, load_recipe, run
from hfadapt.backends import divided, local
from hfadapt.core.progress import Event, Failed, Progress, Said, StageStarted
from hfadapt.records.job import Job, Resources

TIMES = {"seconds", "tokens_per_second", "load_seconds", "memory", "energy", "compute", "made", "adapter_bytes"}
GIB = 1 << 30


class Killer(Progress):
    """Kills the first worker that begins with the training of d0, and takes note of everything."""

    def __init__(self) -> None:
        self.killed, self.events = 0, list[Event]()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, StageStarted) and event.cells == ("d0/this-machine",) and event.stage == "train":
            workers = [each for each in psutil.Process().children(recursive=True) if "-d0-" in " ".join(each.cmdline())]
            if not self.killed:
                self.killed = len(workers)
                for worker in workers:
                    worker.kill()

    def said(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, (Said, Failed)))


def without_times(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.model_dump().items() if name not in TIMES}


def test_two_workers_make_what_one_process_makes_although_one_is_killed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests of this process have left at work is theirs.
    before = set(psutil.Process().children())
    monkeypatch.chdir(tmp_path)
    ready(tmp_path, models)
    recipe, killer = load_recipe(Path("tiny.yaml")), Killer()
    alone = run(recipe, until="train", folder=Path("alone/tiny"))
    spread = run(recipe, until="train", folder=Path("spread/tiny"), on="local://2", progress=killer)
    assert killer.killed == 1
    assert "d0/this-machine: its worker was lost (ended by SIGKILL); started again" in killer.said()
    for domain in ("d0", "d1"):
        one, other = (each.cell(domain, "this-machine") for each in (alone, spread))
        weights = [(each.adapter / "adapter_model.safetensors").read_bytes() for each in (one, other)]
        assert weights[0] == weights[1]
        assert one.lock == other.lock
        assert one.state.stages == other.state.stages
        assert one.state.status == other.state.status == "pending"
        assert without_times(one.train) == without_times(other.train)
        assert one.data == other.data
    tries = {path.stem[5:]: [event["event"] for event in told(path)].count("run_started")
             for path in Path("spread/tiny/.jobs").glob("*.jsonl")}  # fmt: skip
    assert tries == {"train-d0-this-machine": 2, "train-d1-this-machine": 1}
    assert not any("Fatal" in path.read_text() for path in Path("spread/tiny/.jobs").glob("*.log"))
    assert not set(psutil.Process().children()) - before
    again = Killer()
    run(recipe, until="train", folder=Path("spread/tiny"), on="local", progress=again)
    assert again.said().count("done already, kept") == 2
    assert not list(Path("spread/tiny/.jobs").iterdir())


def a_job(gpus: int = 0, memory_bytes: int = GIB) -> Job:
    needs = Resources(cpus=4, gpus=gpus, memory_bytes=memory_bytes)
    where = {"folder": "runs/tiny", "recipe_folder": ".", "place": "/"}
    return Job(name="one", recipe={}, domains=(), cells=("one/here",), stages=("train",), resources=needs, **where)


@pytest.mark.parametrize(
    ("jobs", "cores", "memory_gib", "devices", "at_once"),
    [
        ([a_job()] * 5, 4, 64, 0, 4),
        ([a_job()] * 3, 8, 64, 0, 3),
        ([a_job()] * 8, 8, 2, 0, 2),
        ([a_job()] * 8, 8, 0, 0, 1),
        ([a_job(), a_job(memory_bytes=4 * GIB)], 8, 6, 0, 1),
        ([a_job(gpus=1)] * 8, 4, 64, 2, 2),
        ([a_job(gpus=1)] * 8, 4, 64, 0, 4),
        ([a_job()] * 8, 4, 64, 2, 4),
    ],
)
def test_how_many_at_once(jobs: list[Job], cores: int, memory_gib: int, devices: int, at_once: int) -> None:
    assert divided(jobs, cores, memory_gib * GIB, devices) == at_once


def test_each_device_has_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_devices", lambda: ["3", "GPU-7f"])
    script = 'import os, sys, time; open(sys.argv[1] + ".out", "w").write(os.environ["CUDA_VISIBLE_DEVICES"]); input()'
    monkeypatch.setattr(local, "command", lambda path, tied: [sys.executable, "-c", script, str(path)])
    monkeypatch.setattr(local.catalogue, "memory_limits", lambda: (64 * GIB, 64 * GIB))
    workers = local.LocalWorkers(None, print)
    jobs = {tmp_path / f"{number}": a_job(gpus=1).model_copy(update={"name": str(number)}) for number in range(3)}
    workers.submit(jobs)
    assert [worker.job.name for worker in workers.running] == ["0", "1"]
    assert [worker.device for worker in workers.running] == ["3", "GPU-7f"]
    first = workers.running[0].process
    first.communicate(b"\n")
    ended = workers.ended()
    assert ended == {"0": ""}
    assert [(worker.job.name, worker.device) for worker in workers.running] == [("1", "GPU-7f"), ("2", "3")]
    workers.stop()
    assert workers.ended() == {"1": "ended by SIGTERM", "2": "ended by SIGTERM"}
    assert (tmp_path / "0.out").read_text() == "3"


def under_way(folder: Path, models: Path, steps: int) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A command with jobs that have done a step, and its workers."""
    ready(folder, models, steps=steps)
    process = start("run", "tiny.yaml", "--on", "local", "--json-lines", "events.jsonl", folder=folder)
    while not any(event["event"] == "step" for event in told(folder / "events.jsonl")):
        assert process.poll() is None, finish(process).err
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_command_goes_on_later(models: Path, tmp_path: Path) -> None:
    process, workers = under_way(tmp_path, models, steps=400)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "run the command again to go on" in done.err
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert "interrupted" in {cell.state.status for cell in Run(tmp_path / "runs/tiny").cells()}
    again = finish(start("run", "tiny.yaml", "train.max_steps=400", "--on", "local", folder=tmp_path))
    assert again.code == 0, again.err
    trained = [cell.train for cell in Run(tmp_path / "runs/tiny").cells()]
    assert max(record.resumed_from_step or 0 for record in trained) > 0


@pytest.mark.slow
def test_workers_end_with_the_command_that_has_started_them(models: Path, tmp_path: Path) -> None:
    process, workers = under_way(tmp_path, models, steps=2000)
    process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    assert len(gone) == 2
