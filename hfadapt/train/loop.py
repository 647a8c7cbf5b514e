"""The one training loop, on `accelerate.Accelerator`, for one adapter or several that share a base.

Everything that decides the result is a pure function of the recipe: the order of rows (batches.py), the learning rate
of a step, the normalisation of the loss over all labels of the effective batch. So a resumed run equals an
uninterrupted one, two processes equal one, an adapter trained with others equals one trained alone, and evaluating in
between changes nothing.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.core.errors import DataError, RunError
from hfadapt.core.progress import Progress, Silent
from hfadapt.fast import FastPath, batch, labelled_loss, plain_head, row_seed
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.hardware.processes import machines
from hfadapt.modalities import Example
from hfadapt.objectives import Objective
from hfadapt.objectives.supervised import KIND as SUPERVISED
from hfadapt.records.stages import Step
from hfadapt.tasks import Task
from hfadapt.train.batches import micro_batches
from hfadapt.train.frozen import FrozenCache, frozen_layers
from hfadapt.train.job import Batch, Job
from hfadapt.train.loss_scale import grown, taken_off
from hfadapt.train.microbatch import MicroBatch, Row, collate
from hfadapt.train.processes import check_start, reduce_gradients

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_ROWS = 4
"""Rows whose loss is worked out on both paths before the first step."""
CHECK_TOKENS = 128
"""They are at most this long, where there are such rows."""
AGREE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference of that loss, by the dtype of the products."""


