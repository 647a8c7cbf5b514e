"""The one training loop, on `accelerate.Accelerator`, for one adapter or several that share a base.

Everything that decides the result is a pure function of the recipe: the order of rows (batches.py), the learning rate
of a step, the normalisation of the loss over all labels of the effective batch. So a resumed run equals an
uninterrupted one, two processes equal one, an adapter trained with others equals one trained alone, and evaluating in
between changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.batches import micro_batches
from hfadapt.errors import DataError, RunError
from hfadapt.fast import Documents, FastPath, batch, labelled_loss, one_line, plain_head, side_by_side
from hfadapt.progress import Progress, Silent
from hfadapt.records import Step
from hfadapt.tasks import Example, Task, in_line
from hfadapt.train.job import Batch, Job

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_ROWS = 4
"""Rows whose loss is worked out on both paths before the first step."""
AGREE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference of that loss, by the dtype of the products."""

Row = tuple[Job, Example]


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together.

    Args:
        inputs: As the task's model takes them, on the device.
        documents: Where each row's tokens are.
        jobs: The job of each row.
    """

    inputs: Mapping[str, torch.Tensor]
    documents: Documents
    jobs: tuple[Job, ...]


@dataclass
class Loop:
    """Trains the adapters of `jobs` on one model.

    Args:
        accelerator: Knows the processes and devices.
        task: Makes batches and losses.
        model: The adapted model.
        fast: The fast path, or None for the libraries' own forward passes.
        packing: Put rows one after the other in one line of tokens, where the fast path can.
        stop: Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.
    """

    accelerator: Accelerator
    task: Task
    model: Any
    jobs: Sequence[Job]
    pad_token_id: int
    fast: FastPath | None = None
    packing: bool = True
    progress: Progress = field(default_factory=Silent)
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())
        self._line = self._loss_in_pieces = False
        self.path = "plain"

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains all jobs to the end and leaves the results in the model.

        Raises:
            RunError: loss or gradient is not finite, or gradients are missing; the last good state is checkpointed.
                With several jobs the others go on, and the error is kept in `Job.error`.
            KeyboardInterrupt: `stop` said so; checkpoints were written.
        """
        for job in self.jobs:
            job.make_optimizer()
            job.resume(self.progress.say)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                job.trim_log()
        self._check_processes()
        self.model.train()
        with self._fast_path():
            self._steps()
        for job in self.jobs:
            job.take_best()
        self.model.eval()

    def _steps(self) -> None:
        while active := [job for job in self.jobs if job.active]:
            self._step(active)
            for job in active:
                last = job.state.step == job.total_steps
                if job.error is None and job.validation and (last or self._due(job, "evaluate_every_steps")):
                    self._validate(job)
            if self.stop():
                self._save([job for job in self.jobs if job.error is None])
                raise KeyboardInterrupt
            self._save([job for job in active if job.active and self._due(job, "checkpoint_every_steps")])

    @staticmethod
    def _due(job: Job, setting: str) -> bool:
        return bool(job.state.step % getattr(job.settings, setting) == 0)

    def _step(self, active: Sequence[Job]) -> None:
        started = time.perf_counter()
        batches = [(job, job.next_batch()) for job in active]
        sums = {id(job): torch.zeros((), device=self.accelerator.device) for job in active}
        weights = {id(job): 1.0 / found.labels for job, found in batches}
        for i, rows in enumerate(self._micro_batches(batches)):
            with self._noise(f"{batches[0][0].settings.seed}/{batches[0][1].step}/{i}"):
                micro = self._collate(rows)
                # Checkpointed layers run again in the backward pass and ask for the documents again.
                with self._announced(micro):
                    total, parts = self._loss(micro, weights)
                    total.backward()
            for key, part in parts.items():
                sums[key] += part
            # Nothing of this graph may be alive while the next one is made.
            del total, parts
        self._reduce_gradients(active)
        updates = []
        for job, found in batches:
            loss = float(self.accelerator.reduce(sums[id(job)], "sum")) / found.labels
            try:
                norm, rate = job.update(found, loss)
            except RunError as error:
                self._give_up(job, error)
                continue
            updates.append((job, found, loss, norm, rate))
        if self.fast:
            self.fast.refresh()
        seconds = (time.perf_counter() - started) / sum(job.tokens(found) for job, found in batches)
        for job, found, loss, norm, rate in updates:
            # Of a step's time every job gets the share of its tokens.
            self._account(job, job.account(found, loss, norm, rate, seconds * job.tokens(found)))

    def _give_up(self, job: Job, error: RunError) -> None:
        """The last good state is kept; alone the error ends the run, with others only this job."""
        if job.state.step:
            self._save([job])
        for parameter in job.parameters.values():
            parameter.grad = None
        if len(self.jobs) == 1:
            raise error
        job.error = error
        self.progress.say(f"{job.title} is given up, the others go on:\n{error}")

    def _micro_batches(self, batches: Sequence[tuple[Job, Batch]]) -> Iterator[list[Row]]:
        """Rows of all jobs that go through the model together, each job's own micro-batches side by side."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        shares = []
        for job, found in batches:
            own = found.rows[rank::world]
            budget = job.settings.micro_batch_rows * max(job.lengths)
            parts = micro_batches(own, [job.lengths[row] for row in own], budget, padded=not self._line)
            shares.append([[(job, job.train[row]) for row in part] for part in parts])
        for i in range(max(map(len, shares))):
            if rows := [row for share in shares if i < len(share) for row in share[i]]:
                yield rows

    def _collate(self, rows: Sequence[Row]) -> MicroBatch:
        jobs, examples = [job for job, _ in rows], [example for _, example in rows]
        lengths, names = [len(example.input_ids) for example in examples], [job.name for job in jobs]
        if self._line:
            documents = one_line(lengths, names)
            found = in_line(examples, documents.tokens, self.pad_token_id)
        else:
            found = self.task.collate(examples, self.pad_token_id)
            documents = side_by_side(lengths, max(lengths), names)
        inputs = {name: tensor.to(self.accelerator.device) for name, tensor in found.items()}
        return MicroBatch(inputs, documents, tuple(jobs))

    def _loss(self, micro: MicroBatch, weights: Mapping[int, float]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The weighted sum to go backward from, and the plain sum of each job's losses by the job's id."""
        device = self.accelerator.device
        by_row = torch.tensor([weights[id(job)] for job in micro.jobs], device=device)
        if self._loss_in_pieces:
            total, losses, rows = labelled_loss(self.model, micro.inputs, by_row)
        else:
            losses, rows = self.task.losses(self.model, micro.inputs)
            total = (losses * by_row[rows]).sum()
        sums = torch.zeros(len(micro.jobs), device=device).index_add_(0, rows, losses.detach().float())
        parts: dict[int, torch.Tensor] = {}
        for job, part in zip(micro.jobs, sums, strict=True):
            parts[id(job)] = parts.get(id(job), 0.0) + part
        return total, parts

    def _announced(self, micro: MicroBatch) -> AbstractContextManager[None]:
        """Tells the fast path which tokens belong together."""
        return batch(micro.documents, self.fast.products) if self.fast else nullcontext()

    def _reduce_gradients(self, active: Sequence[Job]) -> None:
        """Adds up the gradients of all processes; each has divided by the labels of the whole batch already."""
        if self.accelerator.num_processes == 1:
            return
        for job in active:
            parameters = list(job.parameters.values())
            have = torch.tensor([float(p.grad is not None) for p in parameters], device=self.accelerator.device)
            have = self.accelerator.reduce(have, "sum")
            found = [p for p, count in zip(parameters, have.tolist(), strict=True) if count]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in found])
            flat = self.accelerator.reduce(flat, "sum")
            for p, part in zip(found, flat.split([p.numel() for p in found]), strict=True):
                p.grad = part.view_as(p)

    def _check_processes(self) -> None:
        """All processes start from the same parameters."""
        if self.accelerator.num_processes == 1:
            return
        own = torch.stack([p.detach().double().sum() for job in self.jobs for p in job.parameters.values()]).float()
        mean = self.accelerator.reduce(own, "mean")
        if not torch.allclose(own, mean, rtol=1e-5, atol=1e-6):
            raise RunError(
                "the processes start from different parameters",
                place="adapter",
                fix="start them on machines with the same versions of the libraries",
            )

    def _account(self, job: Job, step: Step) -> None:
        self._write(job, step)
        values = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
        self.accelerator.log({self._tracked(job, name): value for name, value in values.items()}, step=step.step)
        if self.accelerator.is_main_process:
            state = job.state
            left = sum((other.total_steps - other.state.step) * other.seconds_per_step for other in self.jobs)
            self.progress.step(state.step, job.total_steps, state.last_loss or 0.0, state.tokens / state.seconds, left)

    def _tracked(self, job: Job, name: str) -> str:
        return name if len(self.jobs) == 1 else f"{job.title}/{name}"

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_loss(self, job: Job) -> float:
        """Mean loss per label over the job's validation rows, without gradients, shared between the processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        total = torch.zeros(2, dtype=exact)
        share = sorted(job.validation[rank::world], key=lambda example: len(example.input_ids))
        lengths = [len(example.input_ids) for example in share]
        budget = 2 * job.settings.micro_batch_rows * max([*job.lengths, *lengths])
        self.model.eval()
        with torch.inference_mode():
            for part in micro_batches(range(len(share)), lengths, budget, padded=not self._line):
                micro = self._collate([(job, share[i]) for i in part])
                with self._announced(micro):
                    _, sums = self._loss(micro, {id(job): 1.0})
                total[0] += float(sums[id(job)])
                total[1] += sum(share[i].label_count for i in part)
        self.model.train()
        total = self.accelerator.reduce(total.to(self.accelerator.device), "sum")
        if not total[1]:
            raise DataError("the validation rows have no label", place=str(job.folder / "data/validation.parquet"))
        return float(total[0] / total[1])

    def _validate(self, job: Job) -> None:
        loss = self.validation_loss(job)
        self._write(job, job.validated(loss))
        self.accelerator.log({self._tracked(job, "validation_loss"): loss}, step=job.state.step)
        if self.accelerator.is_main_process:
            self.progress.validation(job.state.step, loss)

    # --- the fast path -----------------------------------------------------------------------------------------------

    @contextmanager
    def _fast_path(self) -> Iterator[None]:
        """Puts the fast path on, after it was seen to give the loss of the plain one on a few rows.

        Where it does not, attention and packing are left out, and where that does not help, all of it.
        """
        if self.fast is None:
            yield
            return
        rows = self._check_rows()
        plain = self._check_loss(rows)
        assert plain is not None
        for attention in (True, False):
            with ExitStack() as stack:
                path = stack.enter_context(self.fast.on(rows=attention))
                self._line = attention and path.attention and self.packing and self.task.packs
                self._loss_in_pieces = self._line and plain_head(self.model)
                found = self._check_loss(rows, attempt=True)
                tolerance = AGREE[self._products()]
                if found is not None and abs(found - plain) <= tolerance * max(1.0, abs(plain)):
                    self.path = path.summary(packed=self._line)
                    yield
                    return
            self._line = self._loss_in_pieces = False
        if len(self.jobs) > 1:
            raise RunError(
                "several adapters cannot be trained together on this model: its fast path gives another loss",
                place=type(self.model).__name__,
                fix="set train.together: false",
            )
        self.progress.say("this model's own forward passes are used: the fast ones give another loss")
        self.fast = None
        yield

    def _check_rows(self) -> list[Row]:
        """A short, a long and two middling rows of the first job."""
        job = self.jobs[0]
        order = sorted(range(len(job.lengths)), key=job.lengths.__getitem__)
        chosen = {order[i * (len(order) - 1) // (CHECK_ROWS - 1)] for i in range(CHECK_ROWS)}
        return [(job, job.train[row]) for row in sorted(chosen)]

    def _check_loss(self, rows: Sequence[Row], attempt: bool = False) -> float | None:
        """The mean loss of some rows; with `attempt`, None where the model cannot do it this way."""
        fast, self.fast = self.fast, self.fast if attempt else None
        self.model.eval()
        try:
            micro = self._collate(rows)
            with torch.inference_mode(), self._own_adapter(), self._announced(micro):
                _, sums = self._loss(micro, {id(rows[0][0]): 1.0})
        except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            if not attempt:
                raise
            return None
        finally:
            self.fast = fast
            self.model.train()
        return float(sums[id(rows[0][0])]) / max(1, sum(example.label_count for _, example in rows))

    @contextmanager
    def _own_adapter(self) -> Iterator[None]:
        """peft's own forward goes through the first job's adapter."""
        if len(self.jobs) > 1:
            self.model.set_adapter(self.jobs[0].name)
            for job in self.jobs:
                for parameter in job.parameters.values():
                    parameter.requires_grad_(True)
        yield

    def _products(self) -> torch.dtype:
        products = self.fast.products if self.fast else None
        return products or (torch.bfloat16 if self.model.dtype == torch.bfloat16 else self.model.dtype)

    # --- small parts -------------------------------------------------------------------------------------------------

    @contextmanager
    def _noise(self, place: str) -> Iterator[None]:
        """Dropout draws from a seed of its own, by step, micro-batch and process, and leaves the global state alone."""
        if not self._drops:
            yield
            return
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            rank = self.accelerator.process_index
            torch.manual_seed(random.Random(f"{place}/{rank}").getrandbits(63))
            yield

    def _write(self, job: Job, step: Step) -> None:
        if self.accelerator.is_main_process:
            job.write(step)

    def _save(self, jobs: Sequence[Job]) -> None:
        if jobs and self.accelerator.is_main_process:
            for job in jobs:
                job.save()
        if jobs:
            self.accelerator.wait_for_everyone()
