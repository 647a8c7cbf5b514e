"""What a user can ask for: the recipe, its sections, and the lock in which every `auto` has been answered.

A `Lock` is a `Recipe` for one cell without any `auto`; it can be run again as it is. Reading recipe files, with
every problem reported at once, is in `reading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RequestError, choice_problem
from hfadapt.core.show import Block, Shown, Text
from hfadapt.core.spec import Section
from hfadapt.recipe.augment import Augment as Augment
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.data import Canaries as Canaries
from hfadapt.recipe.data import Clean as Clean
from hfadapt.recipe.data import Data
from hfadapt.recipe.data import Dedupe as Dedupe
from hfadapt.recipe.domain import CLASSES as CLASSES
from hfadapt.recipe.domain import GROUPING as GROUPING
from hfadapt.recipe.domain import NOTES, AnyDomain
from hfadapt.recipe.domain import PATTERNS as PATTERNS
from hfadapt.recipe.domain import Columns as Columns
from hfadapt.recipe.domain import Domain as Domain
from hfadapt.recipe.domain import Source as Source
from hfadapt.recipe.evaluate import Evaluate
from hfadapt.recipe.export import Export
from hfadapt.recipe.fast import Fast, fast_parts
from hfadapt.recipe.names import (
    AUTO,
    FIND,
    THIS_MACHINE,
    AutoDtype,
    AutoQuant,
    Dtype,
    Method,
    Name,
    Optimizer,
    Positive,
    Quant,
    Schedule,
    TargetName,
    TaskName,
    listed,
)
from hfadapt.recipe.pretrain import AnyPretrain, LockedPretrain, Pretrain, pretrain_settings
from hfadapt.recipe.search import Search
from hfadapt.recipe.student import AnyStudent
from hfadapt.recipe.template import Template
from hfadapt.recipe.train import Adapter, Train
from hfadapt.records.stages import Change


class Recipe(Shown, Section):
    """One model, several domains, several targets; everything not said is `auto` and answered by the plan.

    Example:
        >>> from hfadapt import Recipe
        >>> recipe = Recipe(name="two", model="sample:minilm-l6", task="text-classification", domains={"a": "a.csv"})
        >>> recipe.cells()
        [('a', 'this-machine')]
    """

    name: Name
    """Name of the run's folder; by default that of the recipe's file.

    Example: sentiment
    """
    model: str
    """The base: a Hub id, `id@revision`, a local folder, a GGUF file, or `sample:NAME`.

    Example: sample:minilm-l6
    """
    task: TaskName
    """What is learned; `hfadapt list tasks`.

    Example: text-classification
    """
    domains: Annotated[dict[Name, AnyDomain], Field(min_length=1)]
    """Kinds of data by name, each with its source; one adapter is made for each.

    Cost: each trains an adapter, on a base that they share where that is faster.
    Example: {mine: {source: data.csv}}
    """
    targets: Annotated[tuple[TargetName, ...], Field(min_length=1)] = (THIS_MACHINE,)
    """Machines and devices that adapters are made for (`hfadapt list targets`), with a budget beside the name where an
    exported model has to keep one: `{android-8gb: {bytes: 30MB}}`.

    Example: [this-machine, android-8gb]
    """
    budgets: dict[TargetName, Budget] = {}
    """Budgets by target; they can also stand in `targets`.

    Example: {android-8gb: {bytes: 30MB}}
    """
    template: Template | None = None
    """How rows become prompt and completion, or a chat."""
    quant: AutoQuant = AUTO
    """How the frozen base is stored; `hfadapt list quants`.

    Auto: the plan: unquantised where that fits and is not slower.
    Cost: 8 bits take half of the memory of 16, 4 bits about a quarter; steps are slower.
    """
    dtype: AutoDtype = AUTO
    """Type of the base's numbers where they are not quantised.

    Auto: the plan, by the device and the size of the model.
    Cost: float32 takes 4 bytes a weight, the others 2.
    """
    processes: Positive = 1
    """Processes that train together, started by torchrun or accelerate.

    Example: 2
    """
    memory_margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the memory that the plan leaves free."""
    adapter: Adapter = Adapter()
    """What is trained on top of the frozen base."""
    data: Data = Data()
    """How rows become splits."""
    train: Train = Train()
    """The training loop."""
    evaluate: Evaluate = Evaluate()
    """How the adapter is compared with its base."""
    export: Export = Export()
    """How `hfadapt export` writes the adapter."""
    pretrain: AnyPretrain | None = None
    """Adapts the adapter to texts without labels before the task; `true` takes those of the training rows.

    Cost: the time of a second training.
    """
    student: AnyStudent | None = None
    """Makes a smaller model of the adapted one, which learns from its answers.

    Auto: layers, units and vocabulary by the target's budget.
    Cost: the time and memory of a training of all weights.
    """
    search: Search | None = None
    """Settings of which several values are tried while training begins.

    Cost: at most `search.budget` trainings.
    Example: {rank: [8, 32]}
    """
    _chosen: tuple[str, ...] = PrivateAttr(())
    _folder: Path | None = PrivateAttr(None)
    _written: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _objective_of_task(cls, values: Any) -> Any:
        """What the task learns by, where nothing else is said."""
        task, train = (values.get(name) for name in ("task", "train")) if isinstance(values, Mapping) else (None, None)
        given = train.model_dump(exclude_unset=True) if isinstance(train, Train) else train or {}
        if task not in registry.names("tasks") or not isinstance(given, Mapping) or "objective" in given:
            return values
        own = registry.task(str(task)).objective
        usual = own == Train.model_fields["objective"].default
        return values if usual else {**values, "train": {**given, "objective": own}}

    def __eq__(self, other: object) -> bool:
        """Where a recipe was read from is no part of what it says."""
        return type(self) is type(other) and (self.__dict__, self.chosen) == (other.__dict__, other.chosen)

    @property
    def folder(self) -> Path | None:
        """Where relative sources are looked for first: the folder of its file; None where it was made in memory."""
        return self._folder

    @property
    def chosen(self) -> tuple[str, ...]:
        """The domains to do, in recipe order; all where none were chosen."""
        return tuple(name for name in self.domains if not self._chosen or name in self._chosen)

    def read_from(self, folder: Path, written: Mapping[str, str] | None = None) -> Self:
        """The same recipe, whose relative sources are looked for in this folder first.

        Args:
            written: The line of each field, by the place that it has in the recipe.
        """
        copy = self.model_copy()
        copy._folder = folder
        copy._written = written or {}
        return copy

    def in_lines(self, error: HfadaptError) -> HfadaptError:
        """An error about fields, which a later check found, with the line of each: that of what it stands in, where it
        has none of its own."""
        found = []
        for problem in error.problems:
            at = problem.place or ""
            while at and at not in self._written:
                at = at[: max(at.rfind("."), at.rfind("["), 0)]
            line = self._written.get(at)
            found.append(problem if line is None else replace(problem, place=f"{line}: {problem.place}"))
        error.problems = tuple(found)
        return error

    def choose(self, domains: str | Sequence[str] = ()) -> Self:
        """The same recipe, of which only these domains are done; all when empty.

        That narrows what is done, not what the recipe holds: rows are compared across domains, so that those of a
        domain would be others if its neighbours were gone. The choice is the caller's and in no file.

        Raises:
            RequestError: it has no domain of such a name.
        """
        domains = listed(domains)
        problems = [
            choice_problem("there is no domain of that name in the recipe", name, self.domains, "domains")
            for name in domains
            if name not in self.domains
        ]
        if problems:
            raise RequestError(problems[0].what, problems=problems)
        copy = self.model_copy()
        copy._chosen = domains
        return copy

    def blocks(self) -> list[Block]:
        """As a file has it; of a recipe only what was said."""
        import yaml

        said = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        return [Text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip(), code=True)]

    def cells(self) -> list[tuple[str, str]]:
        """Every (domain, target) pair that is to be done, domains first, in recipe order."""
        return [(domain, target) for domain in self.chosen for target in self.targets]

    def without_notes(self) -> Self:
        """The same recipe without what only the card shows."""
        bare = {name: domain.model_copy(update=dict.fromkeys(NOTES)) for name, domain in self.domains.items()}
        return self.model_copy(update={"domains": bare})

    def template_of(self, domain: str) -> Template | None:
        """The domain's own template, else the recipe's."""
        return self.domains[domain].template or self.template

    def pretrain_of(self, domain: str) -> Pretrain | None:
        """The domain's own adaptation to texts before the task, else the recipe's; None where there is none."""
        found = self.domains[domain].pretrain or self.pretrain
        return None if found is None or found.skip else found

    def searched(self, prior: float) -> Search | None:
        """What is tried while training, with the learning rates around a first guess where they are to be found."""
        if self.train.learning_rate != FIND:
            return self.search
        return (self.search or Search()).with_rates(prior)

    @property
    def pretrains(self) -> bool:
        """Whether an adapter of a domain is adapted to texts before the task."""
        return any(self.pretrain_of(domain) for domain in self.domains)