@dataclass
class Loop:
    """Trains the adapters of `jobs` on one model.

    Args:
        accelerator: Knows the processes and devices.
        task: Makes batches and losses.
        model: The adapted model.
        fast: The fast path, or None for the libraries' own forward passes.
        objective: What is minimised, with its options.
        packing: Put rows one after the other in one line of tokens, where the fast path can.
        loss_in_pieces: Make a language model's loss and its gradient on labelled positions alone, in pieces.
        frozen_cache: Run layers below the first trained one once for each row, and keep their outputs on disk.
        stop: Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.
        interrupted: Asked while rows are collected, in one process alone; True raises KeyboardInterrupt at once.
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
    progress: Progress = field(default_factory=Silent)
    stop: Callable[[], bool] = lambda: False
    interrupted: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())
        self._line = self._loss_in_pieces = False
        self._scaled = False
        self._started: Any = None
        self._frozen: FrozenCache | None = None
        self.frozen_layers = 0
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
        check_start(self.accelerator, self.jobs)
        self._started = self.objective.begin(self.model, self.task, self.objective_options)
        self.model.train()
        with self._fast_path(), self._frozen_outputs():
            self._scaled = self._products() == torch.float16
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
        sums = self._gradients(batches)
        while self._scaled and not all(taken_off(job, float(sums[id(job)])) for job in active):
            for job in active:
                for parameter in job.parameters.values():
                    parameter.grad = None
            sums = self._gradients(batches)
        updates = []
        for job, found in batches:
            loss = float(sums[id(job)]) / found.labels
            try:
                norm, rate = job.update(found, loss)
            except RunError as error:
                self._give_up(job, error)
                continue
            updates.append((job, found, loss, norm, rate))
            if self._scaled:
                grown(job)
        if self.fast:
            self.fast.refresh()
        seconds = (time.perf_counter() - started) / sum(job.tokens(found) for job, found in batches)
        for job, found, loss, norm, rate in updates:
            # Of a step's time every job gets the share of its tokens.
            self._account(job, job.account(found, loss, norm, rate, seconds * job.tokens(found)))

    def _gradients(self, batches: Sequence[tuple[Job, Batch]]) -> dict[int, torch.Tensor]:
        """Works out the gradients of a step, times their loss scales; the summed losses of each job by its id."""
        sums = {id(job): torch.zeros((), device=self.accelerator.device) for job, _ in batches}
        scales = {id(job): job.state.loss_scale if self._scaled else 1.0 for job, _ in batches}
        weights = {id(job): scales[id(job)] / found.labels for job, found in batches}
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
        reduce_gradients(self.accelerator, [job for job, _ in batches])
        return {key: self.accelerator.reduce(total, "sum") for key, total in sums.items()}

    def _give_up(self, job: Job, error: RunError) -> None:
        """The last good state is kept; alone the error ends the run, with others only this job."""
        if job.state.step:
            self._save([job])
        for parameter in job.parameters.values():
            parameter.grad = None
        if len(self.jobs) == 1:
            raise error
        job.error = error
        self.progress.say(f"training of {job.title} failed; continuing with the other domains:\n{error}")

    def _micro_batches(self, batches: Sequence[tuple[Job, Batch]]) -> Iterator[list[Row]]:
        """Rows of all jobs that go through the model together, each job's own micro-batches side by side."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        shares = []
        for job, found in batches:
            own = [self._row(job, found, i) for i in range(rank, len(found.rows), world)]
            # What the plan's memory is for; an augmented row that is longer stands alone.
            budget = job.settings.micro_batch_rows * max(job.lengths)
            lengths = [row.example.size for row in own]
            parts = micro_batches(range(len(own)), lengths, budget, padded=not self._line)
            shares.append([[own[i] for i in part] for part in parts])
        for i in range(max(map(len, shares))):
            rows = [row for share in shares if i < len(share) for row in share[i]]
            if self._line or len(shares) == 1:
                yield from [rows] if rows else []
                continue
            # Padding to the longest row of all jobs must not need more than the jobs' own micro-batches would.
            limit = sum(job.settings.micro_batch_rows * max(job.lengths) for job, _ in batches)
            parts = micro_batches(range(len(rows)), [row.example.size for row in rows], limit, padded=True)
            yield from ([rows[k] for k in part] for part in parts)

    def _row(self, job: Job, found: Batch, i: int) -> Row:
        seed = row_seed(job.settings.seed, found.step, found.rows[i]) if self._drops else 0
        return Row(job, found.examples[i], seed)

    def _collate(self, rows: Sequence[Row]) -> MicroBatch:
        device = self.accelerator.device
        return collate(self.task, rows, self.pad_token_id, device, line=self._line, drops=self._drops)

    def _loss(self, micro: MicroBatch, weights: Mapping[int, float]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The weighted sum to go backward from, and the plain sum of each job's losses by the job's id."""
        device = self.accelerator.device
        jobs = list(dict.fromkeys(id(row.job) for row in micro.rows))
        by_row = torch.tensor([weights[id(row.job)] for row in micro.rows]).to(device, non_blocking=True)
        if self._loss_in_pieces:
            total, losses, rows = labelled_loss(self.model, micro.inputs, self.task.targets(micro.inputs), by_row)
        else:
            losses, rows = self.objective.losses(self.task, self.model, micro.inputs, self._started)
            total = (losses * by_row[rows]).sum()
        losses = losses.detach().float()
        if len(jobs) == 1:
            return total, {jobs[0]: losses.sum()}
        of_row = torch.tensor([jobs.index(id(row.job)) for row in micro.rows]).to(device, non_blocking=True)
        sums = torch.zeros(len(jobs), device=device).index_add_(0, of_row[rows], losses)
        return total, dict(zip(jobs, sums, strict=True))

    @contextmanager
    def _announced(self, micro: MicroBatch) -> Iterator[None]:
        """Tells the fast path which tokens belong together, and frozen layers what comes out of them."""
        with ExitStack() as stack:
            if self.fast:
                stack.enter_context(batch(micro.documents, self.fast.products))
            if self._frozen:
                stack.enter_context(self._frozen.given(micro.keys, micro.documents, self.accelerator.device))
            yield

    def _account(self, job: Job, step: Step) -> None:
        self._write(job, step)
        values = {"loss": step.loss, "grad_norm": step.grad_norm, "learning_rate": step.learning_rate}
        self.accelerator.log({self._tracked(job, name): value for name, value in values.items()}, step=step.step)
        if self.accelerator.is_main_process:
            state = job.state
            left = sum((other.total_steps - other.state.step) * other.seconds_per_step for other in self.jobs)
            speed = state.tokens / (state.seconds - state.frozen_seconds)
            title = self._shown(job)
            self.progress.step(state.step, job.total_steps, state.last_loss or 0.0, speed, left, title)

    def _tracked(self, job: Job, name: str) -> str:
        return name if len(self.jobs) == 1 else f"{job.title}/{name}"

    def _shown(self, job: Job) -> str:
        return job.title if len(self.jobs) > 1 else ""

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_loss(self, job: Job) -> float:
        """Mean loss per label over the job's validation rows, without gradients, shared between the processes."""
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        total = torch.zeros(2, dtype=exact)
        self.model.eval()
        with self._scoring():
            for micro in self._by_length(job, job.validation):
                with self._announced(micro):
                    _, sums = self._loss(micro, {id(job): 1.0})
                total[0] += float(sums[id(job)])
                total[1] += sum(row.example.label_count for row in micro.rows)
        self.model.train()
        total = self.accelerator.reduce(total.to(self.accelerator.device), "sum")
        if not total[1]:
            raise DataError("the validation rows have no label", place=str(job.folder / "data/validation.parquet"))
        return float(total[0] / total[1])

    def _by_length(self, job: Job, examples: Sequence[Example]) -> Iterator[MicroBatch]:
        """This process's share of the examples in an order of their own, twice as many at once as in training."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        share = sorted(examples[rank::world], key=lambda example: example.size)
        lengths = [example.size for example in share]
        budget = 2 * job.settings.micro_batch_rows * max([*job.lengths, *lengths])
        for part in micro_batches(range(len(share)), lengths, budget, padded=not self._line):
            yield self._collate([Row(job, share[i]) for i in part])

    def _validate(self, job: Job) -> None:
        loss = self.validation_loss(job)
        self._write(job, job.validated(loss))
        self.accelerator.log({self._tracked(job, "validation_loss"): loss}, step=job.state.step)
        if self.accelerator.is_main_process:
            self.progress.validation(job.state.step, loss, self._shown(job), last=not job.active)

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
        with self._felt():
            plain = self._check_loss(rows)
            assert plain is not None
        if self.fast.compile and self.accelerator.device.type != "cpu":
            self.progress.say("torch.compile works before the first steps; this takes up to a minute")
        for compile, attention, pieces in self._attempts():
            with ExitStack() as stack:
                try:
                    path = stack.enter_context(self.fast.on(rows=attention, compile=compile))
                except NotImplementedError:
                    continue
                if attention and not path.attention:
                    continue
                self._line = attention and self.packing and self.task.packs and self._separate()
                self._loss_in_pieces = pieces and plain_head(self.model)
                if pieces and not self._loss_in_pieces:
                    continue
                with self._felt():
                    found = self._check_loss(rows, attempt=True)
                tolerance = AGREE[self._products()]
                if found is not None and abs(found - plain) <= tolerance * max(1.0, abs(plain)):
                    self.path = path.summary(packed=self._line, in_pieces=self._loss_in_pieces)
                    yield
                    return
            self._line = self._loss_in_pieces = False
        if len(self.jobs) > 1:
            raise RunError(
                "several adapters cannot be co-trained on this model: its fast path gives another loss",
                place=type(self.model).__name__,
                fix="set train.together: false",
            )
        self.progress.say("this model's own forward passes are used: the fast ones give another loss")
        self.fast = None
        yield

    def _attempts(self) -> Iterator[tuple[bool, bool, bool]]:
        """With and without torch.compile, attention inside rows, and the loss in pieces: the fastest first."""
        assert self.fast is not None
        wanted = (
            self.fast.compile,
            "attention" not in self.fast.without,
            self.loss_in_pieces and self.task.packs and self.objective.own_loss,
        )
        return itertools.product(*((True, False) if want else (False,) for want in wanted))  # type: ignore[return-value]

    def _separate(self) -> bool:
        """Whether rows in one line stay apart: convolutions over tokens would reach from one into the next."""
        return not any(isinstance(module, torch.nn.Conv1d) for module in self.model.modules())

    def _check_rows(self) -> list[Row]:
        """Rows of every job, of different lengths but none so long that the check would need the most memory."""
        found = []
        for job in self.jobs:
            most = max(CHECK_TOKENS, min(job.lengths))
            short = (row for row, length in enumerate(job.lengths) if length <= most)
            order = sorted(short, key=job.lengths.__getitem__)
            count = CHECK_ROWS if most == CHECK_TOKENS and len(self.jobs) == 1 else 2
            chosen = {order[i * (len(order) - 1) // (count - 1)] for i in range(count)}
            found += [Row(job, job.train[row]) for row in sorted(chosen)]
        return found

    def _check_loss(self, rows: Sequence[Row], attempt: bool = False) -> float | None:
        """The mean loss of some rows, one by one; with `attempt` all at once on the fast path, or None where the model
        cannot do it this way."""
        fast, self.fast = self.fast, self.fast if attempt else None
        weights, total = {id(job): 1.0 for job in self.jobs}, 0.0
        self.model.eval()
        try:
            for part in [rows] if attempt else [[row] for row in rows]:
                if not attempt:
                    self._use(part[0].job)
                micro = self._collate(part)
                with self._scoring(), self._announced(micro):
                    _, sums = self._loss(micro, weights)
                total += sum(float(value) for value in sums.values())
        except Exception as error:
            # Whatever a model's own code raises on rows in one line.
            if not attempt or is_out_of_memory(error):
                raise
            return None
        finally:
            self.fast = fast
            self.model.train()
        return total / max(1, sum(row.example.label_count for row in rows))

    def _use(self, job: Job) -> None:
        """peft's own forward goes through this job's adapter; all keep their gradients."""
        if len(self.jobs) > 1:
            self.model.set_adapter(job.name)
            for other in self.jobs:
                for parameter in other.parameters.values():
                    parameter.requires_grad_(True)

    @contextmanager
    def _felt(self) -> Iterator[None]:
        """B starts at zero, so that the low-rank part would not be seen: while inside it is small noise."""
        start = [p for job in self.jobs for name, p in job.parameters.items() if "lora_B" in name and not bool(p.any())]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in start:
                p.copy_(0.01 * torch.randn(p.shape, generator=generator))
        if self.fast:
            self.fast.refresh()
        try:
            yield
        finally:
            with torch.no_grad():
                for p in start:
                    p.zero_()
            if self.fast:
                self.fast.refresh()

    def _products(self) -> torch.dtype:
        products = self.fast.products if self.fast else None
        # 4-bit layers have a dtype of their own for them.
        own = {dtype for module in self.model.modules() if (dtype := getattr(module, "compute_dtype", None))}
        return products or (own.pop() if len(own) == 1 else self.model.dtype)

    def _scoring(self) -> AbstractContextManager[Any]:
        """Without gradients. What is compiled knows inference mode as another world and would be compiled again."""
        return torch.no_grad() if self.fast and self.fast.compile else torch.inference_mode()

    # --- frozen layers -----------------------------------------------------------------------------------------------

    @contextmanager
    def _frozen_outputs(self) -> Iterator[None]:
        """Collects what comes out of frozen layers, where it stands in their place with the same loss."""
        # Rows that change with the epoch have other outputs each time.
        same = not any(job.augmented for job in self.jobs)
        layers = frozen_layers(self.model) if self.frozen_cache and same and machines() == 1 else []
        if not layers:
            yield
            return
        rows = [Row(job, example) for job in self.jobs for example in (*job.train, *job.validation)]
        lengths = {row.key: row.example.size for row in rows}
        self.progress.say(f"{len(layers)} layers are frozen: {len(rows):,} rows go through them once, before step 1")
        started = time.perf_counter()
        cache = FrozenCache(layers, lengths, self.jobs[0].folder)
        first, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        with cache.on(first=first, wait=wait):
            if why := self._collect(cache):
                self.progress.say(f"the outputs of {len(layers)} frozen layers are not kept: {why}")
            else:
                self._frozen, self.frozen_layers = cache, len(layers)
                self.path += f", {len(layers)} frozen layers run once"
            for job in self.jobs:
                own = sum(job.lengths) + sum(example.size for example in job.validation)
                seconds = (time.perf_counter() - started) * own / sum(lengths.values())
                job.state.seconds += seconds
                job.state.frozen_seconds += seconds
                job.state.frozen_tokens += sum(job.lengths)
            yield
        self._frozen = None

    def _collect(self, cache: FrozenCache) -> str:
        """Every process works out its share of the rows, in the same batches whenever training starts. Returns what
        went wrong in this or another process, or nothing."""
        why, check = "", self._check_rows()
        self.model.eval()
        try:
            for job in self.jobs:
                for micro in self._by_length(job, [*job.train, *job.validation]):
                    if self.interrupted():
                        raise KeyboardInterrupt
                    with self._announced(micro):
                        cache.collect(micro.keys, micro.documents, partial(self._loss, micro, {id(job): 0.0}))
        except (NotImplementedError, OSError) as error:
            why = str(error)
        finally:
            self.model.train()
        bad = torch.tensor(float(bool(why)), device=self.accelerator.device)
        if float(self.accelerator.reduce(bad, "sum")):
            return why or "another process could not"
        without = self._check_loss(check, attempt=True)
        self._frozen = cache
        found = self._check_loss(check, attempt=True)
        self._frozen = None
        if found is None or without is None or abs(found - without) > AGREE[self._products()] * max(1.0, abs(without)):
            return "with them the loss is another"
        return ""

    # --- small parts -------------------------------------------------------------------------------------------------

    @contextmanager
    def _noise(self, place: str) -> Iterator[None]:
        """Dropout of torch's own modules draws from a seed of its own, by step, micro-batch and process, and leaves the
        global state alone."""
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
