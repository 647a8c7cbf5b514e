"""Losses that depend on all rows of an optimizer step, while a micro-batch of them is in memory.

Three passes: the outputs for all sequences without gradients; the loss and its gradient for these outputs; each
micro-batch again, backward from its part of that gradient (Gao et al. 2021, arXiv 2101.06983). So the loss and the
gradient are those of the whole step, and memory is that of a micro-batch. Where one holds all, one pass does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from hfadapt.core.errors import DataError
from hfadapt.modalities import Example
from hfadapt.tasks import unique_parts
from hfadapt.train.job import Batch, Job
from hfadapt.train.microbatch import MicroBatch, Row
from hfadapt.train.passes import Passes

Batches = Sequence[tuple[Job, Batch]]
Places = Mapping[tuple[int, int], tuple[int, int]]
"""For each sequence by its job and its key, which job's it is and its place among the sequences of the job's step."""


def joint_gradients(passes: Passes, batches: Batches, weights: Mapping[int, float]) -> dict[int, torch.Tensor]:
    """Adds the gradients of a step to the parameters; returns the sum of each job's losses by its id.

    Gradients are those of this process's share of the sequences, sums are of all.

    Args:
        weights: What a loss of each job counts, by its id.
    """
    micros = passes.micro_batches(batches)
    alone = passes.accelerator.num_processes == 1
    places, jobs, examples = _places(batches)
    if alone and len(micros) == 1:
        with _forward(passes, batches, micros[0], 0) as micro:
            found = passes.outputs(micro)
            outputs = _by_job(found, micros[0], places, examples)
            sums = _sums(passes, batches, outputs, jobs)
            sum(sums[key] * weights[key] for key in sums).backward()  # type: ignore[union-attr]
        return {key: total.detach() for key, total in sums.items()}
    with torch.no_grad():
        outputs = _all_outputs(passes, batches, micros, places, examples)
    outputs = [each.requires_grad_() for each in outputs]
    with torch.enable_grad():
        sums = _sums(passes, batches, outputs, jobs)
        sum(sums[key] * weights[key] for key in sums).backward()  # type: ignore[union-attr]
    for number, rows in enumerate(micros):
        with _forward(passes, batches, rows, number) as micro:
            found = passes.outputs(micro)
            at = [places[_key(row)] for row in rows]
            gradient = torch.stack([outputs[job].grad[place] for job, place in at])  # type: ignore[index]
            found.backward(gradient if micro.counted else torch.zeros_like(gradient))
        del found
    return {key: total.detach() for key, total in sums.items()}


def joint_loss(passes: Passes, job: Job, examples: Sequence[Example]) -> float:
    """Mean loss of rows in batches of the size of a step, without gradients.

    Raises:
        DataError: there are no rows.
    """
    if not examples:
        raise DataError("the validation rows have no label", place=str(job.folder / "data/validation.parquet"))
    total, size = 0.0, job.settings.batch_rows
    for start in range(0, len(examples), size):
        own = list(examples[start : start + size])
        batches = [(job, Batch(0, 0, list(range(len(own))), own, len(own)))]
        places, jobs, parts = _places(batches)
        outputs = _all_outputs(passes, batches, passes.micro_batches(batches), places, parts)
        total += float(_sums(passes, batches, outputs, jobs)[id(job)])
    return total / len(examples)


def _places(batches: Batches) -> tuple[dict[tuple[int, int], tuple[int, int]], list[list[list[int]]], list[int]]:
    """Where each sequence is by its key; of each job the places of its rows' parts, and its number of sequences."""
    places: dict[tuple[int, int], tuple[int, int]] = {}
    jobs, counts = [], []
    for number, (job, found) in enumerate(batches):
        parts, own = unique_parts(found.examples)
        places |= {(id(job), id(part)): (number, place) for place, part in enumerate(parts)}
        jobs.append(own)
        counts.append(len(parts))
    return places, jobs, counts


def _key(row: Row) -> tuple[int, int]:
    """Jobs may have the same rows."""
    return id(row.job), row.key


@contextmanager
def _forward(passes: Passes, batches: Batches, rows: Sequence[Row], number: int) -> Iterator[MicroBatch]:
    """A micro-batch on its way through the model, with the same dropout whenever it goes there in this step."""
    with passes.noise(f"{batches[0][0].settings.seed}/{batches[0][1].step}/{number}"):
        micro = passes.collate(rows)
        with passes.batch_context(micro):
            yield micro


def _all_outputs(
    passes: Passes, batches: Batches, micros: Sequence[Sequence[Row]], places: Places, counts: Sequence[int]
) -> list[torch.Tensor]:
    """The outputs for all sequences of each job, from all processes."""
    found: list[torch.Tensor] = []
    for number, rows in enumerate(micros):
        with _forward(passes, batches, rows, number) as micro:
            outputs = passes.outputs(micro).detach()
        found = found or [outputs.new_zeros(count, outputs.shape[-1]) for count in counts]
        for row, output in zip(rows, outputs, strict=True) if micro.counted else ():
            job, place = places[_key(row)]
            found[job][place] = output
    if passes.accelerator.num_processes == 1:
        return found
    device = passes.accelerator.device
    widths = passes.accelerator.gather(torch.tensor([found[0].shape[-1] if found else 0], device=device))
    found = found or [torch.zeros(count, int(widths.max()), device=device) for count in counts]
    return [passes.accelerator.reduce(each, "sum") for each in found]


def _by_job(found: torch.Tensor, rows: Sequence[Row], places: Places, counts: Sequence[int]) -> list[torch.Tensor]:
    """The outputs of one micro-batch that holds everything, by job and place."""
    at = [places[_key(row)] for row in rows]
    order = [[0] * count for count in counts]
    for number, (job, place) in enumerate(at):
        order[job][place] = number
    return [found[own] for own in order]


def _sums(
    passes: Passes, batches: Batches, outputs: Sequence[torch.Tensor], places: Sequence[Sequence[Sequence[int]]]
) -> dict[int, torch.Tensor]:
    """The sum of each job's losses by its id, the same in all processes."""
    return {
        id(job): passes.objective.joint_losses(passes.task, own, found.examples, where, passes.started).sum()
        for (job, found), own, where in zip(batches, outputs, places, strict=True)
    }
