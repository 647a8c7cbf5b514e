"""What the adaptation to texts has changed: a second adapter, trained on the task alone for as many steps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.card.sections import difference
from hfadapt.core.show import Block, Heading, Table
from hfadapt.recipe.schema import Recipe
from hfadapt.records.pretrain import PretrainRecord, WithoutPretrainRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts
    from hfadapt.records.stages import TrainRecord

FOLDER = "without-pretrain"


def section(facts: Facts) -> str:
    """Each metric with and without the adaptation to texts."""
    at = f"{WithoutPretrainRecord.FILE}#/"
    lines = [
        f"The adapter against one that was trained on the task alone for as many steps "
        f"({facts(at + 'steps', 'integer')}), on the same {facts(at + 'rows', 'integer')} test rows:",
        "",
        "| metric | task alone | texts, then task | difference |",
        "|---|---:|---:|---:|",
    ]
    for number in range(len(facts.records.value(at + "metrics"))):
        one = f"{at}metrics/{number}"
        lines.append(
            f"| {facts(one + '/name', 'code')} | {facts(one + '/base', 'decimal')} | "
            f"{facts(one + '/adapter', 'decimal')} | {difference(facts, one)} |"
        )
    return "\n".join(lines)


class WithoutPretrain(Stage):
    """without_pretrain.json."""

    name = "without-pretrain"
    title = "training without adaptation to texts"
    verb = "evaluate"
    needs = ("evaluate",)
    settings = ("evaluate",)
    may_write = (WithoutPretrainRecord,)
    distributed = True
    card = (Section("With and without adaptation to texts", section),)

    def wanted(self, recipe: Recipe) -> bool:
        """`evaluate.without_pretrain`, where there is something to compare."""
        return recipe.evaluate.without_pretrain and recipe.pretrains

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Trains the second adapter of each cell that was adapted to texts, and scores both."""
        from hfadapt.train import train_cell

        world = context.world
        for cell in cells:
            if not cell.has(PretrainRecord):
                continue
            other = _other(cell)
            world.on_main(lambda cell=cell, other=other: _copy(cell, other))  # type: ignore[misc]
            context.progress.say(f"{cell.domain}: training on the task alone, to compare")
            identity = context.hashes(cell)[self.name]
            record = train_cell(other, world, identity=identity, progress=context.progress)
            world.on_main(lambda cell=cell, record=record: _compare(cell, record, context))  # type: ignore[misc]

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """The leading metric of each domain with and without."""
        columns = ["domain", "metric", "task alone", "texts, then task", "difference", "interval"]
        rows = []
        for record in (cell.read(WithoutPretrainRecord) for cell in cells if cell.holds(WithoutPretrainRecord)):
            for metric in record.metrics[:1]:
                low, high, delta = metric.low or 0.0, metric.high or 0.0, metric.delta or 0.0
                values = [f"{metric.base:.3f}", f"{metric.adapter:.3f}", f"{delta:+.3f}", f"[{low:+.3f}, {high:+.3f}]"]
                rows.append([record.domain, metric.name, *values])
        return [Heading("With and without adaptation to texts"), Table(columns, rows, frozenset(columns[2:]))] * bool(
            rows
        )


def _other(cell: Cell) -> Cell:
    """The cell of the second adapter."""
    return Cell(cell.folder / FOLDER / cell.domain / cell.target)


def _compare(cell: Cell, trained: TrainRecord, context: Context) -> None:
    """Scores both adapters on the test rows, and writes the record; the second one is not kept."""
    from hfadapt.evaluate.context import open_context
    from hfadapt.evaluate.metrics.rows import compare, find, known_metrics, sampling, usable
    from hfadapt.hardware.peak_memory import release_memory
    from hfadapt.hardware.versions import versions

    device, found = context.world.device, []
    room = context.world.max_memory(cell.plan.cells[0].budget_bytes)
    for each in (_other(cell), cell):
        opened = open_context(each, device, context.progress, room)
        found.append(opened.score(opened.test))
        del opened
        release_memory()
    alone, both = found
    names = [name for name in cell.lock.evaluate.metrics if name in known_metrics() and usable(find(name), both)]
    cell.write(
        WithoutPretrainRecord(
            domain=cell.domain,
            target=cell.target,
            rows=len(both.losses),
            steps=trained.steps,
            metrics=tuple(compare(name, alone, both, **sampling(cell.lock)) for name in names),
            seconds=trained.seconds,
            versions=versions(str(device)),
        )
    )
    shutil.rmtree(cell.folder / FOLDER)


def _copy(cell: Cell, other: Cell) -> None:
    """The cell's rows and plan for a cell of its own, without the texts."""
    shutil.copytree(cell.folder / "data", other.folder / "data", dirs_exist_ok=True)
    other.write(cell.plan)
    other.write(cell.data)
    other.save_lock(cell.lock.model_copy(update={"pretrain": None}))


KIND: Stage = WithoutPretrain()
