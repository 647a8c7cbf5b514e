"""What train.json says of a cell's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hfadapt.core import registry
from hfadapt.hardware.peak_memory import PeakMemory
from hfadapt.hardware.processes import World
from hfadapt.hardware.versions import versions
from hfadapt.models.facts import layer_stacks
from hfadapt.models.load import Base
from hfadapt.recipe.schema import Lock
from hfadapt.records.evidence import Energy
from hfadapt.records.stages import Phase, PhaseMeasure, TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.train.job import Job
from hfadapt.train.pace import planned_bytes

PACKED_BITS, PACKED = 4, (64, 32)
"""What inputs and outputs of 4-bit layers are multiples of where bitsandbytes 0.50 packs them anew, as it does on
processors with products of bfloat16."""


def measured(cells: Sequence[Cell], peaks: Mapping[str, PeakMemory]) -> dict[Phase, PhaseMeasure]:
    """Peaks beside the predicted ones."""
    predicted = planned_bytes(cells)
    return {
        phase: PhaseMeasure(predicted_peak_bytes=predicted.get(phase), measured_peak_bytes=peaks[phase].peak_bytes)
        for phase in peaks
    }


def layers_of(base: Base, lock: Lock) -> int | None:
    """How many layers the model has, where only the last of them are adapted."""
    count = max(map(len, layer_stacks(base.model).values()), default=0)
    fewer = lock.adapter.layers is not None and lock.adapter.layers < count
    return count if fewer and registry.adapter(lock.adapter.method).low_rank else None


def share_of(energy: Energy, share: float) -> Energy:
    """A cell's share of the energy of a training, by time."""
    if share > 0.999:
        return energy
    grams = None if energy.carbon_grams is None else energy.carbon_grams * share
    how = f"{energy.how}; {share:.1%} of a training of several adapters, by time"
    return energy.model_copy(update={"joules": energy.joules * share, "carbon_grams": grams, "how": how})


def record_of(
    cell: Cell,
    lock: Lock,
    base: Base,
    job: Job,
    memory: dict[Phase, PhaseMeasure],
    world: World,
) -> TrainRecord:
    """Of a job that has ended, whose adapter is written; what only the whole training knows is left out."""
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
        odd_sizes=_odd_sizes(base, lock.quant),
        tokens=state.tokens,
        labelled_tokens=state.labelled_tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        predicted_seconds=plan.predicted_seconds,
        predicted_tokens_per_second=plan.predicted_tokens_per_second,
        load_seconds=0.0,
        adapter_bytes=sum(path.stat().st_size for path in cell.adapter.glob("*.safetensors")),
        world_size=world.size,
        resumed_from_step=state.resumed_from_step,
        memory=memory,
        model_license=base.source.license,
        model_hub_id=base.source.hub_id,
        model_revision=base.source.revision,
        model_citation=base.source.citation,
        base_head=base.head_note,
        settings=registry.task(lock.task).settings(base.tokenizer),
        versions=versions(str(world.device)),
    )


def _odd_sizes(base: Base, quant: str) -> bool:
    """Whether some 4-bit layers have sizes in which bitsandbytes cannot pack them anew."""
    kind = registry.quant(quant)
    layers = (each for each in base.model.modules() if type(each).__name__ == kind.module_class)
    odd = (each.in_features % PACKED[0] or each.out_features % PACKED[1] for each in layers)
    return kind.bits == PACKED_BITS and any(odd)
