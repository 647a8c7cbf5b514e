"""What `data.augment: auto` takes: a short trial on the validation rows, where there are few rows to train on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.card.sections import difference
from hfadapt.core.show import Block, Heading, Table
from hfadapt.hardware.versions import versions
from hfadapt.models.base import BaseRef
from hfadapt.plan.augment import SEEDS, Shares, to_try
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.schema import Recipe
from hfadapt.records.augment import AugmentRecord, TriedAugment, named
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import decide, use_base, with_augmented

if TYPE_CHECKING:
    import numpy as np

    from hfadapt.card.facts import Facts

AT = f"{AugmentRecord.FILE}#/"
CONFIDENCE = 0.95
"""Of all intervals together."""
LEAST_ROWS = 30
"""Validation rows; with fewer nothing could be shown to be more than chance."""


def section(facts: Facts) -> str:
    """What was tried, what came of it, and what was taken."""
    record = facts.records.file(AugmentRecord.FILE)
    if not record["tried"]:
        return f"Training rows were to be changed where that helps; none were: {facts(AT + 'reason')}."
    lines = [
        f"Changes of the training rows were tried in short trainings of {facts(AT + 'steps', 'integer')} steps each, "
        f"and compared on the {facts(AT + 'validation_rows', 'integer')} validation rows: {facts(AT + 'reason')}.",
        "",
        "| changes | validation loss, by seed | difference from none |",
        "|---|---|---:|",
    ]
    for number, tried in enumerate(record["tried"]):
        at = f"{AT}tried/{number}"
        losses = ", ".join(facts(f"{at}/losses/{place}", "decimal") for place in range(len(tried["losses"])))
        changes = ", ".join(f"{name}: {facts(f'{at}/shares/{name}', 'decimal')}" for name in tried["shares"])
        found = "" if tried["delta"] is None else difference(facts, at)
        lines.append(f"| {changes or 'none'} | {losses} | {found} |")
    return "\n".join(lines)


class AugmentStage(Stage):
    """augment.json, and plan.json and lock.yaml with what was taken."""

    name = "augmentation"
    title = "trial of augmentation"
    verb = "train"
    needs = ("plan",)
    after = ("pretrain",)
    before = ("train",)
    records = (AugmentRecord,)
    phases = ("load", "train")
    settles = True
    distributed = True
    card = (Section("Augmentation", section),)

    def wanted(self, recipe: Recipe) -> bool:
        """`data.augment: auto`."""
        return recipe.data.augment.auto

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Tries, where there are few rows, and plans again with what is taken."""
        world = context.world
        for cell in cells:
            world.on_main(lambda cell=cell: _begin(cell, context))  # type: ignore[misc]
            settings, why = world.on_main(lambda cell=cell: _settings(cell, context))  # type: ignore[misc]
            record = self._tried(cell, context, settings) if settings else _untried(cell, context, why)
            world.on_main(lambda cell=cell, record=record: _take(cell, context, record))  # type: ignore[misc]

    def _tried(self, cell: Cell, context: Context, settings: Sequence[Shares]) -> AugmentRecord:
        """Trains with each setting, seed by seed; one that is worse with a seed is out."""
        from hfadapt.train.augmentation import AugmentTrial, loss_of

        started, world = time.perf_counter(), context.world
        identity, start = context.hashes(cell)[self.name], context.start(cell, self.name)
        trial = AugmentTrial(cell, world, start, identity, context.progress)
        plain: list[np.ndarray] = []
        found: list[list[np.ndarray]] = [[] for _ in settings]
        left = list(range(len(settings)))
        for number in range(SEEDS):
            plain.append(trial.losses({}, number))
            for place in left:
                found[place].append(trial.losses(settings[place], number))
            # Decided by one process: rounding must not part them.
            left = world.on_main(lambda: [i for i in left if loss_of(found[i][-1]) < loss_of(plain[-1])])  # noqa: B023
            if not left:
                break
        confidence = 1 - (1 - CONFIDENCE) / len(settings)
        tried = [TriedAugment(shares={}, losses=tuple(map(loss_of, plain)))]
        tried += [_compared(shares, plain, own, confidence) for shares, own in zip(settings, found, strict=True)]
        taken, reason = _choice(tried, len(plain))
        trial.close()
        return _untried(cell, context, reason).model_copy(
            update={
                "taken": taken,
                "tried": tuple(tried),
                "steps": trial.steps,
                "seeds": tuple(trial.seeds(number)[1] for number in range(len(plain))),
                "confidence": confidence,
                "seconds": time.perf_counter() - started,
            }
        )

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """A line for each setting that was tried, or why none was."""
        columns = ["domain", "changes", "validation loss", "difference", "interval", "taken"]
        rows: list[list[str]] = []
        for record in (cell.read(AugmentRecord) for cell in cells if cell.holds(AugmentRecord)):
            if not record.tried:
                rows.append([record.domain, "off", "", "", record.reason, "yes"])
            for each in record.tried:
                interval = "" if each.low is None else f"[{each.low:+.4f}, {each.high:+.4f}]"
                delta = "" if each.delta is None else f"{each.delta:+.4f}"
                losses = ", ".join(f"{loss:.4f}" for loss in each.losses)
                taken = "yes" if each.shares == record.taken else ""
                rows.append([record.domain, each.name, losses, delta, interval, taken])
        return [Heading("Trial of augmentation"), Table(columns, rows, frozenset(columns[3:5]))] if rows else []


