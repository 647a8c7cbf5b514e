"""For a target that only serves: the adapter is written in a format that runs there, opened again, and judged.

A cell of such a target is done when a form has passed the gate within the target's budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RunError
from hfadapt.core.show import Block, Heading, Table, show_bytes, show_latency
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, model_facts
from hfadapt.plan.device import export_format, unwritten
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.schema import Recipe
from hfadapt.records.published import DeviceRecord, ExportRecord
from hfadapt.records.student import StudentRecord
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.student import student_of

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts
    from hfadapt.recipe.schema import Lock

FOLDER = "exported"
SURELY = 1.1
"""By so much an estimate of bytes may be above a budget before nothing is written: it may be somewhat off."""


def section(facts: Facts) -> str:
    """What leaves for the target, and what was seen of it here."""
    at = f"{DeviceRecord.FILE}#/"
    value = facts.records.value
    if value(at + "format") is None:
        return f"Nothing that runs on {facts(at + 'target', 'code')} is written: {facts(at + 'note', 'text')}."
    # Of older runs it says nothing.
    student = facts.records.file(DeviceRecord.FILE).get("of_student", False)
    left = "the student is" if student else "the adapter is merged and"
    lines = [
        f"For {facts(at + 'target', 'code')} {left} written as {facts(at + 'format', 'code')}, "
        f"{facts(at + 'form', 'code')}: {facts(at + 'bytes', 'integer')} bytes of at most "
        f"{facts(at + 'most_bytes', 'integer')}. The files were opened again by {facts(at + 'runtime', 'text')}.",
    ]
    if value(at + "points") is not None:
        whole = "student" if student else "adapter"
        lines.append(
            f"Against the {whole} as it was trained it loses {facts(at + 'points', 'decimal')} points of "
            f"{facts(at + 'metric', 'code')} [{facts(at + 'points_low', 'decimal')}, "
            f"{facts(at + 'points_high', 'decimal')}]."
        )
    if value(at + "estimated_seconds") is not None:
        sure = "" if value(at + "proved") else ", so that it may take longer than that"
        lines.append(
            f"An answer there takes about {facts(at + 'estimated_seconds', 'latency')} where "
            f"{facts(at + 'most_seconds', 'latency')} are allowed, an estimate that is right within a factor of "
            f"two{sure}; it was not run on the device."
        )
    return "\n".join(lines)


class Export(Stage):
    """device.json, and the exported folder beside it."""

    name = "export"
    title = "export"
    needs = ("evaluate",)
    after = ("student",)
    settings = ("export", "budgets", "targets", "student")
    may_write = (DeviceRecord,)
    card = (Section("On the device", section),)

    def wanted(self, recipe: Recipe) -> bool:
        """Where a target only serves."""
        return any(map(catalogue.only_serves, recipe.targets))

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The weights of the student that leaves in the adapted model's place."""
        return cell.read(StudentRecord).weights_sha256 if cell.holds(StudentRecord) else None

    def check(self, context: Context) -> None:
        """What writes and opens the files is there before anything is trained."""
        from hfadapt.formats import require_packages

        for cell in (each for each in context.cells if catalogue.only_serves(each.target)):
            name = _format(context.recipe, cell, _facts(context.base(cell, self.name), context))
            if name is not None:
                require_packages(registry.format(name))
                registry.format(name).make_ready()

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Writes the first form that passes; raises RunError where none does, or where it is beyond the budget."""
        for cell in cells:
            if catalogue.only_serves(cell.target):
                cell.write(_exported(cell, context))

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """What leaves for each target: bytes, points lost, latency here and there."""
        rows = []
        for cell in cells:
            if cell.state.status == "failed" and self.name not in cell.state.stages and _serves(cell.target):
                failed = cell.state.errors[0].stage
                why = "no form passes within the budget" if failed == self.name else f"{failed} failed"
                rows.append([cell.target, cell.domain, f"none: {why}", *[""] * 5])
            if self.name not in cell.state.stages or not cell.holds(DeviceRecord):
                # What lies there is of an earlier run.
                continue
            record = cell.read(DeviceRecord)
            lost = "not measured"
            if record.points is not None and record.points_low is not None and record.points_high is not None:
                lost = f"{record.points:+.2f} [{record.points_low:+.2f}, {record.points_high:+.2f}]"
            there = "not known" if record.estimated_seconds is None else show_latency(record.estimated_seconds)
            here = "not measured" if record.seconds is None else show_latency(record.seconds)
            form = f"{record.format}, {record.form}" if record.format else f"none: {record.note}"
            form += " of the student" if record.of_student else ""
            rows.append(
                [record.target, record.domain, form, show_bytes(record.bytes), lost, here, there, _kept(record)]
            )
        columns = ["target", "domain", "export", "bytes", "points lost", "latency here", "there, ×2", "budget"]
        return [Heading("On the device"), Table(columns, rows, frozenset(columns[3:7]))] if rows else []


def _serves(target: str) -> bool:
    """Of a run that another machine made a target may be known there alone."""
    try:
        return catalogue.only_serves(target)
    except HfadaptError:
        return False


def _kept(record: DeviceRecord) -> str:
    """The budget, and whether it is sure that the file keeps it."""
    if record.format is None:
        return ""
    most = f"{show_bytes(record.most_bytes or 0)}, {show_latency(record.most_seconds)}"
    unsure = "time not known" if record.estimated_seconds is None else "time may be longer"
    return most if record.proved else f"{most}: {unsure}"


def _facts(base: BaseRef, context: Context) -> ModelFacts:
    return model_facts(base.location, context.recipe.task)


def _format(recipe: Recipe, cell: Cell, facts: ModelFacts) -> str | None:
    return export_format(recipe, catalogue.target(cell.target), facts)


def _open_format(cell: Cell, context: Context, facts: ModelFacts) -> str | None:
    """As `_format`, without those of the target that refuse the trained model as long as another one takes it."""
    planned = _format(context.recipe, cell, facts)
    if context.recipe.export.asked_format:
        return planned
    for name in catalogue.target(cell.target).exports:
        if unwritten(name, facts) is None:
            why = registry.format(name).refusal(cell)
            if why is None:
                return name
            context.progress.say(f"{cell.domain}: {cell.target} gets no {name}: {why}")
    return planned


def _exported(cell: Cell, context: Context) -> DeviceRecord:
    from hfadapt.export.write import export

    student = student_of(cell) if context.recipe.student else None
    cell, own = student or cell, cell.folder
    facts, target = _facts(BaseRef.of(cell.lock), context), catalogue.target(cell.target)
    name = _open_format(cell, context, facts)
    about = {"domain": cell.domain, "target": cell.target}
    if name is None:
        return DeviceRecord(**about, format=None, note=f"no format of {', '.join(target.exports)} can hold it")
    require_room(cell, name, facts, failed=bool(context.recipe.student) and not Cell(own).holds(StudentRecord))
    context.progress.say(f"{cell.domain}: exporting for {cell.target} as {name}")
    beyond: list[str] = []
    for variant in _variants(cell, name, facts):
        shutil.rmtree(own / FOLDER, ignore_errors=True)
        try:
            record = export(cell, name, own / FOLDER, variant=variant, say=context.progress.say).record
        except RunError as error:
            if not beyond:
                raise
            beyond.append("; ".join(f"{each.what}{f': {each.got}' if each.got else ''}" for each in error.problems))
            continue
        found = _record(about, record, cell.lock)
        if found.most_bytes is None or found.bytes <= found.most_bytes:
            return found.model_copy(update={"of_student": student is not None})
        beyond.append(f"{found.form}: {show_bytes(found.bytes)}")
        context.progress.say(f"{cell.domain}: {beyond[-1]}, {cell.target} allows {show_bytes(found.most_bytes)}")
    raise _too_large(cell, beyond, _most_bytes(cell) or 0)


def _variants(cell: Cell, format: str, facts: ModelFacts) -> list[str | None]:
    """What is written, one after the other, until one is within the budget: what the recipe names, or what the format
    prefers, and then the forms that the plan found small enough."""
    if cell.lock.export.storage is not None:
        return [cell.lock.export.storage]
    most = _most_bytes(cell)
    return [None, *(each.form for each in registry.format(format).estimates(facts) if most and each.bytes <= most)]


def _most_bytes(cell: Cell) -> int | None:
    return cell.lock.budgets.get(cell.target, Budget()).bytes or catalogue.target(cell.target).most_bytes


def require_room(cell: Cell, name: str, facts: ModelFacts, failed: bool) -> None:
    """Raises RunError where no form can be within the budget, before any is written.

    Args:
        failed: Whether a student was to leave in the model's place, and none was made.
    """
    most, wanted = _most_bytes(cell), cell.lock.export.storage
    known = [each for each in registry.format(name).estimates(facts) if wanted in (None, each.form)]
    nearest = min(known, key=lambda each: each.bytes, default=None)
    if most is None or nearest is None or nearest.bytes <= SURELY * most:
        return
    found = [f"of {name} the nearest form is {nearest.form}, about {show_bytes(nearest.bytes)}; nothing was written"]
    if failed:
        found.insert(0, "no student was made, so the adapted model itself would leave")
    raise _too_large(cell, found, most)


def _too_large(cell: Cell, found: Sequence[str], most: int) -> RunError:
    return RunError(
        f"the export is larger than {cell.target} allows",
        place=str(cell.folder / FOLDER),
        got="; ".join(found),
        allowed=show_bytes(most),
        fix=f"a smaller base, a form of fewer bits (export.storage), or targets: [{{{cell.target}: {{bytes: …}}}}]",
    )


def _record(about: dict[str, str], record: ExportRecord, lock: Lock) -> DeviceRecord:
    from hfadapt.export.budget import weighed
    from hfadapt.plan.device import BEYOND

    target, budget = catalogue.target(about["target"]), lock.budgets.get(about["target"], Budget())
    judged = next((each for each in record.judged if each.form == record.variant), None)
    kind, form = registry.format(record.format), record.variant or record.format
    size = sum(each.bytes for each in record.files if kind.loads(form, each.name))
    there = weighed(lock, record.format, form, size)
    seconds, most = there.seconds if there else None, budget.latency or target.most_seconds
    return DeviceRecord(
        **about,
        format=record.format,
        form=form,
        folder=FOLDER,
        runtime=record.runtime,
        bytes=size,
        most_bytes=budget.bytes or target.most_bytes,
        seconds=judged.latency_ms / 1e3 if judged else None,
        estimated_seconds=seconds,
        most_seconds=most,
        proved=seconds is not None and most is not None and seconds * BEYOND <= most,
        metric=judged.metric if judged else "",
        points=judged.points if judged else None,
        points_low=judged.points_low if judged else None,
        points_high=judged.points_high if judged else None,
    )


KIND: Stage = Export()
