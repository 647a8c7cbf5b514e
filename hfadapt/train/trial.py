"""What is tried before step 1: a faster way stays where a few rows have the same loss with it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from hfadapt.core.errors import RunError
from hfadapt.core.progress import Progress
from hfadapt.fast import plain_head
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.hardware.processes import machines
from hfadapt.train.frozen import FrozenCache, frozen_layers
from hfadapt.train.job import Job
from hfadapt.train.microbatch import Row
from hfadapt.train.passes import Passes

PLAIN = "plain"
CHECK_ROWS = 4
"""Rows whose loss is worked out on both paths before the first step."""
CHECK_TOKENS = 128
"""They are at most this long, where there are such rows."""
AGREE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference of that loss, by the dtype of the products."""


class CannotShare(RunError):
    """Several adapters cannot be trained side by side on this model; nothing was trained yet."""


@dataclass(frozen=True)
class Trial:
    """Tries faster passes on rows of the jobs, and tells `progress` what is left out."""

    passes: Passes
    jobs: Sequence[Job]
    progress: Progress

    # --- the fast path -----------------------------------------------------------------------------------------------

    @contextmanager
    def fast_path(self, *, packing: bool, loss_in_pieces: bool) -> Iterator[str]:
        """Puts the fast path on, as far as asked for, after it gave the loss of the plain one on a few rows.

        Where it does not, attention and packing are left out, and where that does not help, all of it. Yields what
        the path is, in words.
        """
        if self.passes.fast is None:
            yield PLAIN
            return
        rows = self.check_rows()
        with self._perturbed():
            plain = self._check_loss(rows)
            assert plain is not None
        if self.passes.fast.compile and self.passes.accelerator.device.type != "cpu":
            self.progress.say("torch.compile works before the first steps; this takes up to a minute")
        for compile, attention, pieces, first in self._attempts(rows, loss_in_pieces):
            with ExitStack() as stack:
                try:
                    way = self.passes.fast.on(rows=attention, compile=compile, first_token=first)
                    path = stack.enter_context(way)
                except NotImplementedError:
                    continue
                if attention and not path.attention:
                    continue
                self.passes.packed = attention and packing and self.passes.task.packs and self._separate()
                self.passes.in_pieces = pieces and plain_head(self.passes.model)
                if pieces and not self.passes.in_pieces:
                    continue
                with self._perturbed():
                    found = self._check_loss(rows, attempt=True)
                if found is not None and self._agree(found, plain):
                    yield path.summary(packed=self.passes.packed, in_pieces=self.passes.in_pieces)
                    return
            self.passes.packed = self.passes.in_pieces = False
        if len(self.jobs) > 1:
            raise CannotShare(
                "several adapters cannot be co-trained on this model: its fast path gives another loss",
                place=type(self.passes.model).__name__,
                fix="set train.together: false",
            )
        self.progress.say("this model's own forward passes are used: the fast ones give another loss")
        self.passes.fast = None
        yield PLAIN

    def _attempts(self, rows: Sequence[Row], loss_in_pieces: bool) -> Iterator[tuple[bool, bool, bool, bool]]:
        """With and without torch.compile, attention inside rows, the loss in pieces, and the last layer for the first
        token: the fastest first."""
        assert self.passes.fast is not None
        # Of rows of one token each it could not be seen whether others are read.
        told = not self.passes.task.packs and all(row.example.size > 1 for row in rows)
        wanted = (
            self.passes.fast.compile,
            "attention" not in self.passes.fast.without,
            loss_in_pieces and self.passes.task.packs and self.passes.objective.own_loss,
            told and self.passes.fast.last_sum() is not None,
        )
        return itertools.product(*((True, False) if want else (False,) for want in wanted))  # type: ignore[return-value]

    def _separate(self) -> bool:
        """Whether packed rows stay apart: convolutions over tokens would reach from one into the next."""
        return not any(isinstance(module, torch.nn.Conv1d) for module in self.passes.model.modules())

    # --- frozen layers -----------------------------------------------------------------------------------------------

    @contextmanager
    def frozen_outputs(self, interrupted: Callable[[], bool]) -> Iterator[int]:
        """Collects what comes out of frozen layers, where it stands in their place with the same loss; yields
        the number of these layers."""
        # Rows that change with the epoch have other outputs each time.
        same = not any(job.augmented for job in self.jobs) and not self.passes.task.without
        layers = frozen_layers(self.passes.model) if same and machines() == 1 else []
        if not layers:
            yield 0
            return
        rows = [
            Row(job, part) for job in self.jobs for example in (*job.train, *job.validation) for part in example.parts
        ]
        lengths = {row.key: row.example.size for row in rows}
        self.progress.say(f"{len(layers)} layers are frozen: {len(rows):,} rows go through them once, before step 1")
        started = time.perf_counter()
        cache = FrozenCache(layers, lengths, self.jobs[0].folder)
        first, wait = self.passes.accelerator.is_main_process, self.passes.accelerator.wait_for_everyone
        with cache.on(first=first, wait=wait):
            if why := self._collect(cache, interrupted):
                self.progress.say(f"the outputs of {len(layers)} frozen layers are not kept: {why}")
            else:
                self.passes.frozen = cache
            sharing = Counter(id(job.train) for job in self.jobs)
            for job in self.jobs:
                trained = sum(example.tokens for example in job.train)
                own = trained + sum(example.tokens for example in job.validation)
                share = own / sum(lengths.values()) / sharing[id(job.train)]
                seconds = (time.perf_counter() - started) * share
                job.state.seconds += seconds
                job.state.frozen_seconds += seconds
                job.state.frozen_tokens += trained // sharing[id(job.train)]
            yield len(layers) if self.passes.frozen else 0
        self.passes.frozen = None

    def _collect(self, cache: FrozenCache, interrupted: Callable[[], bool]) -> str:
        """Every process works out its share of the rows, in the same batches whenever training starts. Returns what
        went wrong in this or another process, or nothing."""
        why, check = "", self.check_rows()
        self.passes.model.eval()
        try:
            # The tries of a search have the same rows.
            for job in {id(job.train): job for job in self.jobs}.values():
                for micro in self.passes.by_length(job, [*job.train, *job.validation]):
                    if interrupted():
                        raise KeyboardInterrupt
                    with self.passes.batch_context(micro):
                        cache.collect(micro.keys, micro.documents, partial(self.passes.loss, micro, {id(job): 0.0}))
        except (NotImplementedError, OSError) as error:
            why = str(error)
        finally:
            self.passes.model.train()
        bad = torch.tensor(float(bool(why)), device=self.passes.accelerator.device)
        if float(self.passes.accelerator.reduce(bad, "sum")):
            return why or "another process could not"
        without = self._check_loss(check, attempt=True)
        self.passes.frozen = cache
        found = self._check_loss(check, attempt=True)
        self.passes.frozen = None
        if found is None or without is None or not self._agree(found, without):
            return "with them the loss is another"
        return ""

    # --- the loss that must agree ------------------------------------------------------------------------------------

    def _agree(self, loss: float, plain: float) -> bool:
        return abs(loss - plain) <= AGREE[self.passes.products()] * max(1.0, abs(plain))

    def check_rows(self) -> list[Row]:
        """Rows of every job, of different lengths but none so long that the check would need the most memory."""
        found = []
        for job in self.jobs:
            most = max(CHECK_TOKENS, min(job.lengths))
            short = (row for row, length in enumerate(job.lengths) if length <= most)
            order = sorted(short, key=job.lengths.__getitem__)
            count = CHECK_ROWS if most == CHECK_TOKENS and len(self.jobs) == 1 else 2
            chosen = {order[i * (len(order) - 1) // (count - 1)] for i in range(count)}
            found += [Row(job, unit) for unit in self.passes.units([job.train[row] for row in sorted(chosen)])]
        return found

    def _check_loss(self, rows: Sequence[Row], attempt: bool = False) -> float | None:
        """The mean loss of some rows, one by one; with `attempt` all at once on the fast path, or None where the model
        cannot do it this way."""
        fast, self.passes.fast = self.passes.fast, self.passes.fast if attempt else None
        weights, total = {id(job): 1.0 for job in self.jobs}, 0.0
        self.passes.model.eval()
        try:
            for part in [rows] if attempt else [[row] for row in rows]:
                if not attempt:
                    self._use(part[0].job)
                micro = self.passes.collate(part)
                with self.passes.scoring(), self.passes.batch_context(micro):
                    _, sums = self.passes.loss(micro, weights)
                total += sum(float(value) for value in sums.values())
        except Exception as error:
            # Whatever a model's own code raises on packed rows.
            if not attempt or is_out_of_memory(error):
                raise
            return None
        finally:
            self.passes.fast = fast
            self.passes.model.train()
        return total / max(1, sum(self.passes.objective.count(row.example) for row in rows))

    def _use(self, job: Job) -> None:
        """peft's own forward goes through this job's adapter; all keep their gradients."""
        if len(self.jobs) > 1:
            self.passes.model.set_adapter(job.name)
            for other in self.jobs:
                for parameter in other.parameters.values():
                    parameter.requires_grad_(True)

    @contextmanager
    def _perturbed(self) -> Iterator[None]:
        """B starts at zero, so that the low-rank part would not be seen: while inside it is small noise."""
        start = [p for job in self.jobs for name, p in job.parameters.items() if "lora_B" in name and not bool(p.any())]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in start:
                p.copy_(0.01 * torch.randn(p.shape, generator=generator))
        if self.passes.fast:
            self.passes.fast.refresh()
        try:
            yield
        finally:
            with torch.no_grad():
                for p in start:
                    p.zero_()
            if self.passes.fast:
                self.passes.fast.refresh()
