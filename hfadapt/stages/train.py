"""The adapters of cells, alone or several on one base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import kept_sha256
from hfadapt.core.show import Block, Heading, Table
from hfadapt.objectives import Objective
from hfadapt.records.search import SearchRecord, named_try
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import check_objective, use_base

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts
    from hfadapt.recipe.schema import Recipe


AT = f"{SearchRecord.FILE}#/"


def section(facts: Facts) -> str:
    """What was tried, how far, and what went on."""
    record = facts.records.file(SearchRecord.FILE)
    rungs = ", ".join(facts(f"{AT}rungs/{number}", "integer") for number in range(len(record["rungs"])))
    how = "side by side on one base" if record["together"] else "one after the other on one base"
    lines = [
        f"These settings were tried {how}, on the same training rows in the same order, at a constant rate. They were "
        f"compared on {facts(AT + 'validation_rows', 'integer')} validation rows after {rungs} steps, and the better "
        f"half went on; test rows had no part in it. The others took {facts(AT + 'further_steps', 'integer')} steps "
        f"({facts(AT + 'further_seconds', 'seconds')}) beside the {facts(AT + 'training_steps', 'integer')} of the "
        "training.",
        "",
        "| tried | validation loss | steps | went on |",
        "|---|---|---:|---|",
    ]
    for number, each in enumerate(record["tries"]):
        at = f"{AT}tries/{number}"
        losses = ", ".join(facts(f"{at}/losses/{place}", "decimal") for place in range(len(each["losses"])))
        places = (f"{at}/settings/{place}" for place in each["settings"])
        named = ", ".join(f"{place.rpartition('.')[2]}: {facts(place, 'short')}" for place in places)
        went = "yes" if number == record["chosen"] else "given up" if each["failed"] else "no"
        lines.append(f"| {named} | {losses} | {facts(f'{at}/steps', 'integer')} | {went} |")
    return "\n".join(lines)


class Train(Stage):
    """adapter/, metrics.jsonl and train.json."""

    name = "train"
    title = "training"
    needs = ("plan",)
    scope = "group"
    records = (TrainRecord,)
    may_write = (SearchRecord,)
    phases = ("load", "train", "save")
    keeps_earlier = True
    distributed = True
    card = (
        Section("Intended use"),
        Section("How to load"),
        Section("Training"),
        Section("Search", section, SearchRecord),
        Section("Environment and compute"),
        Section("Files and lineage"),
    )

    def check_recipe(self, recipe: Recipe) -> None:
        """What the objective needs beside the rows is there."""
        check_objective(recipe)

    def inputs(self, cell: Cell, context: Context) -> Any:
        """What the objective learns from beside the rows."""
        objective, options = _objective(context)
        return objective.known_from(options)

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The adapter lies beside the record."""
        return super().intact(cells, context) and all(is_saved(cell) for cell in cells)

    def groups(self, cell: Cell) -> bool:
        """As the plan has decided, where the method's adapters can share a base."""
        lock = cell.lock
        return lock.train.together and lock.search is None and registry.adapter(lock.adapter.method).shares_base

    def joins(self, cell: Cell, other: Cell) -> bool:
        """The same base with the same labels, trained in the same way."""
        from hfadapt.train import can_share

        return other.lock.train.together and other.lock.search is None and can_share(cell, other)

    def follows(self, cell: Cell, other: Cell) -> bool:
        """The same domain, trained with the same rows and settings for another target."""
        from hfadapt.train import learned_from

        return cell.domain == other.domain and learned_from(cell) == learned_from(other)

    def seconds(self, cell: Cell) -> float | None:
        """The plan's, with the tries of a search."""
        plan = cell.plan.cells[0]
        tries = plan.search.seconds if plan.search else 0.0
        return None if plan.predicted_seconds is None else plan.predicted_seconds + (tries or 0.0)

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """Every try of a search."""
        columns = ["domain", "tried", "validation loss", "steps", "seconds", "chosen"]
        rows = []
        for record in (cell.read(SearchRecord) for cell in cells if cell.holds(SearchRecord)):
            for place, each in enumerate(record.tries):
                losses = ", ".join(f"{loss:.4f}" for loss in each.losses) or each.failed or ""
                figures = [f"{each.steps:,}", f"{each.seconds:.1f}", "yes" if place == record.chosen else ""]
                rows.append([record.domain, named_try(each.settings), losses, *figures])
        return [Heading("Search"), Table(columns, rows, frozenset(columns[3:5]))] if rows else []

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
        if len(cells) == 1 and cells[0].lock.search is not None:
            identity, start, progress = identities[0], starts[0], context.progress
            train.search_cell(cells[0], context.world, identity=identity, start=start, progress=progress)
            return list(cells)
        records = train.train_cells(
            cells, context.world, identities=identities, starts=starts, progress=context.progress
        )
        return there + [cell for cell, record in zip(cells, records, strict=True) if record is not None]

    def _taken(self, cell: Cell, context: Context) -> bool:
        """Takes the adapter of another target that was trained with the same rows and settings, where there is one."""
        from hfadapt.train import learned_from, take_training

        if context.start(cell, self.name) is not None:
            return False
        wanted = learned_from(cell)
        for other in context.cells:
            if (
                (other.domain, other.target != cell.target) == (cell.domain, True)
                and other.state.stages.get(self.name) == context.hashes(other)[self.name]
                and self.intact([other], context)
                and wanted == (searched(other) or learned_from(other))
            ):
                break
        else:
            return False
        context.progress.say(
            f"{cell.domain} on {cell.target}: the adapter of {other.target} is taken, which has learned from the same "
            "rows with the same settings"
        )
        lock, taken = other.lock, {"target": cell.target}
        if searched(other) == wanted:
            # What the search has found.
            cell.write(other.read(SearchRecord).model_copy(update=taken))
            found = {"train": lock.train, "adapter": lock.adapter, "search": lock.search}
            cell.save_lock(cell.lock.model_copy(update=found))
        take_training(cell, other)
        return True


def searched(cell: Cell) -> str | None:
    """What its search began with, as `learned_from`; None where there was none."""
    return cell.read(SearchRecord).began_with if cell.holds(SearchRecord) else None


def _objective(context: Context) -> tuple[Objective, Any]:
    """The recipe's objective with its options."""
    objective = registry.objective(context.recipe.train.objective)
    return objective, objective.Options.model_validate(context.recipe.train.objective_options)


def is_saved(cell: Cell) -> bool:
    """Whether the files of the adapter are those that were saved: no other would be opened."""
    try:
        return all(kept_sha256(cell.adapter / name) == digest for name, digest in cell.manifest.files.items())
    except (RunError, FileNotFoundError):
        return False


KIND: Stage = Train()