def _begin(cell: Cell, context: Context) -> None:
    """The plan as it is without an answer: what an earlier trial took would change what is tried."""
    (cell.folder / AugmentRecord.FILE).unlink(missing_ok=True)
    use_base(cell, context, AugmentStage.name)
    if cell.lock.data.augment.on:
        base = BaseRef.of(cell.lock)
        decide(cell, context, base, with_augmented(cell, context, base))


def _settings(cell: Cell, context: Context) -> tuple[list[Shares], str]:
    """What is to be tried with the cell's rows, or why nothing."""
    from hfadapt.data import augment

    recipe, data = context.recipe_of(cell), cell.data
    found, why = to_try(recipe, data.splits["train"], data.labels)
    if not found:
        return [], why
    if data.splits["validation"] < LEAST_ROWS:
        return [], f"fewer than {LEAST_ROWS} validation rows cannot tell a gain from chance"
    rows = cell.read_split("train")
    able = [each for each in found if augment.apply(rows, data.form, Augment(**each), recipe.data.seed, 0) != rows]
    return able, "no change may touch these rows: labels, answers and text that is itself learned stay as they are"


def _compared(
    shares: Shares, plain: Sequence[np.ndarray], own: Sequence[np.ndarray], confidence: float
) -> TriedAugment:
    """A setting beside no change, over the seeds that it was trained with."""
    from hfadapt.evaluate.metrics.rows import bootstrap, find
    from hfadapt.train.augmentation import loss_of

    # The mean over the seeds, row by row.
    base, mean = (sum(part[1:], part[0]) / len(part) for part in (plain[: len(own)], own))
    metric = bootstrap(find("loss"), base, mean, resamples=4000, confidence=confidence, seed=0)
    losses = tuple(map(loss_of, own))
    return TriedAugment(shares=dict(shares), losses=losses, delta=metric.delta, low=metric.low, high=metric.high)


def _choice(tried: Sequence[TriedAugment], seeds: int) -> tuple[dict[str, float], str]:
    """What is taken, and why, in words."""
    plain, *others = tried
    better = [
        each
        for each in others
        if len(each.losses) == SEEDS
        and all(own < none for own, none in zip(each.losses, plain.losses, strict=True))
        and each.high is not None
        and each.high < 0
    ]
    if not better:
        return {}, "none lowered the loss with every seed and by more than chance"
    best = min(better, key=lambda each: each.delta or 0.0)
    return best.shares, f"{best.name} lowered the loss with all {seeds} seeds and by more than chance"


def _untried(cell: Cell, context: Context, reason: str) -> AugmentRecord:
    return AugmentRecord(
        domain=cell.domain,
        target=cell.target,
        taken={},
        reason=reason,
        rows=cell.data.splits["train"],
        validation_rows=cell.data.splits["validation"],
        versions=versions(str(context.world.device)),
    )


def _take(cell: Cell, context: Context, record: AugmentRecord) -> None:
    """Writes the record, measures the rows as they are changed, and plans again."""
    cell.write(record)
    context.progress.say(f"{cell.domain}: data.augment is {named(record.taken)}: {record.reason}")
    for each in record.tried:
        losses = ", ".join(f"{loss:.4f}" for loss in each.losses)
        context.progress.say(f"  {each.name}: validation loss {losses}")
    base = BaseRef.of(cell.lock)
    decide(cell, context, base, with_augmented(cell, context, base))


KIND: Stage = AugmentStage()
