"""The training stage of one cell: base, adapter, loop, saved adapter, train.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt.core import registry
from hfadapt.core.progress import Corrected, Progress, Silent
from hfadapt.data import augment, canaries, read_split
from hfadapt.fast import FastPath, fusion, product_dtype
from hfadapt.hardware.peak_memory import PeakMemory, load_libraries, release_memory, resident_bytes
from hfadapt.hardware.processes import World, interruptible
from hfadapt.hardware.versions import versions
from hfadapt.modalities import Example, Row
from hfadapt.models.attach import (
    adapter_names,
    attach_adapters,
    low_rank_start,
    round_as_saved,
    save_adapter,
    trainable,
)
from hfadapt.models.facts import layer_stacks
from hfadapt.models.load import Base, load_base
from hfadapt.models.manifest import write_manifest
from hfadapt.plan.compute import training_compute
from hfadapt.records.evidence import Energy
from hfadapt.records.stages import PHASES, Phase, PhaseMeasure, TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.train.batches import padded
from hfadapt.train.energy import EnergyMeter
from hfadapt.train.job import Job
from hfadapt.train.loop import Loop

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock

CHECK_ROWS = 64
"""Validation rows whose losses are kept, to be met again by the adapter that is read back from disk."""


def train_cell(cell: Cell, world: World, *, identity: str = "", progress: Progress | None = None) -> TrainRecord:
    """Trains the cell's adapter from its lock and its prepared rows, and writes adapter/ and train.json.

    Raises:
        DataError: rows cannot be used for the task.
        RunError: training went wrong; the last good state is in checkpoints/.
        KeyboardInterrupt: after a checkpoint was written.
    """
    (record,) = train_cells([cell], world, identities=[identity], progress=progress)
    assert record is not None
    return record


def train_cells(
    cells: Sequence[Cell], world: World, *, identities: Sequence[str] = (), progress: Progress | None = None
) -> list[TrainRecord | None]:
    """Trains the adapters of several cells at the same time on one base; each is what it would be alone.

    The cells must agree on the base, its storage and the labels (`can_share`). A cell that was given up while others
    went on has no record and keeps its checkpoint.

    Raises:
        DataError, RunError, KeyboardInterrupt: as `train_cell`.
    """
    progress = progress or Silent()
    locks, lock, data = [cell.lock for cell in cells], cells[0].lock, cells[0].data
    task = registry.task(lock.task)
    device = world.accelerator.device
    load_libraries()
    release_memory()
    floor = resident_bytes()
    started = time.perf_counter()
    with PeakMemory(device, floor) as load_peak:
        room = world.max_memory(cells[0].plan.cells[0].budget_bytes)
        base = load_base(lock, data.labels, device, max_memory=room)
        pad = base.pad_token_id

        def encode(own: Lock, rows: Sequence[Row]) -> list[Example]:
            length = own.data.max_length
            return task.encode(rows, base.tokenizer, max_length=length, labels=data.labels)  # type: ignore[no-any-return]

        def trained_on(cell: Cell) -> list[Row]:
            return [*read_split(cell.folder, "train"), *canaries.as_trained(cell.folder, cell.data)]

        rows = [
            (encode(own, trained_on(cell)), encode(own, read_split(cell.folder, "validation")))
            for cell, own in zip(cells, locks, strict=True)
        ]

        def batches() -> Iterator[Mapping[str, torch.Tensor]]:
            for _, batch in padded(task, rows[0][0], pad, device, lock.train.micro_batch_rows):
                yield batch

        names = adapter_names(len(cells))
        model = attach_adapters(base, dict(zip(names, locks, strict=True)), batches)
    load_seconds = time.perf_counter() - started
    start = low_rank_start(model) if registry.adapter(lock.adapter.method).changes_base else None
    if lock.train.trackers:
        title = "-".join(cell.domain for cell in cells)
        config = {"recipe": lock.name, "domain": title}
        world.accelerator.init_trackers(f"{lock.name}-{title}-{cells[0].target}", config=config)
    meter = EnergyMeter(device, world.size)
    with meter, PeakMemory(device, floor) as train_peak, interruptible() as interrupt:
        jobs = [
            Job(
                own.train,
                train,
                validation,
                cell.folder,
                identity,
                trainable(model, name if len(cells) > 1 else None),
                name,
                f"{cell.domain} on {cell.target}",
                _augmented(cell, own, train, partial(encode, own)),
            )
            for cell, own, name, (train, validation), identity in zip(
                cells, locks, names, rows, identities or [""] * len(cells), strict=True
            )
        ]
        wanted = lock.train.fast
        # By its own number of steps each would decide for itself.
        compile = any(own.train.fast.compile for own in locks)
        compiled = fusion.compile_seconds() if compile else 0.0
        products = product_dtype(lock.dtype, device) if wanted.bfloat16 and wanted.low_rank else None
        path = FastPath(model, products, tuple(names), lock.train.resident_layers, wanted.without, compile)
        loop = Loop(
            accelerator=world.accelerator,
            task=task,
            model=model,
            jobs=jobs,
            pad_token_id=pad,
            fast=path if wanted.used else None,
            objective=(objective := registry.objective(lock.train.objective)),
            objective_options=objective.Options.model_validate(lock.train.objective_options),
            packing=lock.data.packing,
            loss_in_pieces=wanted.loss,
            frozen_cache=any(own.train.fast.frozen_cache for own in locks),
            progress=Corrected(
                progress, _predicted_seconds(cells), lambda: sum(job.state.frozen_seconds for job in jobs)
            ),
            stop=lambda: world.any(bool(interrupt)),
            interrupted=lambda: world.size == 1 and bool(interrupt),
        )
        loop.run()
    if lock.train.trackers:
        world.accelerator.end_training()
    round_as_saved(model, lock)
    records: list[TrainRecord | None] = []
    seconds = [job.state.seconds for job in jobs]
    for cell, own, job in zip(cells, locks, jobs, strict=True):
        del job.optimizer
        if job.error is not None:
            records.append(None)
            continue
        if len(cells) > 1:
            model.set_adapter(job.name)
        check = check_losses(task, model, job.validation[:CHECK_ROWS], pad, device)
        model.zero_grad(set_to_none=True)
        release_memory()
        with PeakMemory(device, floor) as save_peak:
            world.on_main(lambda cell=cell, own=own, job=job: _save(cell, base, model, own, start, job.name))  # type: ignore[misc]
        peaks = {"load": load_peak, "train": train_peak, "save": save_peak}
        record = _record(cell, own, base, job, _measured(cells, peaks), world, load_seconds)
        record = record.model_copy(
            update={
                "check_losses": tuple(check),
                "fast_path": loop.path,
                "frozen_layers": loop.frozen_layers,
                "model_layers": _layers_of(base, own),
                "augmented_rows": tuple(job.state.augmented),
                "compile_seconds": fusion.compile_seconds() - compiled if compile else None,
                "energy": _share(meter.energy(sum(seconds)), job.state.seconds / max(sum(seconds), 1e-9)),
                "compute": training_compute(
                    own,
                    cell.data,
                    job.state.tokens,
                    job.state.labelled_tokens,
                    record.trainable_parameters,
                    base.source.hub_id,
                    frozen_tokens=job.state.frozen_tokens if loop.frozen_layers else None,
                ),
                "together": tuple(cell.domain for cell in cells) if len(cells) > 1 else (),
            }
        )
        world.on_main(lambda cell=cell, record=record: _finish(cell, record))  # type: ignore[misc]
        records.append(record)
    return records


def _augmented(
    cell: Cell, lock: Lock, plain: Sequence[Example], encode: Callable[[Sequence[Row]], list[Example]]
) -> Callable[[int], Sequence[Example]] | None:
    """Makes the encoded rows of an epoch where the recipe asks for augmentation; canaries stay as they are."""
    if not lock.data.augment.on:
        return None

    def of_epoch(epoch: int) -> Sequence[Example]:
        # Read again, so that no text is held between epochs.
        rows = read_split(cell.folder, "train")
        changed = augment.examples(
            rows, plain[: len(rows)], cell.data.form, lock.data.augment, (lock.data.seed, epoch), encode
        )
        return [*changed, *plain[len(rows) :]]

    return of_epoch


def _predicted_seconds(cells: Sequence[Cell]) -> float | None:
    """The plan's training time of all cells; None where it had none."""
    found = [cell.plan.cells[0].predicted_seconds for cell in cells]
    return sum(seconds for seconds in found if seconds) if all(found) else None


