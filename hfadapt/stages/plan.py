"""The plan of a cell, with the token lengths of its rows; its lock, and the audit of the rows under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, DoesNotFit
from hfadapt.core.show import show_bytes
from hfadapt.data.unlabelled import FILE, Held, gather, opened, read_texts
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.plan.make import lock as lock_cell
from hfadapt.plan.make import make_plan
from hfadapt.plan.reasons import AUGMENT, longest_planned
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.schema import Lock, Recipe
from hfadapt.records.augment import AugmentRecord
from hfadapt.records.plan import CellPlan, Decision, Plan
from hfadapt.records.stages import DataRecord
from hfadapt.run_folder import PRETRAIN, Cell, is_whole
from hfadapt.stages import Context, Stage


class PlanStage(Stage):
    """plan.json, lock.yaml, and data.json with lengths and audit."""

    name = "plan"
    title = "planning"
    needs = ("prepare",)
    # What is done with a trained adapter can change without another training.
    settings = tuple(name for name in Recipe.model_fields if name not in ("evaluate", "student"))
    records = (Plan,)

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The texts that the adapter is adapted to first, and the rows of all domains that they must not be like."""
        settings = context.recipe_of(cell).pretrain_of(cell.domain)
        if settings is None:
            return None
        found = [(each.name, each.fingerprint) for part in opened(settings, context.recipe_folder) for each in part]
        return [found, {domain: context.rows_of(domain) for domain in sorted(context.prepared)}]

    def check(self, context: Context) -> None:
        """Refuses a base that cannot be one and what the targets cannot do, before any data is read."""
        from hfadapt.models.load import check_base

        check_base(BaseRef.of(context.asked))
        make_plan(context.asked, processes=context.world.size)

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The lock is not a record, and data.json may be that of the preparation alone."""
        known = all(cell.planned and cell.holds(DataRecord) and cell.data.audit for cell in cells)
        texts = [cell.folder / PRETRAIN / FILE for cell in cells if known and cell.data.unlabelled]
        return super().intact(cells, context) and known and all(map(is_whole, texts))

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Plans and audits."""
        from hfadapt.data import CUT_OFF, keep_lengths
        from hfadapt.models.load import load_processor, source_of

        for cell in cells:
            # What was tried with other rows or settings holds no longer.
            (cell.folder / AugmentRecord.FILE).unlink(missing_ok=True)
            if CUT_OFF in cell.data.dropped:
                # At another length other rows are left.
                context.prepared[cell.domain].copy_into(cell.folder)
            base = context.base(cell, self.name)
            tokenizer = load_processor(source_of(base), registry.task(context.recipe.task).modality)
            recipe, folder = context.recipe_of(cell), context.recipe_folder
            record = measure_lengths(cell, recipe, tokenizer)
            check_objective(context.recipe, record)
            keep_lengths(record, recipe, base.location)
            record = gather_texts(record, cell, recipe, tokenizer, context.held, folder)
            lock, decided = decide(cell, context, base, record)
            audit_cell(cell, lock, tokenizer, record)
            context.progress.say(summary(lock, decided, record))
            if record.dropped:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in record.dropped.items())
                context.progress.say(f"  left out: {reasons}; {cell.folder / 'data' / 'dropped.jsonl'} has each row")
            for warning in (*decided.warnings, *_few_to_judge(decided, record)):
                context.progress.say(f"  note: {warning}")
            for finding in cell.data.audit.findings if cell.data.audit else ():
                context.progress.say(f"  note: {finding.message}")
            for stage in context.stages:
                stage.look_ahead(cell, context)


def _few_to_judge(plan: CellPlan, record: DataRecord) -> list[str]:
    """Where an export may be refused for the few rows that judge it."""
    from hfadapt.export.gate import MOST_ROWS

    rows = record.splits["test"]
    if not plan.exports or not rows or rows >= MOST_ROWS:
        return []
    return [
        f"{rows:,} test rows judge what is written for {plan.target}: one or two answers may refuse a form by chance "
        f"(data.test: {MOST_ROWS} tells more)"
    ]


def check_objective(recipe: Recipe, data: DataRecord | None = None) -> None:
    """What the objective needs beside the rows is there, and suits the task and, where they are known, the labels.

    Args:
        data: Of prepared rows; without it the labels that the recipe names are looked at.

    Raises:
        RequestError: it cannot be had so.
    """
    objective = registry.objective(recipe.train.objective)
    options = objective.Options.model_validate(recipe.train.objective_options)
    if data is not None:
        objective.check_labels(options, data.labels)
        return
    objective.check(options, registry.task(recipe.task))
    for domain in recipe.chosen:
        if labels := recipe.domains[domain].labels:
            objective.check_labels(options, labels)


