"""The one training loop, on `accelerate.Accelerator`, for one adapter or several that share a base.

Everything that decides the result is a pure function of the recipe: the order of rows (batches.py), the learning rate
of a step, the normalisation of the loss over all labels of the effective batch. So a resumed run equals an
uninterrupted one, two processes equal one, an adapter trained with others equals one trained alone, and evaluating in
between changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.core import registry
from hfadapt.core.errors import DataError, RequestError, RunError
from hfadapt.core.progress import Part, Progress, Silent, Stepped, Validated
from hfadapt.fast import FastPath, product_dtype
from hfadapt.hardware.shards import Shards
from hfadapt.modalities import Example
from hfadapt.objectives import Objective
from hfadapt.objectives.supervised import KIND as SUPERVISED
from hfadapt.records.stages import Step
from hfadapt.tasks import Task
from hfadapt.train.job import Batch, Job
from hfadapt.train.joint import joint_gradients, joint_loss
from hfadapt.train.loss_scale import grow, unscale
from hfadapt.train.passes import Passes
from hfadapt.train.processes import check_start, reduce_gradients
from hfadapt.train.trial import PLAIN, Trial

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hfadapt.hardware.processes import Interrupt, World
    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.train.halving import Halving

REFERENCE_AGREES = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""How far the loss before step 1 may be from what it has to be, by the dtype of the products: in 16 bits a row's
log-probabilities depend a little on the rows beside it."""


class Stopped(Exception):
    """Within a step, which may take longer than whoever stops the program waits."""


Batches = Callable[[Sequence[Example]], Iterator[tuple[Sequence[int], Mapping[str, torch.Tensor]]]]