def _measured(cells: Sequence[Cell], peaks: Mapping[str, PeakMemory]) -> dict[Phase, PhaseMeasure]:
    """Peaks beside the predicted ones.

    Each plan has all adapters at its own length, and memory grows with the tokens of all: the mean is for all lengths.
    """
    predicted: dict[str, int] = {}
    for cell in cells:
        for phase in cell.plan.cells[0].memory:
            predicted[phase.phase] = predicted.get(phase.phase, 0) + phase.total_bytes // len(cells)
    return {
        phase: PhaseMeasure(predicted_peak_bytes=predicted.get(phase), measured_peak_bytes=peaks[phase].peak_bytes)
        for phase in PHASES
        if phase in peaks
    }


def _layers_of(base: Base, lock: Lock) -> int | None:
    """How many layers the model has, where only the last of them are adapted."""
    count = max(map(len, layer_stacks(base.model).values()), default=0)
    fewer = lock.adapter.layers is not None and lock.adapter.layers < count
    return count if fewer and registry.adapter(lock.adapter.method).adapts_layers else None


def _share(energy: Energy, share: float) -> Energy:
    """A cell's share of the energy of a training, by time."""
    if share > 0.999:
        return energy
    grams = None if energy.carbon_grams is None else energy.carbon_grams * share
    how = f"{energy.how}; {share:.1%} of a training of several adapters, by time"
    return energy.model_copy(update={"joules": energy.joules * share, "carbon_grams": grams, "how": how})


