"""A smaller model of the adapted one: cut, trained again on the adapted model's answers, and compared with it.

It is a cell of its own in the folder `student`, which can be exported, asked and looked at like any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError, RunError
from hfadapt.core.hashing import json_sha256
from hfadapt.core.show import Block, Heading, Table, show_latency
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.objectives.distill import KIND as DISTILL
from hfadapt.plan.device import export_format
from hfadapt.quants import PLAIN
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.schema import Adapter, Canaries, Recipe
from hfadapt.records.stages import TrainRecord
from hfadapt.records.student import StudentRecord
from hfadapt.run_folder import Cell, Run
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.plan import decide

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts
    from hfadapt.hardware.catalogue import Target
    from hfadapt.student.make import Maker

FOLDER = "student"
RATES = ((50_000_000, 1e-4), (float("inf"), 5e-5))
"""Learning rates of whole models up to so many parameters, in 32 bits; a tenth and less of what LoRA takes."""


def student_of(cell: Cell) -> Cell | None:
    """The cell of a cell's student, where one was made."""
    if not cell.holds(StudentRecord) or not cell.read(StudentRecord).made:
        return None
    return Cell(cell.folder / FOLDER / cell.domain / cell.target)


def section(facts: Facts) -> str:
    """The student beside the adapted model."""
    at = f"{StudentRecord.FILE}#/"
    if not facts.records.value(at + "made"):
        return f"No smaller model was made: {facts(at + 'note', 'text')}."
    lines = [
        f"A smaller model was cut out of the adapted one and trained on its answers: "
        f"{facts(at + 'student/parameters', 'integer')} parameters of "
        f"{facts(at + 'adapted/parameters', 'integer')}, of which {facts(at + 'student/embeddings', 'integer')} of "
        f"{facts(at + 'adapted/embeddings', 'integer')} belong to tokens. On the same "
        f"{facts(at + 'rows', 'integer')} test rows it loses {facts(at + 'points', 'decimal')} points of "
        f"{facts(at + 'metric', 'code')} [{facts(at + 'points_low', 'decimal')}, "
        f"{facts(at + 'points_high', 'decimal')}]; {facts(at + 'limit', 'decimal')} were allowed.",
        "",
        "| | adapted model | student |",
        "|---|---:|---:|",
        f"| one row | {facts(at + 'adapted_seconds', 'latency')} | {facts(at + 'seconds', 'latency')} |",
        f"| a batch | {facts(at + 'adapted_seconds_of_32', 'latency')} | {facts(at + 'seconds_of_32', 'latency')} |",
    ]
    for number in range(len(facts.records.value(at + "metrics"))):
        one = f"{at}metrics/{number}"
        name = facts(one + "/name", "code")
        lines.append(f"| {name} | {facts(one + '/base', 'decimal')} | {facts(one + '/adapter', 'decimal')} |")
    return "\n".join(lines)


