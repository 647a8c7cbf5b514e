"""Training cells: base, adapters, loop, saved adapters, train.json; several cells at once on one base."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from hfadapt.adapters import DEFAULT
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.hashing import file_sha256, json_sha256
from hfadapt.core.progress import Corrected, Progress, Silent
from hfadapt.data import augment, canaries, read_split
from hfadapt.fast import fusion
from hfadapt.hardware.peak_memory import PeakMemory, held_bytes, load_libraries, release_memory, resident_bytes
from hfadapt.hardware.processes import Interrupt, World, interruptible
from hfadapt.modalities import Example, Row
from hfadapt.models.attach import (
    adapter_names,
    attach_adapters,
    fresh_heads,
    go_on,
    low_rank_start,
    one_adapter,
    round_as_saved,
    save_adapter,
    trainable,
)
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, load_base
from hfadapt.models.manifest import write_manifest
from hfadapt.objectives import Beginning
from hfadapt.plan.compute import training_compute
from hfadapt.records.search import SearchRecord
from hfadapt.records.stages import Phase, PhaseMeasure, TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.train import trackers
from hfadapt.train.batches import padded
from hfadapt.train.check import CHECK_ROWS, check_losses
from hfadapt.train.energy import EnergyMeter
from hfadapt.train.halving import FOLDER as SEARCH
from hfadapt.train.halving import Halving
from hfadapt.train.job import Job
from hfadapt.train.known import FOLDER as KNOWN
from hfadapt.train.known import with_known
from hfadapt.train.loop import Batches, Loop
from hfadapt.train.pace import planned_bytes, predicted_seconds
from hfadapt.train.probe import head_start, probe_of, start_at, train_probe
from hfadapt.train.recorded import layers_of, measured, record_of, share_of
from hfadapt.train.smaller import halvings, with_less

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Lock

TRIED_ROWS = 2
"""Rows of the step that is tried before training."""
START = "start.safetensors"


def train_cell(
    cell: Cell, world: World, *, identity: str = "", progress: Progress | None = None, known: Path | None = None
) -> TrainRecord:
    """Trains the cell's adapter from its lock and its prepared rows, and writes adapter/ and train.json.

    Args:
        known: A folder in which a teacher's answers stay for other trainings on the same rows; by default they go when
            this one is done.

    Raises:
        DataError: rows cannot be used for the task.
        RunError: training went wrong; the last good state is in checkpoints/.
        KeyboardInterrupt: after a checkpoint was written.
    """
    (record,) = train_cells([cell], world, identities=[identity], progress=progress, known=known)
    assert record is not None
    return record


def train_cells(
    cells: Sequence[Cell],
    world: World,
    *,
    identities: Sequence[str] = (),
    starts: Sequence[Path | None] = (),
    progress: Progress | None = None,
    known: Path | None = None,
) -> list[TrainRecord | None]:
    """Trains the adapters of several cells at the same time on one base; each is what it would be alone.

    The cells must agree on the base, its storage and the labels (`can_share`). A cell that was given up while others
    went on has no record and keeps its checkpoint.

    Args:
        starts: The weights from which each adapter goes on (`models.attach.go_on`); None begins afresh.
        known: Of a single cell, as `train_cell` takes it.

    Raises:
        DataError, RunError, KeyboardInterrupt: as `train_cell`.
    """
    told = progress or Silent()

    def work() -> list[TrainRecord | None]:
        training = Training(cells, world, identities or [""] * len(cells), told)
        training.starts = list(starts) or [None] * len(cells)
        training.known = known
        return training.run()

    return with_less(cells, world, told, work)


class Training:
    """One training of one or more cells on one base, from loading to the records.

    Memory is measured above what the process held before, phase by phase.
    """

    def __init__(self, cells: Sequence[Cell], world: World, identities: Sequence[str], progress: Progress) -> None:
        self.cells, self.world, self.identities, self.progress = cells, world, identities, progress
        self.locks = [cell.lock for cell in cells]
        self.starts: list[Path | None] = [None] * len(cells)
        self.known: Path | None = None
        self.titles = [f"{cell.domain} on {cell.target}" for cell in cells]
        self.halving: Halving | None = None
        self.lock, self.labels = self.locks[0], cells[0].data.labels
        self.task = registry.task(self.lock.task)
        self.device = world.device
        self.names = adapter_names(len(cells))
        load_libraries()
        release_memory()
        self.floor = resident_bytes()
        self.peaks = {phase: PeakMemory(self.device, self.floor) for phase in ("load", "train")}

    def run(self) -> list[TrainRecord | None]:
        """Trains, saves and writes the records."""
        started = time.perf_counter()
        with self.peaks["load"]:
            rows = self._load()
        self.load_seconds = time.perf_counter() - started
        self._try(rows[0][0][:TRIED_ROWS])
        start = low_rank_start(self.model) if registry.adapter(self.lock.adapter.method).changes_base else None
        self._start_trackers()
        meter = EnergyMeter(self.device, self.world.size)
        with meter, self.peaks["train"], interruptible() as interrupt:
            loop, compiled = self._loop(rows, interrupt)
            loop.run()
        if self.world.accelerator.log_with:
            self.world.accelerator.end_training()
        round_as_saved(self.model, self.lock)
        seconds = [job.state.seconds for job in loop.jobs]
        records: list[TrainRecord | None] = []
        for cell, own, job, start_weights in zip(self.cells, self.locks, loop.jobs, self.starts, strict=True):
            del job.optimizer
            if job.error is not None:
                records.append(None)
                continue
            losses, memory = self._keep(cell, own, job, start)
            tried = cell.maybe(SearchRecord)
            record = record_of(cell, own, self.base, job, memory, self.world).model_copy(
                update={
                    "begun": start_weights.relative_to(cell.folder).as_posix() if start_weights else None,
                    "load_seconds": self.load_seconds,
                    "halvings": halvings(cell, self.world.size),
                    "head_start": None if self.probes[cell] is None else "linear probe",
                    "check_losses": tuple(losses),
                    "fast_path": loop.path,
                    "frozen_layers": loop.frozen_layers,
                    "model_layers": layers_of(self.base, own),
                    "augmented_rows": tuple(job.state.augmented) if own.data.augment.on else (),
                    "compile_seconds": fusion.compile_seconds() - compiled if self.compile else None,
                    "energy": share_of(meter.energy(sum(seconds)), job.state.seconds / max(sum(seconds), 1e-9)),
                    "compute": training_compute(
                        own,
                        cell.data,
                        job.state.tokens + (tried.further_tokens if tried else 0),
                        job.state.labelled_tokens + (tried.further_labelled_tokens if tried else 0),
                        sum(p.numel() for p in job.parameters.values()),
                        self.base.source.hub_id,
                        frozen_tokens=job.state.frozen_tokens if loop.frozen_layers else None,
                    ),
                    "together": tuple(each.domain for each in self.cells) if len(self.cells) > 1 else (),
                }
            )
            self.world.on_main(lambda cell=cell, record=record: _finish(cell, record))  # type: ignore[misc]
            records.append(record)
        return records

    def _load(self) -> list[tuple[list[Example], list[Example]]]:
        """Loads the base and puts the adapters on it; returns each cell's training and validation rows."""
        room = self.world.max_memory(self.cells[0].plan.cells[0].budget_bytes)
        divided = self.world.divides(self.lock.train.shard)
        self.base = load_base(BaseRef.of(self.lock), self.labels, self.device, max_memory=room, divided=divided)
        for note in self.task.notes(self.base.tokenizer):
            self.progress.say(note)
        # The tries of a search are of one cell and share its rows.
        by_cell = {
            cell: (self._encode(own, _trained(cell)), self._encode(own, read_split(cell.folder, "validation")))
            for cell, own in dict(zip(self.cells, self.locks, strict=True)).items()
        }
        rows = [by_cell[cell] for cell in self.cells]

        def batches() -> Iterator[Mapping[str, torch.Tensor]]:
            pad, count = self.base.pad_token_id, self.lock.train.micro_batch_rows
            for _, batch in padded(self.task, rows[0][0], pad, self.device, count):
                yield batch

        self.probes = {cell: self._probe(cell, *own) for cell, own in by_cell.items()}
        self.model = attach_adapters(self.base, dict(zip(self.names, self.locks, strict=True)), batches)
        for name, (train, _), cell in zip(self.names, rows, self.cells, strict=True):
            heads = fresh_heads(self.model, self.base, name)
            for head in heads:
                self.task.start_head(head, [label for example in train for label in example.labels])
            if (probe := self.probes[cell]) is not None:
                start_at(heads, probe, self._head_start(cell))
        for number, start in enumerate(self.starts):
            if start is not None:
                go_on(self.model, self.base, self.names[number], start)
                self._head_again(number, *rows[number])
        places = {cell: list(self.cells).index(cell) for cell in self.cells}
        found = {cell: self._with_known(number, rows[number]) for cell, number in places.items()}
        return [found[cell] for cell in self.cells]

    def _alone(self, number: int) -> AbstractContextManager[None]:
        """While inside, peft's own forward goes through the adapter of one cell."""
        return one_adapter(self.model, self.names[number]) if len(self.cells) > 1 else nullcontext()

    def _with_known(
        self,
        number: int,
        rows: tuple[Sequence[Example], Sequence[Example]],
        path: Batches | None = None,
        late: bool = False,
    ) -> tuple[list[Example], list[Example]]:
        """The rows of a cell with what a model that is not trained says of each, where the objective learns from that.

        Args:
            path: Forms batches on the path of training, where it is the trained model that is asked.
            late: Steps were done since.
        """
        cell, lock, identity = self.cells[number], self.locks[number], self.identities[number]
        objective = registry.objective(lock.train.objective)
        if not objective.knows or (objective.refers and path is None):
            return list(rows[0]), list(rows[1])

        def batches(
            examples: Sequence[Example], pad: int = self.base.pad_token_id
        ) -> Iterator[tuple[Sequence[int], Mapping[str, torch.Tensor]]]:
            return padded(self.task, examples, pad, self.device, 2 * lock.train.micro_batch_rows)

        options = objective.Options.model_validate(lock.train.objective_options)
        about = (self.task, self.model.eval(), self.base, lock, self.labels, options)
        beginning = Beginning(*about, cell.folder, path or batches, self.device, self.progress)
        said: dict[str, list[Row]] = {
            "train": _trained(cell),
            "validation": list(read_split(cell.folder, "validation")),
        }
        if not objective.refers:
            # A teacher says the same of the same rows, however the student is trained.
            rows_of = [file_sha256(cell.folder / "data" / f"{split}.parquet") for split in said]
            tokens = registry.modality(self.task.modality).identity(self.base.tokenizer)
            identity = json_sha256(
                [objective.known_from(options, cell.folder), rows_of, tokens, lock.data.max_length, self.labels]
            )
        place = self.known or cell.folder / KNOWN
        with self._alone(number) if path is None else nullcontext():
            train, validation = (
                with_known(
                    *(objective, beginning, said[split], own, (place / f"{split}.safetensors", identity), self.world),
                    late=late,
                )
                for split, own in zip(said, rows, strict=True)
            )
        return train, validation

    def _refer(self, jobs: Sequence[Job], job: Job, path: Batches) -> None:
        """Gives a job's rows what its model says of them before step 1. Raises RunError as `with_known`."""
        number = next(place for place, each in enumerate(jobs) if each is job)
        late = job.state.step > 0
        job.train, job.validation = self._with_known(number, (job.train, job.validation), path, late)

    def _probe(self, cell: Cell, train: list[Example], validation: list[Example]) -> torch.nn.Sequential | None:
        """The head as trained on the frozen base, where the adapter is to start with it."""
        if not self._head_start(cell):
            return None
        self.progress.say(f"{cell.domain}: training the head on the frozen base first")
        own = train[: cell.data.splits["train"]]  # Canaries come last.
        try:
            return probe_of(cell, self.base, own, validation, self._by_length)
        except torch.OutOfMemoryError:
            raise
        except (RunError, RuntimeError, ValueError, TypeError, IndexError):  # `_try` says what code of models refuses.
            self.progress.say(f"{cell.domain}: what the head reads was not found, so it starts untrained")
            return None

    def _head_start(self, cell: Cell) -> float:
        return head_start(self.base, self.task, cell.data.splits["train"], len(self.labels))

    def _head_again(self, number: int, train: list[Example], validation: list[Example]) -> None:
        """Trains the head on what its adapter has learned before: the base's own linear probe reads other vectors."""
        cell = self.cells[number]
        if self.probes[cell] is None:
            return
        heads = fresh_heads(self.model, self.base, self.names[number])
        with self._alone(number):
            own = train[: cell.data.splits["train"]]
            probe = train_probe(self.task, self.model.eval(), heads, own, validation, self._by_length)
        start_at(heads, probe, self._head_start(cell))

    def _by_length(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], Mapping[str, torch.Tensor]]]:
        return padded(self.task, examples, self.base.pad_token_id, self.device, 2 * self.lock.train.micro_batch_rows)

    def _try(self, examples: Sequence[Example]) -> None:
        """A step over a few rows that changes nothing, so that what a model's own code refuses is said before training.

        Of a whole model that is trained, weights that take no part in the loss stay as they are.

        Raises:
            RequestError: the base cannot be trained on rows like these.
        """
        if not examples:
            return
        try:
            with torch.random.fork_rng():
                _, batch = next(iter(padded(self.task, examples, self.base.pad_token_id, self.device, TRIED_ROWS)))
                losses, _ = self.task.losses(self.model.train(), batch)
                if losses.requires_grad:
                    losses.sum().backward()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # Models refuse what they cannot read with errors of every kind, and some what they do to their own weights.
            other = " or quant: none," if registry.quant(self.lock.quant).quantised else ","
            raise RequestError(
                f"{type(self.base.model).__name__} cannot be run on these rows",
                place=self.base.source.asked,
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                allowed="a base that reads rows as its tokenizer makes them",
                fix=f"choose another base{other} or correct its config or tokenizer",
            ) from error
        if registry.adapter(self.lock.adapter.method).whole_model:
            for name, parameter in self.model.named_parameters():
                # Which experts a few rows reach says nothing about the others.
                if parameter.grad is None and "expert" not in name:
                    parameter.requires_grad_(False)
        self.model.zero_grad(set_to_none=True)

    def _encode(self, lock: Lock, rows: Sequence[Row]) -> list[Example]:
        return self.task.encode(rows, self.base.tokenizer, max_length=lock.data.max_length, labels=self.labels)

    def _augmented(self, cell: Cell, lock: Lock, plain: Sequence[Example]) -> Callable[[int], Sequence[Example]] | None:
        """Makes the encoded rows of an epoch where they change with it, by augmentation or by the task; canaries are
        not augmented."""
        if not lock.data.augment.on and not self.task.redraws:
            return None
        form, settings = cell.data.form, lock.data

        def of_epoch(epoch: int) -> Sequence[Example]:
            # Read again, so that no text is held between epochs.
            rows = read_split(cell.folder, "train")
            draw, encode = (settings.seed, epoch), partial(self._encode, lock)
            changed = augment.examples(rows, plain[: len(rows)], form, settings.augment, draw, encode)
            found = [*changed, *plain[len(rows) :]]
            if not self.task.redraws:
                return found
            planted = canaries.as_trained(cell.folder, cell.data)
            return self.task.in_epoch([*rows, *planted], found, self.base.tokenizer, draw)

        return of_epoch

    def _start_trackers(self) -> None:
        accelerator = self.world.accelerator
        if accelerator.log_with:
            run = trackers.run_name([cell.domain for cell in self.cells], self.cells[0].target)
            tracked = trackers.Tracked(project=self.lock.name, run=run, identity=self.identities[0], ids={})
            settings = self.lock.model_dump(mode="json")
            trackers.start(accelerator, Path(accelerator.project_dir), tracked, self.lock.train.trackers, settings)

    def _loop(self, rows: Sequence[tuple[list[Example], list[Example]]], interrupt: Interrupt) -> tuple[Loop, float]:
        """The loop over a job for each cell, and the seconds that were spent on compiling before."""
        jobs = self._jobs(rows)
        self.compile = any(own.train.fast.compile for own in self.locks)
        compiled = fusion.compile_seconds() if self.compile else 0.0
        loop = Loop.in_run(
            *(self.locks, self.base, self.model, jobs, self.world, interrupt),
            halving=self.halving,
            decided=self._decided,
            progress=Corrected(
                self.progress, predicted_seconds(self.cells), lambda: sum(job.state.frozen_seconds for job in jobs)
            ),
            refer=partial(self._refer, jobs),
            held_bytes=lambda: held_bytes(self.device, self.floor),
            planned_bytes=planned_bytes(self.cells).get("train"),
        )
        return loop, compiled

    def _jobs(self, rows: Sequence[tuple[list[Example], list[Example]]]) -> list[Job]:
        """A job for each cell."""
        several = len(self.cells) > 1
        each = zip(self.cells, self.locks, self.names, rows, self.identities, self.titles, strict=True)
        return [
            Job(
                own.train,
                train,
                validation,
                cell.folder,
                identity,
                trainable(self.model, name if several else None),
                name,
                title,
                cell.name,
                augmented=self._augmented(cell, own, train),
            )
            for cell, own, name, (train, validation), identity, title in each
        ]

    def _save_start(self, folder: Path) -> Path:
        """Writes the weights with which several trainings begin: on disk they need no memory beside a training's."""
        path = folder / START
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in trainable(self.model).items()}
        self.world.on_main(lambda: save_file(tensors, path))
        return path

    def _decided(self, job: Job) -> None:
        """Settings that were decided on the way stand in the lock at once, so that a resumed training goes by them."""
        number = next(number for number, cell in enumerate(self.cells) if cell.folder == job.folder)
        cell, lock = self.cells[number], self.locks[number].model_copy(update={"train": job.settings})
        self.locks[number] = lock
        self.world.on_main(lambda: cell.save_lock(lock))

    def _keep(
        self, cell: Cell, lock: Lock, job: Job, start: Mapping[str, torch.Tensor] | None
    ) -> tuple[list[float], dict[Phase, PhaseMeasure]]:
        """Saves one adapter; returns its losses on the rows of the check, and the memory of all phases."""
        if job.name != DEFAULT:
            self.model.set_adapter(job.name)
        losses = check_losses(self.task, self.model, job.validation[:CHECK_ROWS], self.base.pad_token_id, self.device)
        self.model.zero_grad(set_to_none=True)
        release_memory()
        with PeakMemory(self.device, self.floor) as saving:
            self.world.on_main(lambda: _save(cell, self.base, self.model, lock, start, job.name))
        return losses, measured(self.cells, {**self.peaks, "save": saving})


def _trained(cell: Cell) -> list[Row]:
    """The rows that a cell learns from, canaries last."""
    return [*read_split(cell.folder, "train"), *canaries.as_trained(cell.folder, cell.data)]


def _save(cell: Cell, base: Base, model: Any, lock: Lock, start: Mapping[str, torch.Tensor] | None, name: str) -> None:
    hashes = save_adapter(model, base, lock, cell.adapter, start, name)
    write_manifest(cell.adapter, base, lock, cell.data.labels, hashes)


def _finish(cell: Cell, record: TrainRecord) -> None:
    cell.write(record)
    for done in ("checkpoints", KNOWN, SEARCH):
        shutil.rmtree(cell.folder / done, ignore_errors=True)
