"""Which cells are one job, what a job needs, how its worker is followed, and what is refused at the start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from tiny import NO_CHECKS, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run, load_recipe, run
from hfadapt.backends import Backend, Workers
from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.json_lines import as_line
from hfadapt.core.progress import Event, Failed, Part, Progress, RunFinished, RunStarted, Said, StageStarted, Stepped
from hfadapt.pipeline.flow import Flow, stages_until
from hfadapt.pipeline.locks import FolderLock, job_lock
from hfadapt.pipeline.spread import LIBRARIES_BYTES, Spread, resources
from hfadapt.recipe.schema import Recipe
from hfadapt.stages import Context

WORLD: Any = SimpleNamespace(size=1, is_main=True, on_main=lambda work: work())


class Heard(Progress):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, the third with other labels, planned for this machine and for a card."""
    place = tmp_path_factory.mktemp("planned")
    for number, name in enumerate(("one", "two")):
        write_rows(place / f"{name}.jsonl", labelled(80, seed=number))
    other = {"bad": "ill", "good": "well"}
    write_rows(place / "three.jsonl", [{**row, "label": other[row["label"]]} for row in labelled(80, seed=3)])
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two", "three")}
    fields = recipe_fields(models / "encoder", domains=domains, targets=["this-machine", "t4"], train__together=True)
    fields["evaluate"] |= NO_CHECKS
    write_recipe(place / "tiny.yaml", fields)
    run(load_recipe(place / "tiny.yaml"), folder=place / "runs/tiny", recipe_folder=place, until="plan")
    return place


def spread(folder: Path, recipe: Recipe, backend: Backend | None = None, until: str = "evaluate") -> Spread:
    context = Context(recipe, Run(folder / "runs/tiny"), WORLD, Heard(), folder, recipe.chosen)
    return Spread(Flow(context, stages_until(context.stages, until)), backend or Backend(), "")


def groups(found: Spread) -> list[list[str]]:
    stages = [stage for stage in found.flow.stages if stage.name in ("train", "evaluate")]
    return [[cell.name for cell in group] for group in found._together(found.context.cells, stages)]


def test_cells_that_train_together_are_one_job(folder: Path) -> None:
    recipe = load_recipe(folder / "tiny.yaml", targets=["this-machine"])
    assert groups(spread(folder, recipe)) == [["one/this-machine", "two/this-machine"], ["three/this-machine"]]


def test_so_are_those_of_which_one_takes_the_adapter_of_the_other(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "copy")
    found = spread(place, load_recipe(place / "tiny.yaml"))
    for cell in found.context.cells:
        # As if both targets had led to the same settings.
        lock = cell.lock
        train = lock.train.model_copy(update={"together": False})
        cell.save_lock(found.context.cells[0].lock.model_copy(update={"train": train, "domains": lock.domains}))
    assert groups(found) == [[f"{name}/this-machine", f"{name}/t4"] for name in ("one", "three", "two")]


def test_a_job_needs_what_its_plan_says(folder: Path) -> None:
    found = spread(folder, load_recipe(folder / "tiny.yaml"))
    here, card = (found.context.run.cell("one", name) for name in ("this-machine", "t4"))
    train = [registry.stage("train")]
    on_cpu, on_gpu = resources([here], train), resources([card], train)
    assert (on_cpu.gpus, on_gpu.gpus) == (0, 1)
    phases = [[*cell.plan.cells[0].memory, cell.plan.cells[0].merge] for cell in (here, card)]
    assert on_cpu.memory_bytes == LIBRARIES_BYTES + max(each.total_bytes for each in phases[0])
    assert on_gpu.memory_bytes == LIBRARIES_BYTES + max(each.host_bytes for each in phases[1])
    assert 1 <= on_gpu.cpus <= 4
    assert on_cpu.seconds == pytest.approx(train[0].seconds(here) or 0.0)
    assert resources([here, here], train).seconds == pytest.approx(2 * (on_cpu.seconds or 0.0))


def test_a_recipe_comes_back_from_a_job_as_it_was(folder: Path) -> None:
    found = spread(folder, load_recipe(folder / "tiny.yaml", ["train.epochs=3", "data.max_length=32"]))
    job = found._job(found.context.cells[:2], [registry.stage("train")])
    assert Recipe.model_validate(job.recipe) == found.context.recipe
    assert job.cells == ("one/this-machine", "one/t4")


# --- how it is followed ----------------------------------------------------------------------------------------------


class Scripted(Backend, Workers):
    """Workers that write what a test says, one list of events for each time a job is handed out."""

    seconds_between = 0.0

    def __init__(self, *tries: list[Event]) -> None:
        self.tries, self.handed, self.stopped = iter(tries), list[str](), False
        self.over: dict[str, str] = {}

    def open(self, address: str, folder: Path, say: Any) -> Workers:
        return self

    def submit(self, jobs: Any) -> None:
        for path, job in jobs.items():
            self.handed.append(job.name)
            with path.with_suffix(".jsonl").open("a") as file:
                file.writelines(map(as_line, next(self.tries)))
            self.over[job.name] = "ended by SIGKILL"

    def ended(self) -> dict[str, str]:
        over, self.over = self.over, {}
        return over

    def stop(self) -> None:
        self.stopped = True


BEGUN = RunStarted("tiny", "runs/tiny", ("three/t4",), ("train",))
STEP = Stepped((Part("three/t4", 1, 4, float("nan")),), 10.0, 3.0, seconds_left=3.0)


