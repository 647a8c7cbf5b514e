"""A smaller model of the adapted one: cut, trained again on the adapted model's answers, and compared with it.

It is a cell of its own in the folder `student`, which can be exported, asked and looked at like any other.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import json_sha256
from hfadapt.core.show import Block, Heading, Table, show_latency
from hfadapt.data.unlabelled import open_texts
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.plan.device import export_format
from hfadapt.plan.student import SHORT, learning, written
from hfadapt.quants import PLAIN
from hfadapt.recipe.schema import Recipe, Train
from hfadapt.records.stages import EvaluationRecord, TrainRecord
from hfadapt.records.student import OnPolicy, Rounding, StudentRecord
from hfadapt.run_folder import Cell, Run
from hfadapt.stages import Context, Section, Stage
from hfadapt.stages.evaluate import scores_alike, take_evaluation
from hfadapt.stages.plan import decide
from hfadapt.stages.train import is_saved
from hfadapt.student.card import section
from hfadapt.student.refusals import as_large, require_possible, require_tokenizers

if TYPE_CHECKING:
    from hfadapt.hardware.catalogue import Target
    from hfadapt.recipe.schema import Lock
    from hfadapt.student.beside import Cost
    from hfadapt.student.make import Maker

FOLDER = "student"
KNOWN = "answers"


def student_of(cell: Cell) -> Cell | None:
    """The cell of a cell's student, where one was made."""
    if not cell.holds(StudentRecord) or not cell.read(StudentRecord).made:
        return None
    return Cell(cell.folder / FOLDER / cell.domain / cell.target)


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

    def check_recipe(self, recipe: Recipe) -> None:
        """A student can be made of such a base, and can learn."""
        require_possible(recipe)

    def check(self, context: Context) -> None:
        """Likewise by tokenizers, which are fetched now where they are not on this machine."""
        require_tokenizers(context.asked)

    def look_ahead(self, cell: Cell, context: Context) -> None:
        """Test rows are cut as before by a vocabulary of what the rows need."""
        asked = context.recipe.student
        if asked is None or asked.base is not None or asked.texts or asked.vocabulary == "all":
            return
        from hfadapt.models.load import load_processor, source_of
        from hfadapt.student.tokens import Tokens

        kind = registry.modality_of(cell.lock.task)
        if kind.tokens and not _needless(cell, context.recipe):
            tokenizer = load_processor(source_of(BaseRef.of(cell.lock)), kind.name)
            Tokens(cell, cell.folder, tokenizer).require(asked)

    def inputs(self, cell: Cell, context: Context) -> Any:
        """The texts that it learns beside the rows, and what these must not be like."""
        recipe = context.recipe
        if recipe.student is None or not recipe.student.texts:
            return None
        sources = open_texts(recipe.student.texts, context.recipe_folder)
        found = [(each.name, each.fingerprint) for each in sources]
        return [found, {domain: context.rows_of(domain) for domain in sorted(context.prepared)}]

    def seconds(self, cell: Cell) -> float | None:
        """The plan's: at most, as of a model as large as the base."""
        return cell.plan.cells[0].student_seconds

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """The student that was made lies in its folder."""
        made = [student_of(cell) for cell in cells]
        return super().intact(cells, context) and all(each is None or each.holds(TrainRecord) for each in made)

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        """Makes and trains a student of each cell; raises RunError where it loses more than the limit."""
        for cell in cells:
            _Making(cell, context, context.hashes(cell)[self.name]).run()

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """Size, speed and loss of each student."""
        rows = []
        for record in (cell.read(StudentRecord) for cell in cells if cell.holds(StudentRecord)):
            if not record.made or record.student is None or record.adapted is None:
                rows.append([record.domain, record.target, record.note, *[""] * 4])
                continue
            share = record.student.parameters / record.adapted.parameters
            lost = f"{record.points:+.2f} [{record.points_low:+.2f}, {record.points_high:+.2f}], {record.limit:g}"
            speed = f"{show_latency(record.adapted_seconds or 0)} to {show_latency(record.seconds or 0)}"
            cut = [f"from {record.base}"] if record.base else record.student.beside(record.adapted)
            size = ", ".join([*cut, f"{record.student.parameters:,} parameters ({share:.0%})"])
            whole = record.student.integer_share
            integers = "not known" if whole is None else f"{whole:.0%}"
            rows.append([record.domain, record.target, size, integers, record.metric, lost, speed])
        columns = ["domain", "target", "student", "in 8 bits", "metric", "points lost, limit", "one row"]
        return [Heading("Smaller models"), Table(columns, rows, frozenset(columns[3:]))] if rows else []


