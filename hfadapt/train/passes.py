"""How rows of one or several jobs go through the model: in which micro-batches, on which path, and to which loss."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.fast import FastPath, batch, labelled_loss, row_seed
from hfadapt.hardware.shards import Shards
from hfadapt.modalities import Example
from hfadapt.objectives import Objective
from hfadapt.tasks import Task, unique_parts
from hfadapt.train.batches import micro_batches
from hfadapt.train.frozen import FrozenCache
from hfadapt.train.job import Batch, Job
from hfadapt.train.microbatch import MicroBatch, Row, collate

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Passes:
    """Passes through one model, as the path allows that is in use now.

    Args:
        fast: The fast path, or None for the libraries' own forward passes.
        started: What the objective began with.
        packed: Rows are packed sequences.
        in_pieces: The loss and its gradient are made on labelled positions alone, in pieces.
        frozen: The outputs of frozen layers, where they are kept.
        shards: The model's layers, where they are divided over the processes.
    """

    accelerator: Accelerator
    task: Task
    model: Any
    pad_token_id: int
    fast: FastPath | None
    objective: Objective
    started: Any = None
    packed: bool = False
    in_pieces: bool = False
    frozen: FrozenCache | None = None
    shards: Shards | None = None

    def __post_init__(self) -> None:
        self._drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())

    # --- which rows together -----------------------------------------------------------------------------------------

    def micro_batches(self, batches: Sequence[tuple[Job, Batch]]) -> list[list[Row]]:
        """Rows of all jobs that go through the model together, each job's own micro-batches side by side."""
        return self._in_step(list(self._micro_batches(batches)), self._rows(*batches[0])[0])

    def _micro_batches(self, batches: Sequence[tuple[Job, Batch]]) -> Iterator[list[Row]]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        shares = []
        for job, found in batches:
            own = self._rows(job, found)[rank::world]
            lengths = [self._cost(row.example) for row in own]
            # An augmented row that is longer than that stands alone.
            parts = micro_batches(range(len(own)), lengths, job.micro_batch_tokens, padded=not self.packed)
            shares.append([[own[i] for i in part] for part in parts])
        for i in range(max(map(len, shares))):
            rows = [row for share in shares if i < len(share) for row in share[i]]
            if self.packed or len(shares) == 1:
                yield from [rows] if rows else []
                continue
            # Padding to the longest row of all jobs must not need more than the jobs' own micro-batches would.
            limit = sum(job.micro_batch_tokens for job, _ in batches)
            parts = micro_batches(range(len(rows)), [self._cost(row.example) for row in rows], limit, padded=True)
            yield from ([rows[k] for k in part] for part in parts)

    def _in_step(self, parts: list[list[Row]], row: Row) -> list[list[Row]]:
        """As many micro-batches as the process with the most has, where all must run the model equally often."""
        missing = 0 if self.shards is None else self.shards.most(len(parts)) - len(parts)
        return parts + [[row._replace(spare=True)]] * missing

    def _rows(self, job: Job, found: Batch) -> list[Row]:
        """The rows of a step; where they are learned jointly their different sequences, by length."""
        numbers, examples = found.rows, found.examples
        if self.task.joint:
            parts, _ = unique_parts(examples)
            numbers = sorted(range(len(parts)), key=lambda place: (parts[place].size, place))
            examples = [parts[place] for place in numbers]
        seeds = [row_seed(job.settings.seed, found.step, number) if self._drops else 0 for number in numbers]
        return [Row(job, example, seed) for example, seed in zip(examples, seeds, strict=True)]

    def units(self, examples: Sequence[Example]) -> list[Example]:
        """What goes through the model as one: rows, or each of their sequences."""
        return list(examples) if self.task.whole_rows else [part for example in examples for part in example.parts]

    def _cost(self, example: Example) -> int:
        """Tokens of an example, where it is padded with those of examples that are no longer."""
        return example.tokens if self.packed else example.size * len(example.parts)

    def by_length(self, job: Job, examples: Sequence[Example], alone: bool = False) -> Iterator[MicroBatch]:
        """This process's share of the examples in an order of their own, twice as many at once as in training.

        Args:
            alone: All of them are this process's.
        """
        rank, world = (0, 1) if alone else (self.accelerator.process_index, self.accelerator.num_processes)
        share = sorted(self.units(examples)[rank::world], key=lambda example: example.size)
        lengths = [self._cost(example) for example in share]
        longest = max(job.lengths) * (job.parts if self.task.whole_rows else 1)
        budget = 2 * job.settings.micro_batch_rows * max([longest, *lengths])
        parts = micro_batches(range(len(share)), lengths, budget, padded=not self.packed)
        rows = [[Row(job, share[i]) for i in part] for part in parts]
        for part in rows if alone else self._in_step(rows, Row(job, self.units(job.train[:1])[0])):
            yield self.collate(part)

    def collate(self, rows: Sequence[Row]) -> MicroBatch:
        """Rows as they go through the model together."""
        device = self.accelerator.device
        return collate(self.task, rows, self.pad_token_id, device, packed=self.packed, drops=self._drops)

    # --- the pass ----------------------------------------------------------------------------------------------------

    def loss(self, micro: MicroBatch, weights: Mapping[int, float]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The weighted sum to go backward from, and the plain sum of each job's losses by the job's id."""
        device = self.accelerator.device
        jobs = list(dict.fromkeys(id(row.job) for row in micro.rows))
        by_row = torch.tensor([0.0 if row.spare else weights[id(row.job)] for row in micro.rows]).to(
            device, non_blocking=True
        )
        if self.in_pieces:
            total, losses, rows = labelled_loss(self.model, micro.inputs, self.task.targets(micro.inputs), by_row)
        else:
            losses, rows = self.objective.losses(self.task, self.model, micro.inputs, self.started)
            total = (losses * by_row[rows]).sum()
        losses = losses.detach().float() if micro.counted else torch.zeros_like(losses)
        if len(jobs) == 1:
            return total, {jobs[0]: losses.sum()}
        of_row = torch.tensor([jobs.index(id(row.job)) for row in micro.rows]).to(device, non_blocking=True)
        sums = torch.zeros(len(jobs), device=device).index_add_(0, of_row[rows], losses)
        return total, dict(zip(jobs, sums, strict=True))

    def outputs(self, micro: MicroBatch) -> torch.Tensor:
        """What comes out for each sequence (S, D), in float32, where losses are worked out jointly."""
        return self.task.label_logits(self.model, micro.inputs).float()

    @contextmanager
    def batch_context(self, micro: MicroBatch) -> Iterator[None]:
        """Tells the fast path which tokens belong together, and frozen layers what comes out of them."""
        with ExitStack() as stack:
            if self.fast:
                stack.enter_context(batch(micro.documents, self.fast.products))
            if self.frozen:
                stack.enter_context(self.frozen.given(micro.keys, micro.documents, self.accelerator.device))
            yield

    def products(self) -> torch.dtype:
        """The dtype of the matmuls of frozen weights."""
        products = self.fast.products if self.fast else None
        # 4-bit layers have a dtype of their own for them.
        own = {dtype for module in self.model.modules() if (dtype := getattr(module, "compute_dtype", None))}
        return products or (own.pop() if len(own) == 1 else self.model.dtype)

    def scoring(self) -> AbstractContextManager[Any]:
        """Without gradients. What is compiled knows inference mode as another world and would be compiled again."""
        return torch.no_grad() if self.fast and self.fast.compile else torch.inference_mode()

    @contextmanager
    def noise(self, place: str) -> Iterator[None]:
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