def decide(cell: Cell, context: Context, base: BaseRef, record: DataRecord) -> tuple[Lock, CellPlan]:
    """Writes plan.json and lock.yaml.

    Raises:
        DoesNotFit: the cell needs more memory than its target has; the plan says what would fit.
    """
    sharing = sum(target == cell.target for _, target in context.asked.cells())
    plan = _plan(cell, context, base, record, sharing)
    decided = plan.cells[0]
    lock = lock_cell(_recipe(cell, context), decided).model_copy(update={"base": base.made})
    cell.write(plan)
    cell.save_lock(lock)
    if not decided.fits:
        raise DoesNotFit(decided.shortage, fix="hfadapt plan RECIPE, which shows what would fit")
    return lock, decided


def _plan(cell: Cell, context: Context, base: BaseRef, record: DataRecord, sharing: int | None = None) -> Plan:
    """The plan of one cell for the sizes of a base."""
    recipe = _recipe(cell, context)
    located = recipe.model_copy(update={"model": base.location})
    plan = make_plan(located, data={cell.domain: record}, processes=context.world.size, sharing=sharing)
    if _was_tried(cell, context):
        trial = cell.read(AugmentRecord)
        taken = Decision(field=AUGMENT, value=trial.taken, asked=False, reason=trial.reason)
        decided = plan.cells[0].model_copy(update={"decisions": (*plan.cells[0].decisions, taken)})
        plan = plan.model_copy(update={"cells": (decided,)})
    return plan.model_copy(update={"model": recipe.model})


def _was_tried(cell: Cell, context: Context) -> bool:
    """Whether a trial has answered which rows are changed."""
    return context.recipe_of(cell).data.augment.auto and cell.has(AugmentRecord)


def _recipe(cell: Cell, context: Context) -> Recipe:
    """The recipe of a cell, with the changes of rows that a trial has taken."""
    recipe = context.recipe_of(cell)
    if not _was_tried(cell, context):
        return recipe
    data = recipe.data.model_copy(update={"augment": Augment(**cell.read(AugmentRecord).taken)})
    return recipe.model_copy(update={"data": data})


def with_augmented(cell: Cell, context: Context, base: BaseRef) -> DataRecord:
    """The cell's data record with the lengths of rows as a trial has them changed, which is written."""
    from hfadapt.data import augmented
    from hfadapt.models.load import load_processor, source_of

    recipe, record, task = _recipe(cell, context), cell.data, registry.task(context.recipe.task)
    tokenizer = load_processor(source_of(base), task.modality)
    rows = cell.read_split("train")
    changed = augmented(rows, record.form, recipe.data, task, tokenizer, labels=record.labels)
    record = record.model_copy(update={"augmented": changed})
    cell.write(record)
    return record


def use_base(cell: Cell, context: Context, stage: str) -> None:
    """Plans again where a stage has made another base since: it may be larger or smaller."""
    base = context.base(cell, stage)
    if base.made != cell.lock.base:
        lock, decided = decide(cell, context, base, cell.data)
        context.progress.say(f"{base.made.how if base.made else base}: {summary(lock, decided, cell.data)}")


def renew_evaluation(cell: Cell, context: Context) -> None:
    """Another evaluation of the same adapter was asked for: only that section of the lock changes."""
    lock = cell.lock
    plan = _plan(cell, context, BaseRef.of(lock), cell.data)
    asked = lock_cell(_recipe(cell, context), plan.cells[0]).evaluate
    if asked != lock.evaluate:
        cell.save_lock(lock.model_copy(update={"evaluate": asked}))


def summary(lock: Lock, plan: CellPlan, record: DataRecord) -> str:
    """The plan of a cell in one line, shown before it is trained."""
    rank = f" rank {lock.adapter.rank}" if registry.adapter(lock.adapter.method).low_rank else ""
    stored = lock.quant if registry.quant(lock.quant).quantised else lock.dtype
    planted = f" and {record.canaries.rows:,} of canaries" if record.canaries else ""
    rows = f"{record.splits['train']:,} rows{planted}"
    unit = registry.modality_of(lock.task).unit
    return (
        f"{plan.domain} on {plan.target}: {rows} of up to {lock.data.max_length} {unit}, "
        f"{lock.adapter.method}{rank} on a {stored} base, {lock.train.batch_rows} rows a step, "
        f"peak {show_bytes(plan.peak.total_bytes)} of {show_bytes(plan.budget_bytes)} predicted"
    )