@dataclass
class _Begun:
    """What the main process has decided and cut, for all processes.

    Attributes:
        ref: The base of the student; None where the adapted model fits the target as it is.
        shapes: Layers and shares of units among which short trainings decide.
        weight: Of the adapted model's answers, where it is not the recipe's.
        facts: Fields of student.json that are known already.
    """

    ref: BaseRef | None = None
    shapes: list[tuple[int, float]] = field(default_factory=list)
    kept: list[int] | None = None
    ramp: str = ""
    weight: float | None = None
    parameters: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class _Making:
    """The student of one cell, from the adapted model to student.json."""

    def __init__(self, cell: Cell, context: Context, identity: str) -> None:
        self.cell, self.context, self.identity, self.world = cell, context, identity, context.world
        assert context.recipe.student is not None
        self.settings = context.recipe.student
        self.target = catalogue.target(cell.target) if catalogue.only_serves(cell.target) else None
        self.student = Cell(cell.folder / FOLDER / cell.domain / cell.target)

    def run(self) -> None:
        """Makes it, unless the adapted model itself is small enough."""
        settings, say = self.settings, self.context.progress.say
        self.world.on_main(lambda: self.cell.save_lock(self.cell.lock.model_copy(update={"student": settings})))
        begun = self.world.on_main(self._begin)
        if len(begun.shapes) > 1:
            begun = self._tried(begun)
        if begun.ref is None:
            return
        asked, by_row = settings.int8 is True, self._rounds() == "rows"
        trained = self._trained(begun, rounded=asked)
        if settings.on_policy:
            begun, trained = self._on_policy(begun, trained, rounded=asked)
        cost, before, dismissed = None, None, None
        if asked or (settings.int8 == "auto" and self._rounds()):
            cost = self.world.on_main(lambda: self._rounding_cost(by_row=by_row))
            if not asked and self._too_much(cost):
                say(
                    f"{self.cell.domain}: rounding to 8 bits costs {cost.points:.2f} points and {cost.kl_nats:.3f} "
                    "nats of validation rows, so the student is trained again and learns it in its last epoch"
                )
                asked, before = True, cost
                unrounded = self.student.folder.with_name(f".{self.student.folder.name}.unrounded")
                self.world.on_main(lambda: _copy(self.student.folder, unrounded))
                again = self._trained(begun, rounded=True)
                cost = self.world.on_main(lambda: self._rounding_cost(by_row=by_row))
                if cost.kl_nats < before.kl_nats:
                    trained = again
                else:
                    say(f"{self.cell.domain}: that costs {cost.kl_nats:.3f} nats, so the student stays as it was")
                    asked, before, cost, dismissed = False, None, before, cost
                    self.world.on_main(lambda: _copy(unrounded, self.student.folder))
                self.world.on_main(lambda: shutil.rmtree(unrounded))
        if cost is not None:
            steps = round(trained.steps * self._share()) if asked else 0
            begun.facts["rounding"] = Rounding(
                points=cost.points,
                kl_nats=cost.kl_nats,
                trained=steps,
                before=before and before[:2],
                dismissed=dismissed and dismissed[:2],
            )
        # What the adapted model said of the rows, for all trainings.
        self.world.on_main(lambda: shutil.rmtree(self.student.folder / KNOWN, ignore_errors=True))
        self._evaluate()
        begun.facts |= {"steps": trained.steps, "training_seconds": trained.seconds}
        self.world.on_main(lambda: self._compare(begun.facts))

    # --- which one ---------------------------------------------------------------------------------------------------

    def _begin(self) -> _Begun:
        cell, settings = self.cell, self.settings
        if note := _needless(cell, self.context.recipe):
            cell.write(StudentRecord(domain=cell.domain, target=cell.target, made=False, note=note))
            return _Begun()
        texts = self._rows()
        maker = self._maker()
        facts: dict[str, Any] = {"adapted": maker.adapted, "texts": texts}
        if settings.base is not None:
            other = replace(BaseRef.of(cell.lock), model=settings.base, made=None).stored(PLAIN, "float32")
            size = model_facts(settings.base, cell.lock.task, max(1, len(cell.data.labels))).parameters
            return _Begun(other, parameters=size, facts=facts | {"base": settings.base})
        kept = maker.kept()
        shapes = maker.shapes(len(kept) if kept else None)
        layers, ffn = shapes[0]
        found = settings.model_copy(update={"layers": layers, "ffn": ffn})
        if nothing := as_large(found, maker.adapted.layers or 0, tokens=kept is not None):
            raise RunError(nothing.what, problems=[nothing])
        begun = _Begun(shapes=shapes, kept=kept, facts=facts | {"considered": tuple(maker.considered)})
        return begun if len(shapes) > 1 else self._cut(begun, shapes[0], maker)

    def _rows(self) -> int:
        """The rows that the student learns, in its own folder; how many of them are texts without labels."""
        cell, student = self.cell, self.student
        shutil.rmtree(student.folder / "data", ignore_errors=True)
        shutil.copytree(cell.folder / "data", student.folder / "data")
        student.write(cell.data.model_copy(update={"augmented": None, "unlabelled": None}))
        if not self.settings.texts:
            return 0
        from hfadapt.student.texts import add_answered

        sources = open_texts(self.settings.texts, self.context.recipe_folder)
        return add_answered(cell, student, sources, self.context.held, self.context.progress.say)

    def _maker(self) -> Maker:
        from hfadapt.student.make import Maker

        return Maker(self.cell, self.student.folder, self.context.recipe, self.target, self.world.device)

    def _cut(self, begun: _Begun, shape: tuple[int, float], maker: Maker | None = None) -> _Begun:
        """The base of one shape, in the student's folder."""
        self.context.progress.say(f"{self.cell.domain}: cutting a smaller model out of the adapted one")
        maker = maker or self._maker()
        ref = maker.cut(self.student.made_base(FOLDER), begun.kept, *shape)
        facts = begun.facts | {"cut_otherwise": maker.cut_otherwise}
        if facts["considered"]:
            facts["considered"] = tuple(
                each.model_copy(update={"taken": (each.layers, each.ffn) == shape}) for each in facts["considered"]
            )
        return replace(begun, ref=ref, shapes=[], ramp=maker.ramp, parameters=maker.shape().parameters, facts=facts)

    def _tried(self, begun: _Begun) -> _Begun:
        """Each shape is trained for a while; the one whose loss of validation rows is the least is cut again."""
        from hfadapt.train import learned_from

        results: dict[tuple[int, float], dict[str, Any]] = {}
        for shape in begun.shapes:
            one = self.world.on_main(lambda shape=shape: self._cut(begun, shape))  # type: ignore[misc]
            self.world.on_main(lambda one=one: self._plan(one, share=SHORT))  # type: ignore[misc]
            known = self.world.on_main(self._known_try)
            steps, loss = known or self._loss_after(self._learned())
            results[shape] = {"tried_steps": steps, "tried_loss": loss, "tried_from": learned_from(self.student)}
            layers, ffn = shape
            self.context.progress.say(
                f"{self.cell.domain}: {layers} layers, {ffn:.0%} of the units: loss {loss:.4f} of validation rows "
                f"after {steps} steps{', as for another target' if known else ''}"
            )
        best = min(results, key=lambda shape: results[shape]["tried_loss"])
        considered = tuple(
            each.model_copy(update=results.get((each.layers, each.ffn), {})) for each in begun.facts["considered"]
        )
        return self.world.on_main(
            lambda: self._cut(replace(begun, facts=begun.facts | {"considered": considered}), best)
        )

    @staticmethod
    def _loss_after(trained: TrainRecord) -> tuple[int, float]:
        loss = trained.best_validation_loss
        return trained.steps, math.inf if loss is None else loss

    # --- how it learns -----------------------------------------------------------------------------------------------

    def _trained(self, begun: _Begun, *, rounded: bool = False) -> TrainRecord:
        """Trains the student, or takes what another target has.

        Args:
            rounded: With rounding to 8 bits in the last epoch.
        """
        self.world.on_main(lambda: self._plan(begun, rounded=rounded))
        return self.student.train if self.world.on_main(self._taken) else self._learned()

    def _learned(self) -> TrainRecord:
        """Trains the student as it is planned."""
        from hfadapt.train import train_cell

        identity = json_sha256([self.identity, self.student.lock.train.model_dump(mode="json")])
        known, progress = self.student.folder / KNOWN, self.context.progress
        return train_cell(self.student, self.world, identity=identity, progress=progress, known=known)

    # --- what other targets have -------------------------------------------------------------------------------------

    def _others(self) -> list[tuple[Cell, Cell]]:
        """Cells of the same adapter for other targets, each with its student."""
        found = []
        for other in self.context.cells:
            if (
                (other.domain, other.target != self.cell.target) == (self.cell.domain, True)
                and (student := student_of(other)) is not None
                and other.read(StudentRecord).teacher == self.cell.manifest.files
            ):
                found.append((other, student))
        return found

    def _known_try(self) -> tuple[int, float] | None:
        """Steps and loss of a training as planned now, where another target has had it as a try."""
        from hfadapt.train import learned_from

        wanted = learned_from(self.student)
        for other, _ in self._others():
            for each in other.read(StudentRecord).considered:
                if each.tried_loss is not None and each.tried_from == wanted:
                    return each.tried_steps, each.tried_loss
        return None

    def _taken(self) -> bool:
        """Takes the student of another target that has learned from the same model, rows and answers."""
        from hfadapt.train import learned_from, take_training

        for other, student in self._others():
            if student.holds(TrainRecord) and is_saved(student) and learned_from(student) == learned_from(self.student):
                self.context.progress.say(
                    f"{self.cell.domain} on {self.cell.target}: the student of {other.target} is taken, which has "
                    "learned the same"
                )
                take_training(self.student, student)
                return True
        return False

    def _evaluate(self) -> None:
        """Scores the student, unless that of another target is the same one."""

        def taken() -> bool:
            same = (each for _, each in self._others() if each.has(EvaluationRecord) and scores_alike(student, each))
            return any(take_evaluation(student, each) for each in same)

        student, context = self.student, self.context
        if not self.world.on_main(taken):
            from hfadapt.evaluate.cell import evaluate_cell

            evaluate_cell(student, self.world, context.progress, context.recipe_folder)

    def _plan(self, begun: _Begun, *, share: float = 1.0, rounded: bool = False) -> None:
        """The plan and lock of the student's own cell, for a share of its epochs."""
        cell, student, context, settings = self.cell, self.student, self.context, self.settings
        assert begun.ref is not None
        made = begun.ref.made
        up = "/".join([".."] * len(student.folder.relative_to(cell.folder).parts))
        weight = settings.weight if begun.weight is None else begun.weight
        options: dict[str, Any] = {"teacher": up, "weight": weight, "ramp": begun.ramp}
        recipe = learning(context.recipe, begun.parameters, options)
        if begun.ramp or rounded:
            # No earlier state than the last can be the result.
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"patience": None})})
        train = recipe.train
        recipe = recipe.model_copy(
            update={
                "domains": {cell.domain: cell.lock.domains[cell.domain].model_copy(update={"pretrain": None})},
                "targets": (cell.target,),
                "model": begun.ref.model,
                "data": recipe.data.model_copy(update={"max_length": cell.lock.data.max_length}),
            }
        )
        record = student.data

        def decided(train: Train) -> Lock:
            changed = recipe.model_copy(update={"train": train})
            own = replace(context, recipe=changed, run=Run(cell.folder / FOLDER), domains=(cell.domain,), _rows={})
            return decide(student, own, replace(BaseRef.of(changed), made=made), record)[0]

        lock = decided(train)
        if share < 1.0:
            steps = lock.train.max_steps and max(1, round(lock.train.max_steps * share))
            decided(train.model_copy(update={"epochs": lock.train.epochs * share, "max_steps": steps}))
        if rounded:
            options |= {"rounded": self._share(), "rounded_by_row": self._rounds() == "rows"}
            decided(train.model_copy(update={"objective_options": options}))

    def _share(self) -> float:
        """Of the steps, those of the last epoch."""
        return min(1.0, 1 / self.student.lock.train.epochs)

    def _on_policy(self, begun: _Begun, trained: TrainRecord, *, rounded: bool) -> tuple[_Begun, TrainRecord]:
        """Trains the student once more, on its own answers beside the rows; the earlier state stays if it is better."""
        from hfadapt.student.beside import validation_loss
        from hfadapt.student.written import write_own

        world, student, say = self.world, self.student, self.context.progress.say
        if student.data.completions:
            say(f"{self.cell.domain}: answers are classes, of which the adapted model says all, so none are written")
            return begun, trained
        before = student.folder.with_name(f".{student.folder.name}.before")
        world.on_main(lambda: _copy(student.folder, before))
        loss = world.on_main(lambda: validation_loss(student, world.device))
        own = world.on_main(lambda: write_own(student, student.made_base("on_policy"), world.device, say))
        if own is None:
            say(f"{self.cell.domain}: the student writes nothing that is new")
            world.on_main(lambda: shutil.rmtree(before))
            return begun, trained
        ref, count = own
        again = self._trained(goes_on := replace(begun, ref=ref, ramp="", weight=1.0), rounded=rounded)
        found = world.on_main(lambda: validation_loss(student, world.device))
        kept = found <= loss
        stays = "" if kept else ": it stays as it was"
        say(f"{self.cell.domain}: {count:,} answers of its own, loss of validation {loss:.4f} -> {found:.4f}{stays}")
        if not kept:
            world.on_main(lambda: _copy(before, student.folder))
        world.on_main(lambda: shutil.rmtree(before))
        begun.facts["on_policy"] = OnPolicy(rows=count, steps=again.steps, before=loss, after=found, kept=kept)
        return (goes_on, again) if kept else (begun, trained)

    # --- rounding ----------------------------------------------------------------------------------------------------

    def _rounds(self) -> str:
        """How the target's format rounds to 8 bits; empty where it does not, or where something trains."""
        if self.target is None:
            return ""
        lock, recipe = self.cell.lock, self.context.recipe
        name = export_format(recipe, self.target, model_facts(BaseRef.of(lock).location, lock.task))
        # Of what would be written the smallest form.
        forms = [each for each in self.cell.plan.cells[0].exports if each.format == name]
        smallest = min(forms, key=lambda each: each.bytes, default=None)
        asked = smallest is not None and recipe.export.storage in (None, smallest.form)
        return registry.format(name).rounds if name and asked else ""

    def _rounding_cost(self, *, by_row: bool) -> Cost:
        from hfadapt.student.beside import rounding_cost

        return rounding_cost(self.student, self.world.device, by_row=by_row)

    def _compare(self, facts: dict[str, Any]) -> None:
        from hfadapt.student.beside import compare_and_write

        world = self.world
        room = world.max_memory(self.cell.plan.cells[0].budget_bytes)
        compare_and_write(self.cell, self.student, world.device, self.context.progress, room, facts)

    def _too_much(self, cost: Cost) -> bool:
        limits = self.cell.lock.export.limits
        return cost.points > max(limits.points, cost.least) or cost.kl_nats > limits.kl_nats


def _copy(folder: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)


def _needless(cell: Cell, recipe: Recipe) -> str:
    """Why no student is made of a planned cell; empty where one is."""
    asked = recipe.student
    if asked is None or not asked.open:
        return ""
    if not catalogue.only_serves(cell.target):
        return f"{cell.target} has no budget that says how small"
    small = asked.int8 is not True and _fits(cell, recipe, catalogue.target(cell.target))
    return f"the adapted model itself fits {cell.target}" if small else ""


def _fits(cell: Cell, recipe: Recipe, target: Target) -> bool:
    """Whether the adapted model is small and fast enough as it is, in the form that would be written."""

    lock = cell.lock
    facts = model_facts(BaseRef.of(lock).location, lock.task, max(1, len(cell.data.labels)))
    forms = written(cell.plan.cells[0].exports, export_format(recipe, target, facts), recipe.export.storage)
    return any(each.verdict == "fits" for each in forms)


KIND: Stage = StudentStage()
