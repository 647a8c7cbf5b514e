"""The training stage of one cell: base, adapter, loop, saved adapter, train.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hfadapt import kinds
from hfadapt.batches import padded
from hfadapt.data import read_split
from hfadapt.launch import World, interruptible
from hfadapt.manifest import write_manifest
from hfadapt.measure import PeakMemory, load_libraries, release_memory, resident_bytes
from hfadapt.model import Base, attach_adapter, load_base, low_rank_start, round_as_saved, save_adapter, trainable
from hfadapt.progress import Corrected, Progress, Silent
from hfadapt.records import PHASES, Phase, PhaseMeasure, TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.tasks import Example
from hfadapt.train.fast import product_dtype
from hfadapt.train.loop import Loop
from hfadapt.versions import versions

if TYPE_CHECKING:
    from hfadapt.recipe import Lock

CHECK_ROWS = 64
"""Validation rows whose losses are kept, to be met again by the adapter that is read back from disk."""


def train_cell(cell: Cell, world: World, *, identity: str = "", progress: Progress | None = None) -> TrainRecord:
    """Trains the cell's adapter from its lock and its prepared rows, and writes adapter/ and train.json.

    Raises:
        DataError: rows cannot be used for the task.
        RunError: training went wrong; the last good state is in checkpoints/.
        KeyboardInterrupt: after a checkpoint was written.
    """
    progress = progress or Silent()
    lock, data = cell.lock, cell.data
    task = kinds.load("tasks", lock.task)
    device = world.accelerator.device
    load_libraries()
    release_memory()
    floor = resident_bytes()
    started = time.perf_counter()
    with PeakMemory(device, floor) as load_peak:
        room = world.max_memory(cell.plan.cells[0].budget_bytes)
        base = load_base(lock, data.labels, device, max_memory=room)
        encode = {"max_length": lock.data.max_length, "labels": data.labels}
        train = task.encode(read_split(cell.folder, "train"), base.tokenizer, **encode)
        validation = task.encode(read_split(cell.folder, "validation"), base.tokenizer, **encode)
        pad = int(base.tokenizer.pad_token_id or 0)

        def batches() -> Iterator[Mapping[str, torch.Tensor]]:
            for _, batch in padded(task, train, pad, device, lock.train.micro_batch_rows):
                yield batch

        model = attach_adapter(base, lock, batches)
    load_seconds = time.perf_counter() - started
    method = kinds.load("adapters", lock.adapter.method)
    start = low_rank_start(model) if method.changes_base else None
    if lock.train.trackers:
        name = f"{lock.name}-{cell.domain}-{cell.target}"
        world.accelerator.init_trackers(name, config={"recipe": lock.name, "domain": cell.domain})
    with PeakMemory(device, floor) as train_peak, interruptible() as interrupt:
        loop = Loop(
            accelerator=world.accelerator,
            task=task,
            model=model,
            settings=lock.train,
            train=train,
            validation=validation,
            pad_token_id=pad,
            folder=cell.folder,
            identity=identity,
            products=product_dtype(lock.dtype, device),
            progress=Corrected(progress, cell.plan.cells[0].predicted_seconds),
            stop=lambda: world.any(bool(interrupt)),
        )
        state = loop.run()
    if lock.train.trackers:
        world.accelerator.end_training()
    round_as_saved(model, lock)
    check = check_losses(task, model, validation[:CHECK_ROWS], pad, device)
    trained = sum(p.numel() for p in trainable(model).values())
    del loop.optimizer
    model.zero_grad(set_to_none=True)
    release_memory()
    with PeakMemory(device, floor) as save_peak:
        world.on_main(lambda: _save(cell, base, model, lock, start))
    peaks = {"load": load_peak, "train": train_peak, "save": save_peak}
    predicted = {phase.phase: phase.total_bytes for phase in cell.plan.cells[0].memory}
    memory: dict[Phase, PhaseMeasure] = {
        phase: PhaseMeasure(predicted_peak_bytes=predicted.get(phase), measured_peak_bytes=peaks[phase].peak_bytes)
        for phase in PHASES
        if phase in peaks
    }
    record = TrainRecord(
        domain=cell.domain,
        target=cell.target,
        method=lock.adapter.method,
        steps=state.step,
        epochs=state.step / loop.steps_per_epoch,
        first_loss=state.first_loss,
        final_loss=state.last_loss,
        best_step=state.best_step,
        best_validation_loss=state.best_loss,
        stopped_early=state.stopped_early,
        trainable_parameters=trained,
        total_parameters=base.parameters,
        quantised_modules=base.quantised_modules,
        tokens=state.tokens,
        labelled_tokens=state.labelled_tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        predicted_seconds=cell.plan.cells[0].predicted_seconds,
        predicted_tokens_per_second=cell.plan.cells[0].predicted_tokens_per_second,
        load_seconds=load_seconds,
        adapter_bytes=sum(path.stat().st_size for path in cell.adapter.glob("*.safetensors")),
        world_size=world.size,
        resumed_from_step=state.resumed_from_step,
        memory=memory,
        check_losses=tuple(check),
        model_license=base.source.license,
        model_hub_id=base.source.hub_id,
        model_revision=base.source.revision,
        model_citation=base.source.citation,
        versions=versions(str(device)),
    )
    world.on_main(lambda: _finish(cell, record))
    return record


def check_losses(task: Any, model: Any, examples: Sequence[Example], pad: int, device: torch.device) -> list[float]:
    """Loss of each example without gradients, in a fixed batch order so that it can be met exactly again."""
    model.eval()
    with torch.inference_mode():
        scores = task.score(model, examples, lambda rows: padded(task, rows, pad, device, 16))
    return [float(loss) for loss in np.asarray(scores.losses)]


def _save(cell: Cell, base: Base, model: Any, lock: Lock, start: Mapping[str, torch.Tensor] | None) -> None:
    hashes = save_adapter(model, base, lock, cell.adapter, start)
    write_manifest(cell.adapter, base, lock, cell.data.labels, hashes)


def _finish(cell: Cell, record: TrainRecord) -> None:
    record.write(cell.folder / "train.json")
    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