def can_share(one: Cell, other: Cell) -> bool:
    """Whether two cells can be trained on one base at the same time."""
    mine, theirs = one.lock, other.lock
    same = all(
        getattr(mine, name) == getattr(theirs, name) for name in ("model", "task", "quant", "dtype", "processes")
    )
    alike = (
        mine.train.checkpointing == theirs.train.checkpointing
        and mine.train.fast.without == theirs.train.fast.without
        and mine.train.fast.bfloat16 == theirs.train.fast.bfloat16
        and mine.data.packing == theirs.data.packing
        and mine.adapter.method == theirs.adapter.method
        and mine.train.seed == theirs.train.seed
    )
    return one.target == other.target and same and alike and one.data.labels == other.data.labels


def _record(
    cell: Cell,
    lock: Lock,
    base: Base,
    job: Job,
    memory: dict[Phase, PhaseMeasure],
    world: World,
    load_seconds: float,
) -> TrainRecord:
    state = job.state
    plan = cell.plan.cells[0]
    return TrainRecord(
        domain=cell.domain,
        target=cell.target,
        method=lock.adapter.method,
        steps=state.step,
        epochs=state.step / job.steps_per_epoch,
        first_loss=state.first_loss,
        final_loss=state.last_loss,
        best_step=state.best_step,
        best_validation_loss=state.best_loss,
        stopped_early=state.stopped_early,
        trainable_parameters=sum(p.numel() for p in job.parameters.values()),
        total_parameters=base.parameters,
        quantised_modules=base.quantised_modules,
        tokens=state.tokens,
        labelled_tokens=state.labelled_tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        predicted_seconds=plan.predicted_seconds,
        predicted_tokens_per_second=plan.predicted_tokens_per_second,
        load_seconds=load_seconds,
        adapter_bytes=sum(path.stat().st_size for path in cell.adapter.glob("*.safetensors")),
        world_size=world.size,
        resumed_from_step=state.resumed_from_step,
        memory=memory,
        model_license=base.source.license,
        model_hub_id=base.source.hub_id,
        model_revision=base.source.revision,
        model_citation=base.source.citation,
        versions=versions(str(world.accelerator.device)),
    )


def check_losses(task: Any, model: Any, examples: Sequence[Example], pad: int, device: torch.device) -> list[float]:
    """Loss of each example without gradients, in a fixed batch order so that it can be met exactly again."""
    model.eval()
    with torch.inference_mode():
        scores = task.score(model, examples, lambda rows: padded(task, rows, pad, device, 16))
    return [float(loss) for loss in np.asarray(scores.losses)]


def _save(cell: Cell, base: Base, model: Any, lock: Lock, start: Mapping[str, torch.Tensor] | None, name: str) -> None:
    hashes = save_adapter(model, base, lock, cell.adapter, start, name)
    write_manifest(cell.adapter, base, lock, cell.data.labels, hashes)


def _finish(cell: Cell, record: TrainRecord) -> None:
    record.write(cell.folder / "train.json")
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