class StudentStage(Stage):
    """student.json, and student/ with a cell of its own."""

    name = "student"
    title = "a smaller model"
    needs = ("evaluate",)
    before = ("export",)
    settings = ("student", "budgets", "targets", "export")
    may_write = (StudentRecord,)
    distributed = True
    card = (Section("Smaller form", section),)

    def wanted(self, recipe: Recipe) -> bool:
        """`student` of the recipe."""
        return recipe.student is not None

    def check(self, context: Context) -> None:
        """The task has answers to learn from, and what is open has a budget to go by."""
        recipe = context.recipe
        assert recipe.student is not None
        if problems := list(_problems(recipe)):
            raise RequestError(problems[0].what, problems=problems)
        training = [name for name in recipe.targets if not catalogue.only_serves(name)]
        if recipe.student.open and training:
            raise RequestError(
                "nothing says how small the student is to be",
                place="student",
                got=f"auto, for {', '.join(training)}",
                allowed="auto for targets that only serve, whose budget decides",
                fix="student: {layers: 4, ffn: 0.75}",
            )

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The student that was made lies in its folder."""
        made = [student_of(cell) for cell in cells]
        return super().intact(cells, context) and all(each is None or each.holds(TrainRecord) for each in made)

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Makes and trains a student of each cell; raises RunError where it loses more than the limit."""
        for cell in cells:
            _make(cell, context, context.hashes(cell)[self.name])

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """Size, speed and loss of each student."""
        rows = []
        for record in (cell.read(StudentRecord) for cell in cells if cell.holds(StudentRecord)):
            if not record.made or record.student is None or record.adapted is None:
                rows.append([record.domain, record.target, record.note, "", "", ""])
                continue
            share = record.student.parameters / record.adapted.parameters
            lost = f"{record.points:+.2f} [{record.points_low:+.2f}, {record.points_high:+.2f}]"
            speed = f"{show_latency(record.adapted_seconds or 0)} to {show_latency(record.seconds or 0)}"
            size = f"{record.student.parameters:,} parameters ({share:.0%})"
            rows.append([record.domain, record.target, size, record.metric, lost, speed])
        columns = ["domain", "target", "student", "metric", "points lost", "one row"]
        return [Heading("Smaller models"), Table(columns, rows, frozenset(columns[4:]))] if rows else []


def _problems(recipe: Recipe) -> Iterator[Problem]:
    """What the base or the task does not have."""
    asked, facts = recipe.student, model_facts(BaseRef.of(recipe).location, recipe.task)
    assert asked is not None
    if why := DISTILL.unfit(registry.task(recipe.task)):
        what = f"a student of {recipe.task} cannot learn from the adapted model's answers"
        yield Problem(what, "student", got=why, fix="delete `student`")
    if isinstance(asked.layers, int) and asked.layers > facts.layers:
        got, fix = f"{asked.layers}, of {facts.layers} that the base has", f"choose a number up to {facts.layers}"
        yield Problem("so many layers cannot be kept", "student.layers", got=got, fix=fix)
    if asked.vocabulary not in ("all", "auto") and not facts.vocab_size:
        yield Problem("the base has no tokens", "student.vocabulary", got=str(asked.vocabulary), fix="delete it")


def _make(cell: Cell, context: Context, identity: str) -> None:
    from hfadapt.evaluate import evaluate_cell
    from hfadapt.student.make import Maker
    from hfadapt.train import train_cell

    settings, world = context.recipe.student, context.world
    assert settings is not None
    world.on_main(lambda: cell.save_lock(cell.lock.model_copy(update={"student": settings})))
    target = catalogue.target(cell.target) if catalogue.only_serves(cell.target) else None
    student = Cell(cell.folder / FOLDER / cell.domain / cell.target)

    def begin() -> dict[str, Any] | None:
        if target is not None and settings.open and _fits(cell, target):
            note = f"the adapted model itself fits {cell.target}"
            cell.write(StudentRecord(domain=cell.domain, target=cell.target, made=False, note=note))
            return None
        context.progress.say(f"{cell.domain}: cutting a smaller model out of the adapted one")
        maker = Maker(cell, settings, target, world.accelerator.device)
        ref = maker.shaped(student.made_base(FOLDER))
        if ref is None:
            raise RunError(
                "the student is to be as large as the adapted model", place="student", fix="say what is to go: layers"
            )
        _plan(cell, student, context, ref, maker)
        return {"adapted": maker.adapted, "cut_otherwise": maker.cut_otherwise, "considered": tuple(maker.considered)}

    facts = world.on_main(begin)
    if facts is None:
        return
    trained = train_cell(student, world, identity=identity, progress=context.progress)
    evaluate_cell(student, world, context.progress, context.recipe_folder)
    facts |= {"steps": trained.steps, "training_seconds": trained.seconds}
    world.on_main(lambda: _compare(cell, student, context, facts))


def _fits(cell: Cell, target: Target) -> bool:
    """Whether the adapted model is small and fast enough as it is, in the form that would be written."""
    from hfadapt.student.make import written

    lock = cell.lock
    facts = model_facts(BaseRef.of(lock).location, lock.task, max(1, len(cell.data.labels)))
    forms = written(cell.plan.cells[0].exports, export_format(lock, target, facts), lock.export.storage)
    return any(each.verdict == "fits" for each in forms)