class LockedAdapter(Adapter):
    """The adapter, resolved."""

    method: Method
    rank: int
    alpha: float
    dropout: float
    modules: tuple[str, ...]
    # None in locks from when layers could not be chosen: all.
    layers: int | None = None  # type: ignore[assignment]


class LockedData(Data):
    """Data settings, resolved."""

    max_length: int
    packing: bool


class LockedFast(Fast):
    """The fast path's parts, resolved."""

    compile: bool = False
    frozen_cache: bool = False


class LockedTrain(Train):
    """Training settings, resolved."""

    epochs: float
    learning_rate: float
    schedule: Schedule
    warmup_ratio: float
    batch_rows: int
    micro_batch_rows: int
    weight_decay: float
    evaluate_every_steps: int
    checkpoint_every_steps: int
    optimizer: Optimizer
    checkpointing: bool
    fast: Annotated[LockedFast, BeforeValidator(fast_parts)] = LockedFast()
    together: bool = False
    shard: bool = False
    resident_layers: int = 0


class LockedEvaluate(Evaluate):
    """Evaluation settings, resolved."""

    metrics: tuple[str, ...]
    batch_rows: int


class LockedBase(Change):
    """The base that was trained on, where a stage had made it; `folder` is relative to the cell's in lock.yaml."""

    folder: str


class Lock(Recipe):
    """A recipe for one cell in which the plan has answered every `auto`; written as lock.yaml.

    `base` is no setting: the stage that made it makes it again when the lock is run.

    Example:
        >>> from pathlib import Path
        >>> from hfadapt import Cell
        >>> lock = Cell(Path("runs/sentiment/tweets/this-machine")).lock
        >>> lock.quant, lock.train.max_steps
        ('none', 4)
    """

    base: LockedBase | None = None
    quant: Quant
    dtype: Dtype
    adapter: LockedAdapter
    data: LockedData
    pretrain: Annotated[LockedPretrain, BeforeValidator(pretrain_settings)] | None = None
    train: LockedTrain
    evaluate: LockedEvaluate

    @property
    def domain(self) -> str:
        """The cell's domain."""
        return next(iter(self.domains))

    @property
    def target(self) -> str:
        """The cell's target."""
        return self.targets[0]