@dataclass
class Loop:
    """Trains the adapters of `jobs` on one model.

    Args:
        accelerator: Knows the processes and devices.
        task: Makes batches and losses.
        model: The adapted model.
        fast: The fast path, or None for the libraries' own forward passes.
        objective: What is minimised, with its options.
        packing: Pack rows into sequences, where the fast path can.
        loss_in_pieces: Make a language model's loss and its gradient on labelled positions alone, in pieces.
        refer: Called once the path is settled, for objectives that `refer`: it gives a job's rows what the model says
            of them, by a function that forms batches of examples on that path.
        frozen_cache: Run layers below the first trained one once for each row, and keep their outputs on disk.
        stop: Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.
        interrupted: Asked while rows are collected and within a step, in one process alone; True raises
            KeyboardInterrupt at once, of a step after a checkpoint of the one before it.
        halving: Trains further jobs, the tries of a search, on the same rows, and leaves the best of them in `jobs`.
        decided: Told what was decided of a job's settings on the way.
        held_bytes: How much memory training holds now.
        planned_bytes: How much the plan gives it.
        shards: The model's layers, where they are divided over the processes.
    """

    accelerator: Accelerator
    task: Task
    model: Any
    jobs: Sequence[Job]
    pad_token_id: int
    fast: FastPath | None = None
    objective: Objective = SUPERVISED
    objective_options: Any = None
    packing: bool = True
    loss_in_pieces: bool = True
    frozen_cache: bool = False
    refer: Callable[[Job, Batches], None] | None = None
    progress: Progress = field(default_factory=Silent)
    stop: Callable[[], bool] = lambda: False
    interrupted: Callable[[], bool] = lambda: False
    halving: Halving | None = None
    decided: Callable[[Job], None] = lambda _: None
    held_bytes: Callable[[], int | None] = lambda: None
    planned_bytes: int | None = None
    shards: Shards | None = None

    def __post_init__(self) -> None:
        about = (self.accelerator, self.task, self.model, self.pad_token_id, self.fast, self.objective)
        self.passes = Passes(*about, shards=self.shards)
        self.frozen_layers = 0
        self.path = PLAIN
        self._scaled = False

    @classmethod
    def of(
        cls,
        locks: Sequence[Lock],
        base: Base,
        model: Any,
        jobs: Sequence[Job],
        accelerator: Accelerator,
        products: torch.dtype | None = None,
        **others: Any,
    ) -> Loop:
        """The loop that the locks of the jobs ask for; what all must have alike is taken from the first.

        Args:
            base: What `model` was made of.
            products: dtype in which frozen float32 weights are multiplied; None keeps theirs.
            others: Further fields of the loop, or some in place of what the locks say.
        """
        lock, wanted = locks[0], locks[0].train.fast
        fast = FastPath(
            model,
            products,
            tuple(job.name for job in jobs),
            lock.train.resident_layers,
            (*wanted.without, *registry.task(lock.task).without),
            # By its own number of steps each would decide for itself.
            any(each.train.fast.compile for each in locks),
        )
        objective = registry.objective(lock.train.objective)
        fields: dict[str, Any] = {
            "task": registry.task(lock.task),
            "fast": fast if wanted.used else None,
            "objective": objective,
            "objective_options": objective.Options.model_validate(lock.train.objective_options),
            "packing": lock.data.packing,
            "loss_in_pieces": wanted.loss,
            "frozen_cache": any(each.train.fast.frozen_cache for each in locks),
            "shards": base.shards,
        }
        return cls(accelerator, model=model, jobs=jobs, pad_token_id=base.pad_token_id, **(fields | others))

    @classmethod
    def in_run(
        cls,
        locks: Sequence[Lock],
        base: Base,
        model: Any,
        jobs: Sequence[Job],
        world: World,
        interrupt: Interrupt,
        **others: Any,
    ) -> Loop:
        """`of`, in a run: with products as its device has them, and stopped by a signal to any of its processes."""
        wanted = locks[0].train.fast
        low_rank = wanted.bfloat16 and wanted.low_rank
        signals = {
            "stop": lambda: world.any(bool(interrupt)),
            "interrupted": lambda: world.size == 1 and bool(interrupt),
        }
        products = product_dtype(locks[0].dtype, world.device) if low_rank else None
        return cls.of(locks, base, model, jobs, world.accelerator, products, **(signals | others))

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains all jobs to the end and leaves the results in the model.

        Raises:
            RunError: loss or gradient is not finite, or gradients are missing; the last good state is checkpointed.
                With several jobs the others go on, and the error is kept in `Job.error`.
            KeyboardInterrupt: `stop` said so; checkpoints were written.
        """
        for job in self.jobs:
            self.begin(job)
        check_start(self.accelerator, self.jobs)
        if self.task.joint and not self.objective.joint:
            raise RequestError(
                f"{self.task.name} is learned from whole batches, which this objective does not know",
                place="train.objective",
                got=self.objective.name,
                fix="leave train.objective out",
            )
        moves = self.objective.moves(self.objective_options)
        if moves and (len(self.jobs) > 1 or any(job.settings.patience for job in self.jobs)):
            raise RequestError(
                "the model itself changes while it is trained, so no earlier state of it can be the result",
                place="train.objective_options",
                got="train.patience" if len(self.jobs) == 1 else "several adapters on one base",
                fix="leave train.patience out, and set train.together: false",
            )
        self.passes.started = self.objective.begin(self.model, self.task, self.objective_options)
        self.model.train()
        trial = Trial(self.passes, self.jobs, self.progress)
        with ExitStack() as stack:
            fast_path = trial.fast_path(packing=self.packing, loss_in_pieces=self.loss_in_pieces)
            self.path = stack.enter_context(fast_path)
            if self.frozen_cache and not moves:
                self.frozen_layers = stack.enter_context(trial.frozen_outputs(self.interrupted))
            if self.frozen_layers:
                self.path += f", {self.frozen_layers} frozen layers run once"
            self._scaled = self.passes.products() == torch.float16
            if self.refer and self.objective.refers:
                for job in self.jobs:
                    self._refer(job, self.refer)
                if self.halving:
                    self.halving.share(self.jobs[0])
            if self.halving:
                self.jobs = [self.halving.run(self)]
            self.train(self.jobs)
        self.objective.end(self.passes.started)
        for job in self.jobs:
            job.take_best()
        self.model.eval()

    def _refer(self, job: Job, refer: Callable[[Job, Batches], None]) -> None:
        """Gives a job's rows what the model says of them before step 1, and proves it where nothing was learned yet.

        Raises:
            RunError: the loss before step 1 is not what it has to be.
        """

        def batches(examples: Sequence[Example]) -> Iterator[tuple[list[int], Mapping[str, torch.Tensor]]]:
            places = {id(example): place for place, example in enumerate(examples)}
            for micro in self.passes.by_length(job, examples, alone=True):
                with self.passes.batch_context(micro):
                    yield [places[row.key] for row in micro.rows], micro.inputs

        self.model.eval()
        with self.passes.scoring():
            refer(job, batches)
        known = self.objective.before(self.passes.started)
        if known is not None and job.state.step == 0:
            found, due = self._loss_before(job, known[0]), known[1]
            if not abs(found - due) <= REFERENCE_AGREES[self.passes.products()]:
                raise RunError(
                    "the loss before step 1 is not what it is before anything was learned: the reference is of another "
                    "model than the one that is trained",
                    place=str(job.folder),
                    got=f"{found:.4f}",
                    allowed=f"{due:.4f}",
                    fix="train again with --fresh; if it happens again, report it with the recipe and lock.yaml",
                )
        self.model.train()

    def _loss_before(self, job: Job, started: Any) -> float:
        """The mean loss of the rows of step 1 without gradients and dropout.

        Args:
            started: What the objective is given in place of what it began with.
        """
        batch, total = job.next_batch(), torch.zeros((), device=self.accelerator.device)
        own, self.passes.started = self.passes.started, started
        with self.passes.scoring():
            for rows in self.passes.micro_batches([(job, batch)]):
                micro = self.passes.collate(rows)
                with self.passes.batch_context(micro):
                    total += self.passes.loss(micro, {id(job): 1.0})[1][id(job)]
        self.passes.started = own
        return float(self.accelerator.reduce(total, "sum")) / self._count(batch.examples)

    def _count(self, examples: Sequence[Example]) -> int:
        return sum(map(self.objective.count, examples))

    def begin(self, job: Job) -> None:
        """Gives a job its optimizer; it goes on from its newest checkpoint, if there is one."""
        job.require_room()
        job.make_optimizer()
        job.resume(self.progress.say)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            job.trim_log()

    def train(self, jobs: Sequence[Job]) -> None:
        """Trains jobs side by side to their ends, or to where they wait.

        Raises:
            KeyboardInterrupt: `stop` said so; checkpoints were written.
        """
        while active := [job for job in jobs if job.active]:
            try:
                self._step(active)
            except Stopped:
                # Nothing of this step has been taken: what stands is the end of the one before it.
                self.save([job for job in jobs if job.error is None and job.state.step])
                raise KeyboardInterrupt from None
            for job in active:
                last = job.state.step == job.total_steps
                due = job.pause is None and (last or self._due(job, "evaluate_every_steps"))
                if job.error is None and job.validation and due:
                    self._validate(job)
                if job.pause is None and job.settings.time is not None and job.state.step == job.measured_steps:
                    self._correct(job)
            if self.stop():
                self.save([job for job in jobs if job.error is None])
                raise KeyboardInterrupt
            self.save([job for job in active if job.active and self._due(job, "checkpoint_every_steps")])

    def _correct(self, job: Job) -> None:
        """Plans the steps again once their speed is known, so that training ends at its time."""
        planned, limit = job.total_steps, job.settings.time or 0.0
        job.state.seconds = self.agreed(job.state.seconds)
        job.end_in(limit - job.state.seconds)
        self.decided(job)
        if job.total_steps != planned:
            self.progress.say(f"{job.title or 'training'}: {job.total_steps:,} steps fit in the time, not {planned:,}")

    def agreed(self, seconds: float) -> float:
        """The mean of all processes: none may decide by its own clock."""
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        found = torch.tensor(seconds, dtype=exact, device=self.accelerator.device)
        return float(self.accelerator.reduce(found, "mean"))

    @staticmethod
    def _due(job: Job, setting: str) -> bool:
        return bool(job.state.step % getattr(job.settings, setting) == 0)

    def _step(self, active: Sequence[Job]) -> None:
        started = time.perf_counter()
        self._at(active[0])
        batches = [(job, job.next_batch()) for job in active]
        sums = self._gradients(batches)
        while self._scaled and not all(unscale(job, float(sums[id(job)])) for job in active):
            for job in active:
                for parameter in job.parameters.values():
                    parameter.grad = None
            sums = self._gradients(batches)
        updates, losses = [], [float(sums[id(job)]) / self._count(found.examples) for job, found in batches]
        for (job, found), loss in zip(batches, losses, strict=True):
            try:
                if self.halving and job.pause is not None:
                    self.halving.diverged(loss, job, losses)
                norm, rate = job.update(found, loss)
            except RunError as error:
                self._give_up(job, error)
                continue
            updates.append((job, found, loss, norm, rate))
            if self._scaled:
                grow(job)
        if self.passes.fast:
            self.passes.fast.refresh()
        seconds = (time.perf_counter() - started) / sum(job.tokens(found) for job, found in batches)
        for job, found, loss, norm, rate in updates:
            # Of a step's time every job gets the share of its tokens.
            self._account(job, job.account(found, loss, norm, rate, seconds * job.tokens(found)))
        if updates and self.accelerator.is_main_process:
            self._tell([job for job, *_ in updates])

    def _gradients(self, batches: Sequence[tuple[Job, Batch]]) -> dict[int, torch.Tensor]:
        """Works out the gradients of a step, times their loss scales; the summed losses of each job by its id."""
        sums = {id(job): torch.zeros((), device=self.accelerator.device) for job, _ in batches}
        scales = {id(job): job.state.loss_scale if self._scaled else 1.0 for job, _ in batches}
        weights = {id(job): scales[id(job)] / self._count(found.examples) for job, found in batches}
        if self.task.joint:
            sums = joint_gradients(self.passes, batches, weights)
            reduce_gradients(self.accelerator, [job for job, _ in batches])
            return sums
        for i, rows in enumerate(self.passes.micro_batches(batches)):
            if i and self.interrupted():
                raise Stopped
            with self.passes.noise(f"{batches[0][0].settings.seed}/{batches[0][1].step}/{i}"):
                micro = self.passes.collate(rows)
                # Checkpointed layers run again in the backward pass and ask for the documents again.
                with self.passes.batch_context(micro):
                    total, parts = self.passes.loss(micro, weights)
                    total.backward()
            for key, part in parts.items():
                sums[key] += part
            # Nothing of this graph may be alive while the next one is made.
            del total, parts
        reduce_gradients(self.accelerator, [job for job, _ in batches])
        return {key: self.accelerator.reduce(total, "sum") for key, total in sums.items()}

    def _give_up(self, job: Job, error: RunError) -> None:
        """The last good state is kept; alone the error ends the run, with others only this job."""
        if job.state.step:
            self.save([job])
        for parameter in job.parameters.values():
            parameter.grad = None
        job.error = error
        if self.halving and job.pause is not None:
            self.progress.say(f"{job.title} is out: {error.what}")
            return
        if len(self.jobs) == 1:
            raise error
        self.progress.say(f"training of {job.title} failed; continuing with the other domains:\n{error}")

    def _account(self, job: Job, step: Step) -> None:
        self._write(job, step)
        values = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
        self.accelerator.log({self._tracked(job, name): value for name, value in values.items()}, step=step.step)

    def _tell(self, jobs: Sequence[Job]) -> None:
        """The step that these have done."""
        parts = [Part(job.cell, job.state.step, job.last_step, job.state.last_loss or 0.0, job.trial) for job in jobs]
        seconds = sum(job.state.seconds - job.state.frozen_seconds for job in jobs)
        left = sum((job.last_step - job.state.step) * job.seconds_per_step for job in self.jobs)
        speed = sum(job.state.tokens for job in jobs) / seconds
        self.progress.tell(Stepped(tuple(parts), speed, left, self.held_bytes(), self.planned_bytes))

    def _tracked(self, job: Job, name: str) -> str:
        return name if len(self.jobs) == 1 else f"{job.title}/{name}"

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_loss(self, job: Job, rows: Sequence[Example] | None = None) -> float:
        """Mean loss per label over the job's validation rows, or some of them, without gradients, shared between the
        processes."""
        rows = job.validation if rows is None else rows
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        total = torch.zeros(2, dtype=exact)
        self.model.eval()
        with self.passes.scoring():
            if self.task.joint:
                loss = joint_loss(self.passes, job, rows)
                self.model.train()
                return loss
            for micro in self.passes.by_length(job, rows):
                with self.passes.batch_context(micro):
                    _, sums = self.passes.loss(micro, {id(job): 1.0})
                total[0] += float(sums[id(job)])
                total[1] += self._count([row.example for row in micro.counted])
        self.model.train()
        total = self.accelerator.reduce(total.to(self.accelerator.device), "sum")
        if not total[1]:
            raise DataError("the validation rows have no label", place=str(job.folder / "data/validation.parquet"))
        return float(total[0] / total[1])

    def _at(self, job: Job) -> None:
        self.objective.at(self.passes.started, job.state.step / job.total_steps)

    def _validate(self, job: Job) -> None:
        self._at(job)
        loss = self.validation_loss(job)
        self._write(job, job.validated(loss))
        self.accelerator.log({self._tracked(job, "validation_loss"): loss}, step=job.state.step)
        if self.accelerator.is_main_process:
            self.progress.tell(Validated(job.cell, job.state.step, loss, not job.active, job.trial))

    # --- small parts -------------------------------------------------------------------------------------------------

    def _write(self, job: Job, step: Step) -> None:
        if self.accelerator.is_main_process:
            job.write(step)

    def save(self, jobs: Sequence[Job]) -> None:
        """Writes checkpoints."""
        if jobs and self.accelerator.is_main_process:
            for job in jobs:
                job.save()
        if jobs:
            self.accelerator.wait_for_everyone()
