"""Adapters of cells on texts without labels, before they are trained on the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.core.hashing import kept_sha256
from hfadapt.core.show import Block, Heading, Table
from hfadapt.recipe.schema import Recipe
from hfadapt.records.pretrain import PretrainRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import use_base

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts

AT = f"{PretrainRecord.FILE}#/"


def section(facts: Facts) -> str:
    """What the adapter learned before its task, and from what."""
    found = facts.records.file(PretrainRecord.FILE)
    where = "of its own training rows, without their labels" if found["own"] else "named in the recipe"
    general = f", and {facts(AT + 'general', 'integer')} general ones" if found["general"] else ""
    said = [
        f"Before its task the adapter learned {facts(AT + 'learned')} (`{facts(AT + 'objective')}`) from "
        f"{facts(AT + 'texts', 'integer')} texts {where}{general}, in {facts(AT + 'steps', 'integer')} steps of "
        f"{facts(AT + 'tokens', 'integer')} tokens in all; the same weights were then trained on the task.",
        f"{facts(AT + 'like_held_out', 'integer')} texts were left out because they are like a validation or test row.",
    ]
    if found["loss_before"] is not None:
        said.append(
            f"Loss per label on {facts(AT + 'validation', 'integer')} texts that were held back: "
            f"{facts(AT + 'loss_before', 'decimal')} before, {facts(AT + 'loss_after', 'decimal')} after; that alone "
            "is no proof of use for the task."
        )
    if found.get("compute"):
        at = AT + "compute/"
        said.append(f"Its compute, {facts(at + 'tuning_flops', 'power')} FLOPs, is beside that of training.")
    return " ".join(said)


class Pretrain(Stage):
    """pretrain/ with texts, metrics and weights, and pretrain.json."""

    name = "pretrain"
    title = "adaptation to texts"
    needs = ("plan",)
    before = ("train",)
    may_write = (PretrainRecord,)
    phases = ("pretrain",)
    trains_first = True
    distributed = True
    card = (Section("Adaptation to texts", section),)

    def wanted(self, recipe: Recipe) -> bool:
        """`pretrain` of the recipe or of a domain."""
        return recipe.pretrains

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """Where it was asked for, the weights are those that were saved."""
        return super().intact(cells, context) and all(_is_saved(cell) for cell in cells if _asked(cell, context))

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Adapts each of the cells for which it is asked."""
        from hfadapt.train.pretrain import pretrain_cell

        for cell in cells:
            context.world.on_main(lambda cell=cell: use_base(cell, context, self.name))  # type: ignore[misc]
            if _asked(cell, context):
                identity = context.hashes(cell)[self.name]
                pretrain_cell(cell, context.world, identity=identity, progress=context.progress)

    def seconds(self, cell: Cell) -> float | None:
        """The plan's."""
        return cell.plan.cells[0].pretrain_seconds

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """Texts, steps and losses of each domain."""
        columns = ["domain", "learned", "texts", "like held-out rows", "steps", "loss before", "after", "seconds"]
        rows = [
            [
                record.domain,
                record.objective,
                f"{record.texts:,}",
                f"{record.like_held_out:,}",
                f"{record.steps:,}",
                "" if record.loss_before is None else f"{record.loss_before:.3f}",
                "" if record.loss_after is None else f"{record.loss_after:.3f}",
                f"{record.seconds:,.0f}",
            ]
            for record in (cell.read(PretrainRecord) for cell in cells if cell.holds(PretrainRecord))
        ]
        return [Heading("Adaptation to texts"), Table(columns, rows, frozenset(columns[2:]))] if rows else []


def _asked(cell: Cell, context: Context) -> bool:
    return context.recipe_of(cell).pretrain_of(cell.domain) is not None


def _is_saved(cell: Cell) -> bool:
    if not cell.holds(PretrainRecord):
        return False
    path = cell.begun(Pretrain.name)
    return path.exists() and kept_sha256(path) == cell.read(PretrainRecord).weights_sha256


KIND: Stage = Pretrain()