def _plan(cell: Cell, student: Cell, context: Context, ref: BaseRef, maker: Maker) -> None:
    """The rows, plan and lock of the student's own cell."""
    from hfadapt.student.make import shape_of

    shutil.rmtree(student.folder / "data", ignore_errors=True)
    shutil.copytree(cell.folder / "data", student.folder / "data")
    lock, settings = cell.lock, cell.lock.student
    assert settings is not None
    size = shape_of(maker.base).parameters
    rate = next(rate for most, rate in RATES if size <= most)
    up = "/".join([".."] * len(student.folder.relative_to(cell.folder).parts))
    train = context.recipe.train.model_copy(
        update={
            "objective": DISTILL.name,
            "objective_options": {"teacher": up, "weight": settings.weight},
            "epochs": settings.epochs,
            "max_steps": None if settings.epochs != "auto" else context.recipe.train.max_steps,
            "learning_rate": rate if settings.learning_rate == "auto" else settings.learning_rate,
            "together": False,
        }
    )
    domain = lock.domains[cell.domain].model_copy(update={"pretrain": None})
    data = context.recipe.data.model_copy(
        update={"max_length": lock.data.max_length, "augment": Augment(), "canaries": Canaries(count=0)}
    )
    recipe = context.recipe.model_copy(
        update={
            "domains": {cell.domain: domain},
            "targets": (cell.target,),
            "quant": PLAIN,
            "dtype": "float32",
            "adapter": Adapter(method="full"),
            "data": data,
            "train": train,
            "pretrain": None,
            "student": None,
        }
    )
    own = replace(context, recipe=recipe, run=Run(cell.folder / FOLDER), domains=(cell.domain,), _rows={})
    record = cell.data.model_copy(update={"augmented": None, "unlabelled": None})
    student.write(record)
    decide(student, own, replace(BaseRef.of(recipe), made=ref.made), record)


def _compare(cell: Cell, student: Cell, context: Context, facts: dict[str, Any]) -> None:
    """Writes student.json. Raises RunError where more is lost than the limit."""
    from hfadapt.hardware.versions import versions
    from hfadapt.models.load import load_base
    from hfadapt.student.make import SideBySide, points_lost, shape_of

    device, settings = context.world.accelerator.device, cell.lock.student
    assert settings is not None
    room = context.world.max_memory(cell.plan.cells[0].budget_bytes)
    both = SideBySide(cell, student, device, context.progress, room)
    metrics, one, many, rows = both.metrics(), both.seconds(1), both.seconds(32), both.rows
    both.close()
    own = load_base(BaseRef.of(student.lock), student.data.labels, device)
    student.set_state(status="done")
    lost, low, high = points_lost(metrics[0])
    values = {each.name: each.base for each in cell.evaluation.metrics if each.base is not None}
    cell.write(
        StudentRecord(
            domain=cell.domain,
            target=cell.target,
            made=True,
            folder=FOLDER,
            student=shape_of(own),
            rows=rows,
            metrics=metrics,
            before={each.name: values[each.name] for each in metrics if each.name in values},
            metric=metrics[0].name,
            points=lost,
            points_low=low,
            points_high=high,
            limit=settings.limit,
            adapted_seconds=one[0],
            seconds=one[1],
            adapted_seconds_of_32=many[0],
            seconds_of_32=many[1],
            teacher=dict(cell.manifest.files),
            weights_sha256=json_sha256(student.manifest.files),
            versions=versions(str(device)),
            **facts,
        )
    )
    if lost > settings.limit:
        raise RunError(
            "the student loses more than the limit",
            place=str(student.folder),
            got=f"{lost:.2f} points of {metrics[0].name} [{low:.2f}, {high:.2f}]",
            allowed=f"{settings.limit:g}",
            fix="keep more layers or units, train longer (student.epochs), or raise student.limit",
        )


KIND: Stage = StudentStage()
