"""An adapter's first phase: it is adapted to texts without labels, and training on the task goes on from there.

The same low-rank layers are trained in both phases, so one adapter comes out of them. In this phase the base's head
stays as it is; what an objective trains beside the adapter is left behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file

from hfadapt.adapters import DEFAULT
from hfadapt.core import registry
from hfadapt.core.hashing import file_sha256
from hfadapt.core.progress import Progress, Silent
from hfadapt.data.unlabelled import read_texts
from hfadapt.hardware.peak_memory import PeakMemory, load_libraries, release_memory, resident_bytes
from hfadapt.hardware.processes import World, interruptible
from hfadapt.hardware.versions import versions
from hfadapt.modalities import Example, Row
from hfadapt.models.attach import attach_adapters, trained_layers
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.models.load import load_base
from hfadapt.objectives.supervised import KIND as SUPERVISED
from hfadapt.plan.compute import tuning_compute
from hfadapt.records.pretrain import PretrainRecord
from hfadapt.records.stages import PhaseMeasure
from hfadapt.run_folder import PRETRAIN, Cell
from hfadapt.train.batches import padded
from hfadapt.train.job import Job
from hfadapt.train.loop import Loop
from hfadapt.train.smaller import with_less

if TYPE_CHECKING:
    from hfadapt.objectives import SelfSupervised
    from hfadapt.recipe.schema import Lock

SCORED_ROWS = 16
LIKE_HELD_OUT = ("like-held-out-row", "shares-text-with-held-out-row")


def pretrain_cell(cell: Cell, world: World, *, identity: str = "", progress: Progress | None = None) -> PretrainRecord:
    """Adapts a fresh adapter to the cell's texts, and writes its weights and pretrain.json.

    Raises:
        DataError: the base's tokenizer cannot be used so.
        RequestError: the base cannot learn so.
        RunError: training went wrong; the last good state is in pretrain/checkpoints/.
        KeyboardInterrupt: after a checkpoint was written.
    """
    told = progress or Silent()
    return with_less([cell], world, told, lambda: _Phase(cell, world, identity, told).run())


def phase_lock(lock: Lock, objective: SelfSupervised) -> Lock:
    """The lock with which the first phase is trained; an example of it may hold several texts."""
    settings = lock.pretrain
    assert settings is not None
    changed = {
        "epochs": settings.epochs,
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "batch_rows": max(1, settings.batch_rows // objective.text_rows),
        "micro_batch_rows": max(1, settings.micro_batch_rows // objective.text_rows),
        "patience": None,
        # Of the training on the task.
        "time": None,
    }
    train = lock.train.model_copy(update=changed)
    return lock.model_copy(update={"task": objective.loaded_as(lock.task), "train": train})


class _Phase:
    def __init__(self, cell: Cell, world: World, identity: str, progress: Progress) -> None:
        self.cell, self.world, self.identity, self.progress = cell, world, identity, progress
        settings = cell.lock.pretrain
        assert settings is not None
        self.objective = cast("SelfSupervised", registry.objective(settings.objective))
        self.lock = phase_lock(cell.lock, self.objective)
        self.device = world.device

    def run(self) -> PretrainRecord:
        load_libraries()
        release_memory()
        with PeakMemory(self.device, resident_bytes()) as peak, interruptible() as interrupt:
            job, back = self._load()
            before = self._loss(back)
            fast: dict[str, Any] = {"fast": None} if self.objective.text_rows > 1 else {}
            loop = Loop.in_run(
                *([self.lock], self.base, self.model, [job], self.world, interrupt),
                task=self.learner,
                objective=SUPERVISED,
                objective_options=SUPERVISED.Options(),
                packing=self.learner.packs and self.lock.train.fast.attention,
                frozen_cache=False,
                progress=self.progress,
                **fast,
            )
            loop.run()
            after = self._loss(back)
        layers = trained_layers(self.model, self.base, DEFAULT)
        record = self._record(job, loop, (before, after), peak, layers)
        return self.world.on_main(lambda: self._keep(layers, record))

    def _load(self) -> tuple[Job, list[Example]]:
        """The job of this phase, and the examples of the texts that were held back."""
        cell, lock = self.cell, self.lock
        room = self.world.max_memory(cell.plan.cells[0].budget_bytes)
        divided = self.world.divides(lock.train.shard)
        self.base = load_base(BaseRef.of(lock), cell.data.labels, self.device, max_memory=room, divided=divided)
        self.model = attach_adapters(self.base, {DEFAULT: lock})
        layers = trained_layers(self.model, self.base, DEFAULT)
        for parameter in self.model.parameters():
            parameter.requires_grad_(any(parameter is each for each in layers.values()))
        self.learner = self.objective.learner(self.base, lock.train.seed)
        rows, back = (self._divided(read_texts(cell.folder, split)) for split in ("train", "validation"))
        examples, held_back = (
            self.learner.encode(part, self.base.tokenizer, max_length=lock.data.max_length) for part in (rows, back)
        )
        self._leave_idle(examples[:1])
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if (module := getattr(self.learner, "module", None)) is not None:
            parameters |= {f"beside.{name}": p for name, p in module.named_parameters()}
        self.trained = sum(p.numel() for p in layers.values() if p.requires_grad)
        job = Job(
            lock.train,
            examples,
            [],
            cell.folder / PRETRAIN,
            self.identity,
            parameters,
            title=f"{cell.domain} on {cell.target}",
            cell=cell.name,
            augmented=self._in_epoch(rows, examples),
        )
        return job, held_back

    def _divided(self, texts: Sequence[Row]) -> list[Row]:
        """Long texts in pieces."""
        most, tokenizer = self.lock.data.max_length, self.base.tokenizer
        return [piece for row in texts for piece in self.learner.fitted(row, tokenizer, most)]

    def _in_epoch(self, rows: Sequence[Row], examples: list[Example]) -> Callable[[int], list[Example]] | None:
        if not self.learner.redraws:
            return None
        seed, tokenizer = self.lock.data.seed, self.base.tokenizer
        return lambda epoch: self.learner.in_epoch(rows, examples, tokenizer, (seed, epoch))

    def _leave_idle(self, examples: Sequence[Example]) -> None:
        """Layers that take no part in this loss, such as a pooler, are not trained in this phase."""
        _, batch = next(iter(padded(self.learner, examples, self.base.pad_token_id, self.device, 1)))
        losses, _ = self.learner.losses(self.model, batch)
        losses.sum().backward()
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
        self.model.zero_grad(set_to_none=True)
        if (module := getattr(self.learner, "module", None)) is not None:
            module.zero_grad(set_to_none=True)

    def _loss(self, examples: Sequence[Example]) -> float | None:
        """Mean loss per label of examples that are always the same; None without any."""
        if not examples:
            return None
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for _, batch in padded(self.learner, examples, self.base.pad_token_id, self.device, self._at_once):
                losses, _ = self.learner.losses(self.model, batch)
                total, count = total + float(losses.double().sum()), count + len(losses)
        return total / max(1, count)

    @property
    def _at_once(self) -> int:
        return max(1, SCORED_ROWS // self.objective.text_rows)

    def _record(
        self,
        job: Job,
        loop: Loop,
        losses: tuple[float | None, float | None],
        peak: PeakMemory,
        layers: dict[str, torch.nn.Parameter],
    ) -> PretrainRecord:
        cell, state = self.cell, job.state
        plan, texts = cell.plan.cells[0], cell.data.unlabelled
        assert texts is not None
        predicted = {phase.phase: phase.total_bytes for phase in plan.memory}
        facts = model_facts(BaseRef.of(self.lock).location, self.lock.task, max(1, len(cell.data.labels)))
        tokens = sum(job.lengths) / len(job.lengths)
        return PretrainRecord(
            domain=cell.domain,
            target=cell.target,
            objective=self.objective.name,
            learned=self.objective.title,
            own=texts.own,
            texts=texts.texts,
            general=texts.general,
            validation=texts.validation,
            like_held_out=sum(texts.dropped.get(reason, 0) for reason in LIKE_HELD_OUT),
            steps=state.step,
            epochs=state.step / job.steps_per_epoch,
            tokens=state.tokens,
            labelled_tokens=state.labelled_tokens,
            first_loss=state.first_loss,
            final_loss=state.last_loss,
            loss_before=losses[0],
            loss_after=losses[1],
            seconds=state.seconds,
            predicted_seconds=plan.pretrain_seconds,
            resumed_from_step=state.resumed_from_step,
            fast_path=loop.path,
            tensors=len(layers),
            trainable_parameters=self.trained,
            memory={
                PRETRAIN: PhaseMeasure(
                    predicted_peak_bytes=predicted.get(PRETRAIN), measured_peak_bytes=peak.peak_bytes
                )
            },
            compute=tuning_compute(
                facts,
                self.lock,
                tokens=int(state.tokens * self.objective.passes),
                labelled_tokens=state.labelled_tokens if self.objective.labelled_share else 0,
                trained_parameters=self.trained,
                mean_tokens=tokens,
                hub_id=self.base.source.hub_id,
            ),
            versions=versions(str(self.device)),
        )

    def _keep(self, layers: dict[str, Any], record: PretrainRecord) -> PretrainRecord:
        """Writes the weights, then the record that says they are whole."""
        path = self.cell.begun(PRETRAIN)
        temporary = path.with_name(f".{path.name}.tmp")
        save_file({name: each.detach().cpu().contiguous() for name, each in layers.items()}, temporary)
        temporary.replace(path)
        record = record.model_copy(update={"weights_sha256": file_sha256(path)})
        self.cell.write(record)
        shutil.rmtree(path.parent / "checkpoints", ignore_errors=True)
        return record
