"""The Stage contract: a part of a run, what it needs, what its result depends on, and what it shows. One file each.

`pipeline/flow.py` walks the stages in the order that `needs`, `after` and `before` give; nothing else knows the list.
Everything that passes from one stage to a later one lies in the folder of the cell or the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError
from hfadapt.core.hashing import file_sha256, json_sha256
from hfadapt.core.progress import Progress
from hfadapt.core.spec import Record
from hfadapt.models.base import BaseRef
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.sources import from_recipe
from hfadapt.records.stages import BaseRecord
from hfadapt.run_folder import Cell, Run

if TYPE_CHECKING:
    from hfadapt.card.facts import Facts
    from hfadapt.core.show import Block
    from hfadapt.data import PreparedDomain
    from hfadapt.data.unlabelled import Held
    from hfadapt.hardware.processes import World

Scope = Literal["cell", "group", "run"]


@dataclass(frozen=True)
class Section:
    """A part of the card under a heading of its own.

    Args:
        title: The heading.
        text: Makes the Markdown below it; every value in it is asked of the facts, such as
            `facts("prune.json#/sparsity", "percent")`. None where the card's own templates hold it.
        record: What the stage may write, without which the card has no such section.
    """

    title: str
    text: Callable[[Facts], str] | None = None
    record: type[Record] | None = None


class Stage:
    """What the flow has to know of a stage. Instances hold no state; the module-level instance is called `KIND`.

    Attributes:
        name: As in `until`, cell.json and the name of its file.
        title: What it does, as a noun for messages: `training`.
        verb: The command, and the word for `until`, that a run goes on to when it is to do this stage; its name when
            empty.
        needs: Stages without whose results it cannot work; their hashes are part of its own.
        after: Stages that come before it where they are done; `registry.EVERY` means every other one.
        before: Stages that it has to precede.
        scope: Whether it works on one `cell`, on a `group` of cells of one target, or on all cells of the `run`.
        settings: Fields and sections of the recipe that its result depends on.
        version: Raised when the same inputs would give another result.
        records: What it writes into the cell's folder (of scope `run`: into the run's) and always does.
        may_write: What it writes where it is asked for or applies.
        phases: Parts of it whose memory is measured. A stage that has some may be killed for lack of memory.
        makes_base: It writes a base (`models.merge.save_base`), and later stages work on that.
        trains_first: It trains the adapter on something else, and training goes on from that (`Cell.begun`).
        settles: It answers settings that the plan left open, and later stages go by its answer.
        keeps_earlier: When its inputs change, the whole folder of the cell is put aside instead of overwritten.
        gates: Names in `evaluate.gates` that it judges itself, in `missed`; a switch of the same name in the recipe's
            section `evaluate` turns what they need off.
        distributed: It runs in every process of the run, not in the main one alone.
        card: Its sections of the card.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    verb: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    scope: ClassVar[Scope] = "cell"
    settings: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int | str] = 1
    records: ClassVar[tuple[type[Record], ...]] = ()
    may_write: ClassVar[tuple[type[Record], ...]] = ()
    phases: ClassVar[tuple[str, ...]] = ()
    makes_base: ClassVar[bool] = False
    trains_first: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    keeps_earlier: ClassVar[bool] = False
    gates: ClassVar[tuple[str, ...]] = ()
    distributed: ClassVar[bool] = False
    card: ClassVar[tuple[Section, ...]] = ()

    def wanted(self, recipe: Recipe) -> bool:
        """Whether the recipe asks for it."""
        return True

    def check_recipe(self, recipe: Recipe) -> None:
        """Looks for what the recipe and what lies on this machine already tell that cannot be done, for a plan as for a
        run; fetches nothing. Raises HfadaptError where there is such a thing."""

    def check(self, context: Context) -> None:
        """Looks for the rest of what cannot be done, before a run does anything: what has to be fetched for it, or
        installed here. Raises HfadaptError where there is such a thing."""

    def inputs(self, cell: Cell, context: Context) -> Any:
        """What its result depends on besides settings, needed stages and bases, as JSON."""
        return None

    def run(self, cells: Sequence[Cell], context: Context) -> Sequence[Cell] | None:
        """Does the work and writes the records.

        Args:
            cells: One; of scope `group` those that share it; of scope `run` all that have what it needs.

        Returns:
            The cells that are done, or None for all; of a group some may be left for a turn of their own.

        Raises:
            HfadaptError: it cannot be done; the cell has failed.
        """
        raise NotImplementedError

    def look_ahead(self, cell: Cell, context: Context) -> None:
        """Called as soon as a cell is planned, before anything is trained.

        Raises:
            HfadaptError: it cannot be done with these rows.
        """

    def seconds(self, cell: Cell) -> float | None:
        """About how long it will take for a cell that has a plan; None where nobody can say."""
        return None

    def missed(self, cell: Cell, context: Context) -> Sequence[str]:
        """Sentences about gates of the recipe that its result misses; the cell counts as failed, and goes on."""
        return ()

    def intact(self, cells: Sequence[Cell], context: Context) -> bool:
        """Whether what it wrote is still there and can be read; a crash may have cut it off."""
        bases = [cell.made_base(self.name) / BaseRecord.FILE for cell in cells if self.makes_base]
        must = all(cell.holds(kind) for cell in cells for kind in self.records)
        may = all(cell.holds(kind) for cell in cells for kind in self.may_write if cell.has(kind))
        return must and may and all(path.exists() for path in bases)

    def has_written(self, has: Callable[[str], bool]) -> bool:
        """Whether all that it always writes is there or, where that is nothing, some of what it may write.

        Args:
            has: Whether there is a record of this file name.
        """
        may = [has(kind.FILE) for kind in self.may_write]
        return all(has(kind.FILE) for kind in self.records) and (bool(self.records) or not may or any(may))

    def sections(self, has: Callable[[str], bool]) -> list[Section]:
        """The sections that the card of a cell has; `has` as in `has_written`."""
        written = self.has_written(has)
        return [
            section
            for section in self.card
            if section.text is None or (written and (section.record is None or has(section.record.FILE)))
        ]

    def groups(self, cell: Cell) -> bool:
        """Of scope `group`: whether the cell may share its work with others."""
        return False

    def joins(self, cell: Cell, other: Cell) -> bool:
        """Of scope `group`: whether another cell of the target can share this one's work."""
        return False

    def follows(self, cell: Cell, other: Cell) -> bool:
        """Whether it takes what it has done for another cell, as it would come to the same; one worker does both."""
        return False

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        """Its part of the report, from the records of the cells that have them."""
        return []


