"""The adapters of cells, alone or several on one base."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import kept_sha256
from hfadapt.objectives import Objective
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import use_base


class Train(Stage):
    """adapter/, metrics.jsonl and train.json."""

    name = "train"
    title = "training"
    needs = ("plan",)
    scope = "group"
    records = (TrainRecord,)
    phases = ("load", "train", "save")
    keeps_earlier = True
    distributed = True
    card = (
        Section("Intended use"),
        Section("How to load"),
        Section("Training"),
        Section("Environment and compute"),
        Section("Files and lineage"),
    )

    def check(self, context: Context) -> None:
        """What the objective needs beside the rows is there."""
        objective, options = _objective(context)
        objective.check(options, registry.task(context.recipe.task))

    def inputs(self, cell: Cell, context: Context) -> Any:
        """What the objective learns from beside the rows."""
        objective, options = _objective(context)
        return objective.known_from(options)

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The adapter lies beside the record."""
        return super().intact(cells, context) and all(_is_saved(cell) for cell in cells)

    def groups(self, cell: Cell) -> bool:
        """As the plan has decided, where the method's adapters can share a base."""
        lock = cell.lock
        return lock.train.together and registry.adapter(lock.adapter.method).shares_base

    def joins(self, cell: Cell, other: Cell) -> bool:
        """The same base with the same labels, trained in the same way."""
        from hfadapt.train import can_share

        return other.lock.train.together and can_share(cell, other)

    def run(self, cells: Sequence[Cell], context: Context) -> list[Cell]:
        """Trains; a cell whose training failed beside others is left for a turn of its own."""
        from hfadapt import train

        for cell in cells:
            context.world.on_main(lambda cell=cell: use_base(cell, context, self.name))  # type: ignore[misc]
        there = context.world.on_main(lambda: [cell for cell in cells if self._taken(cell, context)])
        cells = [cell for cell in cells if cell not in there]
        if not cells:
            return there
        identities = [context.hashes(cell)[self.name] for cell in cells]
        starts = [context.start(cell, self.name) for cell in cells]
        records = train.train_cells(
            cells, context.world, identities=identities, starts=starts, progress=context.progress
        )
        return there + [cell for cell, record in zip(cells, records, strict=True) if record is not None]

    def _taken(self, cell: Cell, context: Context) -> bool:
        """Takes the adapter of another target that was trained with the same rows and settings, where there is one."""
        if context.start(cell, self.name) is not None:
            return False
        for other in context.cells:
            if (
                (other.domain, other.target != cell.target) == (cell.domain, True)
                and other.state.stages.get(self.name) == context.hashes(other)[self.name]
                and self.intact([other], context)
                and _learned(other) == _learned(cell)
            ):
                break
        else:
            return False
        context.progress.say(
            f"{cell.domain} on {cell.target}: the adapter of {other.target} is taken, which has learned from the same "
            "rows with the same settings"
        )
        ready = cell.adapter.with_name(f".{cell.adapter.name}.tmp")
        for each in (ready, cell.adapter):
            shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(other.adapter, ready)
        ready.rename(cell.adapter)
        shutil.copy(other.folder / "metrics.jsonl", cell.folder / "metrics.jsonl")
        record = other.train
        taken = {"target": cell.target, "same_as": record.same_as or other.target}
        cell.write(record.model_copy(update=taken))
        return True


def _learned(cell: Cell) -> list[Any]:
    """All that decides what a training comes to."""
    for_later = {"targets", "budgets", "evaluate", "export", "student"}
    rows = [kept_sha256(cell.folder / "data" / f"{split}.parquet") for split in ("train", "validation")]
    return [cell.lock.model_dump(mode="json", exclude=for_later), rows]


def _objective(context: Context) -> tuple[Objective, Any]:
    """The recipe's objective with its options."""
    objective = registry.objective(context.recipe.train.objective)
    return objective, objective.Options.model_validate(context.recipe.train.objective_options)


def _is_saved(cell: Cell) -> bool:
    """Whether the files of the adapter are those that were saved: no other would be opened."""
    try:
        return all(kept_sha256(cell.adapter / name) == digest for name, digest in cell.manifest.files.items())
    except (RunError, FileNotFoundError):
        return False


KIND: Stage = Train()