@pytest.fixture
def one(folder: Path, tmp_path: Path) -> tuple[Path, Recipe]:
    place = shutil.copytree(folder, tmp_path / "copy")
    return place, load_recipe(place / "tiny.yaml", domains=["three"], targets=["t4"])


def follow(one: tuple[Path, Recipe], *tries: list[Event]) -> tuple[Scripted, Spread]:
    backend = Scripted(*tries)
    found = spread(*one, backend=backend, until="train")
    found.run()
    assert backend.stopped
    return backend, found


def test_events_are_told_on_and_a_lost_worker_is_replaced(one: tuple[Path, Recipe]) -> None:
    lost = [BEGUN, StageStarted("train", "training", ("three/t4",)), STEP]
    stopped, done = [BEGUN, RunFinished("interrupted", 1.0)], [BEGUN, STEP, RunFinished("done", 1.0)]
    backend, found = follow(one, lost, stopped, done)
    assert backend.handed == ["0001-train-three-t4"] * 3
    events = found.progress.events  # type: ignore[attr-defined]
    assert sum(isinstance(event, Stepped) for event in events) == 2
    assert not any(isinstance(event, (RunStarted, RunFinished)) for event in events)
    said = [event.text for event in events if isinstance(event, Said)]
    assert "three/t4: its worker was lost (ended by SIGKILL); started again from what is saved (1 of 2)" in said
    assert "three/t4: its worker was interrupted (ended by SIGKILL); started again from what is saved (2 of 2)" in said


def test_a_worker_that_is_lost_three_times_is_given_up(one: tuple[Path, Recipe]) -> None:
    backend, found = follow(one, [BEGUN], [BEGUN], [])
    assert len(backend.handed) == 3
    (failed,) = [each for each in found.progress.events if isinstance(each, Failed)]  # type: ignore[attr-defined]
    assert failed.cell == "three/t4"
    assert ".log" in (failed.fix or "")
    state = found.context.cells[0].state
    assert state.status == "failed"
    assert "3 times" in (state.error or "")


def test_what_a_cell_cannot_do_is_not_tried_again(one: tuple[Path, Recipe]) -> None:
    fault = Failed("there is no such file", "put it there", "there is no such file\n  fix: put it there")
    backend, found = follow(one, [BEGUN, fault])
    assert len(backend.handed) == 1
    assert found.context.cells[0].state.status == "failed"
    told = [each for each in found.progress.events if isinstance(each, Failed)]  # type: ignore[attr-defined]
    assert [each.cell for each in told] == ["three/t4"]


def test_what_is_waited_for_is_said(one: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfadapt.pipeline.spread.QUIET", 0.05)
    queued: list[Event] = []
    begun, done = [BEGUN], [BEGUN, RunFinished("done", 1.0)]
    backend = Scripted(queued, begun, done)
    backend.seconds_between = 0.4
    found = spread(*one, backend=backend, until="train")
    found.run()
    said = [each.text for each in found.progress.events if isinstance(each, Said)]  # type: ignore[attr-defined]
    quiet = [text for text in said if text.startswith("no worker has said anything for 0.")]
    assert any("1 waiting to be started (three/t4)" in text and ".jobs" in text for text in quiet)
    assert any("1 under way (three/t4)" in text for text in quiet)
    assert len(quiet) < 9, "each time after twice as long"


def test_whoever_waits_for_the_worker_before_it_says_so(tmp_path: Path) -> None:
    path, said = tmp_path / "0001-train-one.json", list[str]()
    with FileLock(path.with_suffix(".lock")):
        with pytest.raises(RequestError, match="another worker"), job_lock(path, said.append, seconds=0.1):
            pass
    assert said == ["0001-train-one: waiting up to 0 s for the worker that had this job before to be gone"]
    with job_lock(path, said.append):
        assert len(said) == 1


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "more", "named"),
    [
        ("locall", (), "did you mean 'local'?"),
        ("local://many", (), "a number of workers|local://N"),
        ("slurm://here", (), "Slurm has no address"),
        ("slurm", (), "there is no sbatch"),
        ("local", ("processes=2",), "a job is done by one process"),
    ],
)
def test_before_anything_is_done(
    on: str, more: tuple[str, ...], named: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = command("run", "tiny.yaml", *more, "--on", on, "--runs", tmp_path / "runs", folder=folder)
    assert done.code == 2
    assert any(each in done.err for each in named.split("|")), done.err
    assert not (tmp_path / "runs").exists()


def test_not_under_a_launcher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    done = command("run", "tiny.yaml", "--on", "local", folder=folder)
    assert done.code == 2
    assert "hfadapt run RECIPE --on local" in done.err


def test_a_folder_whose_jobs_are_still_done_is_taken_by_nobody(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs/tiny"
    (place / ".jobs").mkdir(parents=True)
    with FileLock(place / ".jobs/0001-train-one.lock"):
        done = command("run", "tiny.yaml", "--runs", tmp_path / "runs", folder=folder)
        assert done.code == 2
        assert "0001-train-one" in done.err
    free = FolderLock(place, print)
    free.acquire()
    free.release()


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    done = command("work", "nothing.json", folder=tmp_path)
    assert done.code == 2
    assert "there is no such job" in done.err
    assert not list(tmp_path.iterdir())