@dataclass
class Context:
    """What a stage is given beside its cells.

    Args:
        recipe: What was asked for, with all its domains: rows are compared across them.
        run: The run's folder.
        world: The processes.
        progress: Who is told.
        recipe_folder: Relative sources are looked for here first.
        domains: The domains to do; all when empty.
        only: Names of the cells to do; all of these domains when empty.
    """

    recipe: Recipe
    run: Run
    world: World
    progress: Progress
    recipe_folder: Path = Path()
    domains: Sequence[str] = ()
    only: Sequence[str] = ()
    _rows: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def asked(self) -> Recipe:
        """The recipe of the domains that are to be done."""
        return narrow(self.recipe, self.domains)

    @cached_property
    def cells(self) -> list[Cell]:
        """The cells that are to be done, in the order of the recipe."""
        cells = [self.run.cell(domain, target) for domain, target in self.asked.cells()]
        return [cell for cell in cells if not self.only or cell.name in self.only]

    @property
    def all_cells(self) -> list[Cell]:
        """Every cell of the recipe."""
        return [self.run.cell(domain, target) for domain, target in self.recipe.cells()]

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe of one cell."""
        return narrow(self.recipe, [cell.domain], [cell.target])

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that the recipe asks for, in their order."""
        return tuple(stage for stage in registry.stages() if stage.wanted(self.recipe))

    @cached_property
    def prepared(self) -> Mapping[str, PreparedDomain]:
        """The rows of the domains, in the cache. First asked for by all processes at once."""
        from hfadapt.data import prepare

        recipe = compared(self.recipe, self.domains)
        return self.world.on_main(lambda: prepare(recipe, recipe_folder=self.recipe_folder, progress=self.progress.say))

    @cached_property
    def held(self) -> Held:
        """The validation and test rows of all domains."""
        from hfadapt.data.unlabelled import Held

        return Held.of(self.prepared)

    def rows_of(self, domain: str) -> dict[str, str]:
        """SHA-256 of the domain's prepared splits."""
        if domain not in self._rows:
            paths = sorted((self.prepared[domain].folder / "data").glob("*.parquet"))
            self._rows[domain] = {path.name: file_sha256(path) for path in paths}
        return self._rows[domain]

    def base(self, cell: Cell, stage: str) -> BaseRef:
        """The base that a stage works on: what the last stage before it that makes one has made, or the recipe's."""
        ref = BaseRef.of(cell.lock if cell.planned else self.recipe_of(cell)).original
        done = cell.state.stages
        for maker in self._makers(stage):
            if maker.name in done:
                ref = ref.made_in(cell.made_base(maker.name))
        return ref

    def start(self, cell: Cell, stage: str) -> Path | None:
        """The weights from which a stage goes on training the adapter; None where that begins afresh."""
        done = [each.name for each in self._before(stage) if each.trains_first and each.name in cell.state.stages]
        path = cell.begun(done[-1]) if done else None
        return path if path and path.exists() else None

    def _makers(self, stage: str) -> list[Stage]:
        return [each for each in self._before(stage) if each.makes_base]

    def _before(self, stage: str) -> tuple[Stage, ...]:
        return self.stages[: [each.name for each in self.stages].index(stage)]

    def hashes(self, cell: Cell, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """For each stage the hash of all that decides its result: settings, inputs, version, and the hashes of the
        stages that it needs and of those that make the base it works on or the adapter that it goes on from, or answer
        settings.

        Args:
            known: Hashes that are taken as they are.
        """
        found = dict(known or {})
        fields = self.recipe_of(cell).without_notes().model_dump(mode="json")
        fields["model"] = from_recipe(fields["model"], self.recipe_folder)
        for stage in self.stages:
            if stage.name not in found:
                before = self._before(stage.name)
                changed = (each.name for each in before if each.makes_base or each.trains_first or each.settles)
                above = {*stage.needs, *changed}
                parts = [
                    {name: found[name] for name in sorted(above & found.keys())},
                    {name: fields[name] for name in stage.settings},
                    stage.inputs(cell, self),
                    stage.version,
                ]
                found[stage.name] = json_sha256(parts)
        return found


def check_recipe(recipe: Recipe) -> None:
    """Looks, without a run, for what no stage of a recipe can do. Raises HfadaptError where there is such a thing."""
    for stage in registry.stages():
        if stage.wanted(recipe):
            look_at(recipe, stage)


def look_at(recipe: Recipe, stage: Stage) -> None:
    """Looks for what a stage cannot do of a recipe. Raises HfadaptError with the lines of what it finds."""
    try:
        stage.check_recipe(recipe)
    except HfadaptError as error:
        raise recipe.in_lines(error) from None


def shares(stage: Stage, cell: Cell, others: Iterable[Cell]) -> list[Cell]:
    """The cells that share a stage's work with this one, which comes first.

    Args:
        others: Cells of the same target that can begin with the stage.
    """
    if stage.scope != "group" or not stage.groups(cell):
        return [cell]
    return [cell, *(other for other in others if stage.joins(cell, other))]


def narrow(recipe: Recipe, domains: Sequence[str] = (), targets: Sequence[str] = ()) -> Recipe:
    """The recipe with only these domains and targets; empty means all."""
    kept = {name: domain for name, domain in recipe.domains.items() if not domains or name in domains}
    return recipe.model_copy(update={"domains": kept, "targets": tuple(targets) or recipe.targets}).choose()


def compared(recipe: Recipe, domains: Sequence[str] = ()) -> Recipe:
    """The recipe with all domains that have to be read for the rows of these."""
    return recipe if recipe.data.dedupe.across_domains else narrow(recipe, domains)