def measure_lengths(cell: Cell, recipe: Recipe, tokenizer: Any) -> DataRecord:
    """Fits the cell's rows to the model; its data record with the token lengths of its splits.

    Raises:
        DataError: the task or the model cannot learn from any of the rows.
    """
    from hfadapt.data import augmented, fit, lengths, read_split

    task, record = registry.task(recipe.task), cell.data
    if record.form not in task.schemas:
        raise DataError(
            f"{recipe.task} cannot learn from rows of this form",
            place=f"domains.{cell.domain}",
            got=record.form,
            allowed=", ".join(sorted(task.schemas)),
            fix="name the columns (domains.NAME.columns), give a template, or choose another task",
        )
    most = longest_planned(recipe, model_facts(BaseRef.of(recipe).location, recipe.task, max(1, len(record.labels))))
    record = fit(
        cell.folder,
        task,
        tokenizer,
        max_length=None if recipe.data.too_long == "drop" else most,
        drop_refused="refused" in recipe.data.allow,
    )
    measured = {
        split: lengths(rows, task, tokenizer, labels=record.labels)
        for split in ("train", "validation", "test")
        if (rows := read_split(cell.folder, split))
    }
    train = read_split(cell.folder, "train")
    changed = augmented(train, record.form, recipe.data, task, tokenizer, labels=record.labels)
    return record.model_copy(update={"lengths": measured, "augmented": changed})


def gather_texts(
    record: DataRecord, cell: Cell, recipe: Recipe, tokenizer: Any, held: Held, recipe_folder: Path = Path()
) -> DataRecord:
    """The record with the texts without labels that the adapter is adapted to first, where the recipe asks for that.

    Raises:
        DataError: a source of texts cannot be read, or no text is left.
    """
    from hfadapt.data import token_lengths

    if recipe.pretrain_of(cell.domain) is None:
        return record
    found = gather(recipe, cell.domain, cell.folder, held, recipe_folder)
    texts = [row["text"] for row in read_texts(cell.folder, "train")]
    measured = token_lengths([[len(ids)] for ids in tokenizer(texts, verbose=False)["input_ids"]])
    return record.model_copy(update={"unlabelled": found.model_copy(update={"lengths": measured})})


def audit_cell(cell: Cell, lock: Lock, tokenizer: Any, record: DataRecord) -> DataRecord:
    """Looks at the rows as training will see them and writes data.json with what was found.

    Raises:
        DataError: there are hard findings.
    """
    from hfadapt.data import Asked, audit, drop_cut_off, drop_too_long, named_in, require_clean

    task = registry.task(lock.task)
    options: dict[str, Any] = {"max_length": lock.data.max_length, "labels": record.labels}
    cell.write(record)
    if lock.data.too_long == "drop":
        record = drop_too_long(cell.folder, task, tokenizer, **options)
    elif task.writes and any(each.longest > lock.data.max_length for each in record.lengths.values()):
        record = drop_cut_off(cell.folder, task, tokenizer, **options)
    facts = model_facts(BaseRef.of(lock).location, lock.task, max(1, len(record.labels)))
    options["most_tokens"] = facts.max_positions
    settings = lock.data
    named, changes = named_in(lock, cell.domain), tuple(settings.augment.shares)
    asked = Asked(settings.dedupe.similarity, named, settings.allow, changes)
    found = audit(cell.folder, task, tokenizer, asked=asked, **options)
    record = record.model_copy(update={"audit": found})
    cell.write(record)
    require_clean(found, f"{cell.domain} on {cell.target}")
    return record


def scoring_seconds(cell: Cell, times: int, beside: float) -> float | None:
    """About how long the test rows take to go through the model so many times: a row's forward pass is a third of what
    it costs to learn from it.

    Args:
        beside: Seconds for loading and for what does not grow with the rows.
    """
    trained, settings = cell.plan.cells[0].predicted_seconds, cell.lock.train
    rows = cell.data.splits
    learned = settings.max_steps * settings.batch_rows if settings.max_steps else settings.epochs * rows["train"]
    return None if trained is None else beside + times * trained * rows["test"] / max(1.0, 3 * learned)


KIND: Stage = PlanStage()
