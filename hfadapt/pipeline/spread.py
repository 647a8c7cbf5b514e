"""A run whose cells are jobs: planned here, done by workers of a backend, followed here to one end.

Rows are prepared and cells planned by this process. Cells that share their work are one job; each job goes to a worker
that does an ordinary part of the run in the same folder. A worker that is lost is replaced by another one, which goes
on from the checkpoint. What concerns the whole run is a job of its own between those of the cells.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

from hfadapt.backends import Backend, Left, Workers, last_words, log_of
from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, Problem, RequestError
from hfadapt.core.json_lines import from_line
from hfadapt.core.progress import Event, Failed, RunFinished, RunStarted, StageStarted, Stepped
from hfadapt.core.show import show_seconds
from hfadapt.hardware import catalogue
from hfadapt.pipeline.flow import Flow
from hfadapt.pipeline.locks import JOBS
from hfadapt.recipe.schema import Recipe
from hfadapt.records.job import Job, Resources
from hfadapt.records.plan import Plan
from hfadapt.run_folder import Cell
from hfadapt.stages import Stage, shares

RETRIES = 2
"""How often a job is handed out again whose worker was lost."""
CPUS_BESIDE_A_GPU = 4
"""Cores that a job on a GPU is given where its target does not say."""
LIBRARIES_BYTES = 1 << 30
"""What torch and the other libraries hold in a process, above which plans count."""
WAIT, WAIT_FOR_EACH = 0.1, 0.002
"""Seconds between two looks at what workers have written: at least, and for each job, as file servers are shared."""
QUIET = 60.0
"""Seconds without a word of any worker, after which it is said what is waited for; then after twice as long, and so
on."""


def backend_of(on: str, recipe: Recipe) -> tuple[Backend, str]:
    """The backend and the address that `--on` names.

    Raises:
        RequestError: there is none of that name, something it needs is missing, or jobs cannot be handed out here.
    """
    import os

    name, _, address = on.partition("://")
    try:
        backend = registry.backend(name)
    except RequestError as error:
        problem: Problem = replace(error.problems[0], place="--on")
        raise RequestError(problem.what, problems=[problem]) from None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            "jobs are handed out by one process",
            place="--on",
            got=f"{os.environ['WORLD_SIZE']} processes of a launcher",
            fix=f"start it without the launcher: hfadapt run RECIPE --on {on}",
        )
    if recipe.processes > 1:
        raise RequestError(
            "a job is done by one process",
            place="processes",
            got=str(recipe.processes),
            allowed="1 with --on",
            fix="processes=1, or without --on: torchrun --nproc_per_node N -m hfadapt run RECIPE",
        )
    backend.check(address)
    return backend, address


def left_behind(folder: Path, backend: Backend | None, fresh: bool) -> Left:
    """Jobs that an earlier command has handed out in a run folder and that this one is to go on with.

    Raises:
        RequestError: they were handed out to another place, or what they do is to be started over.
    """
    found = Left()
    for name in registry.names("backends") if (folder / JOBS).exists() else ():
        each = registry.backend(name)
        left = each.left(folder / JOBS)
        if not left.there:
            continue
        if each is not backend or fresh:
            count = len(left.there)
            raise RequestError(
                f"jobs that an earlier command has handed out to {each.name} are still there",
                place=str(folder / JOBS),
                got=", ".join(sorted(left.there)[:8]) + (f" and {count - 8} more" if count > 8 else ""),
                allowed=f"--on {each.name} without --fresh, which follows them to their end",
                fix=f"{left.end} ends them; then run this command again",
            )
        found = left
    return found


@dataclass
class Followed:
    """A job that was handed out, and what its worker has told of it.

    Args:
        lines: Bytes of its events that were read.
        over: How it came to its end: `done`, `failed` or `interrupted`; None as long as it did not.
        fault: Why it cannot be done, in place of an end.
        left: Seconds that its worker still needs, and when it said so; before it has begun those of the plan.
    """

    path: Path
    job: Job
    lines: int = 0
    tries: int = 1
    begun: bool = False
    over: str | None = None
    fault: Failed | None = None
    left: tuple[float, float] | None = None

    def read(self) -> Iterator[Event]:
        """The events that were written since."""
        try:
            with self.path.with_suffix(".jsonl").open("rb") as file:
                file.seek(self.lines)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.lines += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            event = from_line(line)
            if event is not None:
                self._note(event)
                yield event

    def _note(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            # Of another worker, where a scheduler has started the job again by itself.
            self.begun, self.over, self.fault = True, None, None
        elif isinstance(event, RunFinished):
            self.over = event.status
        elif isinstance(event, Failed) and event.cell is None and event.stage is None:
            self.over, self.fault = "failed", event
        elif isinstance(event, (StageStarted, Stepped)) and event.seconds_left is not None:
            self.left = (event.seconds_left, time.monotonic())

    def again(self) -> None:
        """Before it is handed out once more."""
        self.tries, self.begun, self.over, self.fault = self.tries + 1, False, None, None

    def seconds_left(self) -> float | None:
        """What is left of it, as far as anybody can say."""
        if self.left is None:
            return self.job.resources.seconds
        seconds, told = self.left
        return max(0.0, seconds - (time.monotonic() - told))


class Spread:
    """A flow whose stages are done by workers.

    Args:
        flow: The stages and cells.
        backend: Who does the jobs.
        address: Where.
        left: Jobs of an earlier command, which are followed to their end before anything else.
    """

    def __init__(self, flow: Flow, backend: Backend, address: str, left: Left | None = None) -> None:
        self.left = left or Left()
        self.flow, self.context, self.progress = flow, flow.context, flow.context.progress
        self.backend, self.address = backend, address
        self.folder = self.context.run.folder / JOBS
        self.most_at_once = 0
        self._count = 0
        self._open: dict[str, Followed] = {}
        self._workers: Workers | None = None
        self._heard, self._patience = time.monotonic(), QUIET

    def run(self) -> None:
        """Every cell.

        Raises:
            RequestError: jobs cannot be handed out, or a machine does not see the run folder.
            KeyboardInterrupt: after all workers have ended, or were left to their scheduler.
        """
        if not self.left.there:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._go_on()
            for whole, part in groupby(self.flow.stages, lambda stage: stage.scope == "run"):
                stages = tuple(part)
                for stage in stages if whole else ():
                    self._whole(stage)
                if not whole:
                    self._cells(stages)
        except KeyboardInterrupt:
            if self._workers is None or not self._workers.leave():
                self._stop()
            raise
        except BaseException:
            self._stop()
            raise
        self._stop()

    def _go_on(self) -> None:
        """Follows the jobs that an earlier command has left to itself; of those that are gone, the ones of which nobody
        has seen the end are handed out again."""
        if not self.left.there:
            return
        jobs = {name: Job.read(self.folder / f"{name}.json") for name in sorted(self.left.there | self.left.gone)}
        recipe = self.context.recipe.model_dump(mode="json", exclude_unset=True)
        cells = {cell.name for cell in self.context.cells}
        if any(job.recipe != recipe or not cells.issuperset(job.cells) for job in jobs.values()):
            raise RequestError(
                f"{self.backend.name} still has jobs of an earlier command that was another one",
                place=str(self.folder),
                allowed="the same recipe, settings and domains: they are followed to their end",
                fix=f"run the same command as before; or {self.left.end}, and then run this one again",
            )
        self._count = max(int(path.name.partition("-")[0]) for path in self.folder.glob("[0-9]*-*.json"))
        self._open = {name: Followed(self.folder / f"{name}.json", job) for name, job in jobs.items()}
        for name in self.left.gone:
            for _ in (followed := self._open[name]).read():
                pass  # what its cells have come to is in their folders
            if followed.over in ("done", "failed"):
                del self._open[name]
        count = len(self._open)
        self.progress.say(f"going on with {count} job{'s' * (count > 1)} that an earlier command has handed out")
        self._workers = self.backend.open(self.address, self.folder, self.progress.say)
        self._until_over()

    def _stop(self) -> None:
        if self._workers is None:
            return
        under_way = [each for each in self._open.values() if each.begun]
        if under_way:
            self.progress.say(f"ending {len(under_way)} worker{'s' * (len(under_way) > 1)}, which save what they have")
        self._workers.stop()
        for followed in self._open.values():
            self._follow(followed)
        self._open.clear()

    # --- which jobs there are ----------------------------------------------------------------------------------------

    def _cells(self, stages: Sequence[Stage]) -> None:
        """Stages of cells: up to the plan by this process, the others by workers."""
        planning = next((number for number, stage in enumerate(stages, 1) if Plan in stage.records), 0)
        for cell in self.context.cells if planning else ():
            self.flow.turn_of(cell, stages[:planning])
        others = stages[planning:]
        cells = [cell for cell in self.context.cells if self._waits(cell, others)]
        groups = self._together(cells, others)
        if planning and len(groups) < len(cells):
            self._say_together(groups)
        if not planning and self.most_at_once and not any(stage.scope == "group" for stage in others):
            # Each worker loads the libraries again, which may take longer than these stages.
            size = -(-len(groups) // self.most_at_once)
            groups = [[*chain(*groups[place : place + size])] for place in range(0, len(groups), size)]
        self._do([self._job(group, others) for group in groups])

    def _whole(self, stage: Stage) -> None:
        """A stage of the whole run, by one worker: it may want a device that this machine lacks."""
        status = self.flow.status
        cells = [cell for cell in self.context.all_cells if status.may_begin(cell, stage)]
        if cells and not all(status.is_done(cell, stage, cells) for cell in cells):
            self._do([self._job([cell for cell in self.context.cells if cell in cells] or cells, [stage])])

    def _waits(self, cell: Cell, stages: Sequence[Stage]) -> bool:
        """Whether something is left to do that can be begun."""
        first = next((stage for stage in stages if not self.flow.status.is_done(cell, stage)), None)
        return first is not None and cell.planned and self.flow.status.may_begin(cell, first)

    def _together(self, cells: Sequence[Cell], stages: Sequence[Stage]) -> list[list[Cell]]:
        """Cells that share their work, or of which one takes what another has made, each group for one worker."""
        group = {cell: [cell] for cell in cells}
        for stage in (stage for stage in stages if stage.scope == "group"):
            seen: set[Cell] = set()
            for cell in cells:
                alike = [other for other in cells if other.target == cell.target and other != cell]
                found = shares(stage, cell, alike) if cell not in seen else [cell]
                found += [other for other in cells if other.target != cell.target and stage.follows(cell, other)]
                seen |= {*found}
                for other in found:
                    if group[other] is not group[cell]:
                        group[cell].extend(group[other])
                        group |= dict.fromkeys(group[other], group[cell])
        order = {cell: number for number, cell in enumerate(cells)}
        return [sorted(each, key=order.__getitem__) for each in {id(each): each for each in group.values()}.values()]

    def _say_together(self, groups: Sequence[Sequence[Cell]]) -> None:
        shared = ["; ".join(cell.name for cell in group) for group in groups if len(group) > 1]
        self.progress.say(
            f"one job each, as they share their work: {' | '.join(shared)}\n"
            "  train.together=false makes a job of each cell"
        )

    def _job(self, cells: Sequence[Cell], stages: Sequence[Stage]) -> Job:
        self._count += 1
        context, first = self.context, cells[0]
        more = f"-and-{len(cells) - 1}-more" if len(cells) > 1 else ""
        return Job(
            name=f"{self._count:04d}-{stages[0].name}-{first.domain}-{first.target}{more}",
            recipe=context.recipe.model_dump(mode="json", exclude_unset=True),
            domains=tuple(context.domains),
            cells=tuple(cell.name for cell in cells),
            stages=tuple(stage.name for stage in stages),
            folder=str(context.run.folder),
            recipe_folder=str(context.recipe_folder),
            place=str(Path.cwd()),
            resources=resources(cells, stages),
        )

    # --- how they go -------------------------------------------------------------------------------------------------

    def _do(self, jobs: Sequence[Job]) -> None:
        """Hands jobs out and follows them until all have come to an end."""
        if not jobs:
            return
        if self._workers is None:
            self._workers = self.backend.open(self.address, self.folder, self.progress.say)
        self._open = {job.name: Followed(self.folder / f"{job.name}.json", job) for job in jobs}
        for followed in self._open.values():
            followed.job.write(followed.path)
        self._workers.submit({followed.path: followed.job for followed in self._open.values()})
        self._until_over()

    def _until_over(self) -> None:
        """Follows the jobs that are handed out."""
        assert self._workers is not None
        asked = self._heard = time.monotonic()
        while self._open:
            for followed in list(self._open.values()):
                self._follow(followed)
                if followed.over in ("done", "failed"):
                    self._settle(followed)
            self._say_quiet()
            if time.monotonic() - asked >= self.backend.seconds_between:
                asked = time.monotonic()
                for name, words in self._workers.ended().items():
                    if name in self._open:
                        self._ended(self._open[name], words)
            time.sleep(max(WAIT, WAIT_FOR_EACH * len(self._open)))

    def _follow(self, followed: Followed) -> None:
        """Tells on what its worker has told."""
        for event in followed.read():
            self._heard, self._patience = time.monotonic(), QUIET
            if isinstance(event, (RunStarted, RunFinished)) or event is followed.fault:
                continue
            if isinstance(event, (StageStarted, Stepped)):
                event = replace(event, seconds_left=self._left())
            self.progress.tell(event)
        self.most_at_once = max(self.most_at_once, sum(each.begun and not each.over for each in self._open.values()))

    def _say_quiet(self) -> None:
        """What is waited for, where no worker has said anything for long."""
        quiet = time.monotonic() - self._heard
        if quiet < self._patience or not self._open:
            return
        self._patience *= 2
        waiting = [each for each in self._open.values() if not each.begun]
        busy = [each for each in self._open.values() if each.begun]
        words = [f"{len(waiting)} waiting to be started ({_first(waiting)})"] if waiting else []
        words += [f"{len(busy)} under way ({_first(busy)})"] if busy else []
        self.progress.say(
            f"no worker has said anything for {show_seconds(quiet)}: {', '.join(words)}; "
            f"what they print is in {self.folder}"
        )

    def _left(self) -> float | None:
        """Seconds until these jobs are done: as long as the longest of them, and as all of them by so many workers."""
        known = [each.seconds_left() for each in self._open.values() if not each.over]
        seconds = [each for each in known if each is not None]
        if not seconds:
            return None
        workers = sum(each.begun and not each.over for each in self._open.values())
        return max(*seconds, sum(seconds) / max(1, workers), 0.0)

    def _ended(self, followed: Followed, words: str) -> None:
        """Of a worker that is no longer there: another one goes on where it has not come to the end."""
        self._follow(followed)
        if followed.over in ("done", "failed"):
            self._settle(followed)
            return
        why = "was interrupted" if followed.over else "was lost"
        words = words or last_words(followed.path)
        lost = f"{_named(followed.job)}: its worker {why}{f' ({words})' if words else ''}"
        if followed.tries > RETRIES:
            fix = f"see {log_of(followed.path)}; run again, the command goes on from the last checkpoint"
            text = f"{lost}, {followed.tries} times\n  fix:     {fix}"
            followed.fault = Failed(f"the worker {why} {followed.tries} times", fix, text)
            self._settle(followed)
            return
        self.progress.say(f"{lost}; started again from what is saved ({followed.tries} of {RETRIES})")
        followed.again()
        assert self._workers is not None
        self._workers.submit({followed.path: followed.job})

    def _settle(self, followed: Followed) -> None:
        """It is over. Cells that nothing was said of have failed for the reason for which it could not be done."""
        del self._open[followed.job.name]
        fault = followed.fault
        if fault is None:
            return
        named = [cell for cell in self.context.cells if cell.name in followed.job.cells]
        stages = [stage for stage in self.flow.stages if stage.name in followed.job.stages]
        self.progress.tell(replace(fault, cell=followed.job.cells[0]))
        for cell in named:
            stage = next((stage for stage in stages if not self.flow.status.is_done(cell, stage)), None)
            if stage is not None and cell.state.status in ("pending", "interrupted"):
                self.flow.status.note(cell, stage, fault.text, "failed")


def _first(jobs: Sequence[Followed]) -> str:
    return _named(jobs[0].job) + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")


def _named(job: Job) -> str:
    return job.cells[0] if len(job.cells) == 1 else f"{job.cells[0]} and {len(job.cells) - 1} more"


def resources(cells: Sequence[Cell], stages: Sequence[Stage]) -> Resources:
    """What a worker needs for stages of these cells, as their plans say."""
    plans = [cell.plan.cells[0] for cell in cells if cell.has(Plan)]
    targets = [catalogue.target(name) for name in sorted({plan.trains_on for plan in plans})]
    on_cpu = all(target.on_cpu for target in targets)
    phases = [phase for plan in plans for phase in (*plan.memory, *filter(None, [plan.merge]))]
    peak = max((phase.total_bytes if on_cpu else phase.host_bytes for phase in phases), default=0)
    cores = max((target.cores or CPUS_BESIDE_A_GPU for target in targets), default=1)
    return Resources(
        cpus=cores if on_cpu else min(cores, CPUS_BESIDE_A_GPU),
        gpus=0 if on_cpu else 1,
        memory_bytes=LIBRARIES_BYTES + peak,
        seconds=_seconds(cells, stages),
    )


def _seconds(cells: Sequence[Cell], stages: Sequence[Stage]) -> float | None:
    """The sum of what is known of stages of cells."""
    found = []
    for cell in cells:
        for stage in stages:
            with suppress(HfadaptError, LookupError, OSError):
                found.append(stage.seconds(cell))
    known = [each for each in found if each is not None]
    return sum(known) if known else None
