"""What a user can ask for: the recipe, its sections, and the lock in which every `auto` has been answered.

A `Lock` is a `Recipe` for one cell without any `auto`; it can be run again as it is. Reading recipe files, with
every problem reported at once, is in `reading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, create_model, model_validator
from typing_extensions import Self

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.core.spec import Spec
from hfadapt.recipe.augment import AnyAugment, Augment
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.export import Export
from hfadapt.recipe.fast import AnyFast, Fast, fast_parts
from hfadapt.recipe.names import (
    AUTO,
    FIND,
    THIS_MACHINE,
    Auto,
    AutoDtype,
    AutoMethod,
    AutoOptimizer,
    AutoQuant,
    AutoSchedule,
    Dtype,
    Duration,
    Find,
    FindingCode,
    LearningRate,
    Method,
    Name,
    Objective,
    Optimizer,
    Positive,
    Quant,
    Schedule,
    Share,
    TargetName,
    TaskName,
    Tracker,
)
from hfadapt.recipe.pretrain import AnyPretrain, LockedPretrain, Pretrain, pretrain_settings
from hfadapt.recipe.search import Search
from hfadapt.recipe.student import AnyStudent
from hfadapt.recipe.template import Template
from hfadapt.records.stages import Change

GROUPING = ("group", "group_pattern")
"""Of `columns`, what says which rows stay together."""


class _Columns(Spec):
    """Which column of the source holds what; an unset one is recognised by name.

    Rows with the same value of `group`, such as a speaker, stay in one split; of that value only what the first bracket
    of `group_pattern` finds, a regular expression.
    """

    text: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    group: str | None = None
    group_pattern: str | None = None

    @property
    def parts(self) -> dict[str, str]:
        """The columns that are said to hold a part of the row."""
        said = self.model_dump(exclude=set(GROUPING))
        return {part: column for part, column in said.items() if column is not None}

    @model_validator(mode="after")
    def _one_bracket(self) -> Self:
        if self.group_pattern is None:
            return self
        if self.group is None:
            raise ValueError("group_pattern needs group, the column in which it looks")
        try:
            brackets = re.compile(self.group_pattern).groups
        except re.error as error:
            raise ValueError(f"group_pattern is no regular expression: {error}") from None
        if not brackets:
            raise ValueError("group_pattern needs a bracket round what is the same in a group, such as _(\\w+)_")
        return self


if TYPE_CHECKING:
    Columns = _Columns
else:
    # The parts of all row schemas, also of those that another package adds.
    _PARTS = dict.fromkeys(part for schema in registry.schemas() for part in (*schema.parts, *schema.named))
    Columns = create_model(
        "Columns",
        __base__=_Columns,
        __doc__=_Columns.__doc__,
        **{part: (str | None, None) for part in _PARTS if part not in _Columns.model_fields},
    )


class Source(Spec):
    """One place rows come from: a Hub data set id, a local file, folder or glob, or `sample:NAME`."""

    source: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: Columns = Columns()
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    rows: Positive | None = None


def _source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


AnySource = Annotated[Source, BeforeValidator(_source)]


Label = Annotated[str, AfterValidator(lambda name: " ".join(name.split()))]
"""The name of a class, with one space between its words, as the rows' labels are read."""


class Domain(Spec):
    """One kind of data, for which one adapter is made.

    `source` (with `config`, `split`, `revision`, `columns`, `rows` beside it) names one source, `sources` several.
    `validation` and `test` name given splits, as sources or, for a Hub data set, as split names.
    """

    source: str | None = None
    sources: tuple[AnySource, ...] | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: Columns = Columns()
    rows: Positive | None = None
    validation: str | None = None
    test: str | None = None
    template: Template | None = None
    labels: tuple[Label, ...] | None = None
    language: str | None = None
    license: str | None = None
    pretrain: AnyPretrain | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.sources is None):
            raise ValueError("a domain needs either source or sources")
        if self.sources is not None and not self.sources:
            raise ValueError("sources must not be empty")
        return self

    def all_sources(self) -> tuple[Source, ...]:
        """The sources as a tuple, in recipe order."""
        if self.sources is not None:
            return self.sources
        assert self.source is not None
        return (
            Source(
                source=self.source,
                config=self.config,
                split=self.split,
                revision=self.revision,
                columns=self.columns,
                rows=self.rows,
            ),
        )


NOTES = ("language", "license")
"""Fields of a domain that the card shows, and on which no row and no step depends."""

AnyDomain = Annotated[Domain, BeforeValidator(_source)]


class Clean(Spec):
    """Repairs and filters of single rows. `language` (a code such as `en`) and `pii` need optional extras."""

    unicode: bool = True
    min_characters: Annotated[int, Field(ge=0)] = 1
    max_characters: Positive = 200_000
    language: str | None = None
    pii: Literal["off", "redact", "drop"] = "off"


class Dedupe(Spec):
    """Removal of repeated rows.

    `similarity` is the share of words that two near-duplicates have in common, in order: 1 - edited words / words of
    the longer row.
    """

    exact: bool = True
    near: bool = True
    similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    across_domains: bool = True


class Canaries(Spec):
    """Random rows planted among the training rows, to measure afterwards how far the adapter has learned them by heart.

    `count` canaries in all (0 plants none), dealt out over `repeats`: how often each is trained on in an epoch.
    """

    count: Annotated[int, Field(ge=0, le=1000)] = 0
    repeats: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 16)


class Data(Spec):
    """How rows become splits. `validation` and `test` are shares (< 1) or numbers of rows (≥ 1).

    `allow` are codes of findings that would stop the run and are to be warnings; rows that a model's template or the
    task refuses (`refused`) are then left out.
    """

    train_rows: Positive | None = None
    validation: Annotated[float, Field(gt=0.0)] = 0.1
    test: Annotated[float, Field(gt=0.0)] = 0.1
    seed: int = 17
    max_length: Annotated[int, Field(ge=8)] | Auto = AUTO
    too_long: Literal["drop", "truncate"] = "truncate"
    conflicts: Literal["drop", "majority", "keep"] = "drop"
    allow: tuple[FindingCode, ...] = ()
    packing: bool | Auto = AUTO
    streaming: bool = False
    workers: Positive | Auto = AUTO
    clean: Clean = Clean()
    dedupe: Dedupe = Dedupe()
    augment: AnyAugment = Augment()
    canaries: Canaries = Canaries()


class Adapter(Spec):
    """What is trained on top of the frozen base; `modules` are name endings of linear layers.

    `layers` are the last so many of the model's; those below stay as they are.
    """

    method: AutoMethod = AUTO
    rank: Annotated[int, Field(ge=1, le=1024)] | Auto = AUTO
    alpha: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    dropout: Share | Auto = AUTO
    modules: tuple[str, ...] | Auto = AUTO
    layers: Positive | Auto = AUTO


class Train(Spec):
    """The training loop. `batch_rows` is the effective batch over all processes and accumulation steps.

    `together` trains the domains of a target at the same time on one resident base; every adapter is what it would be
    alone. `fast: false` leaves every pass of a step to the libraries, `fast: {norms: false}` only that part.
    `resident_layers` of a quantised base are also kept unpacked while training, so that no step unpacks them.
    `objective` is what is minimised, by default what the task learns by; `objective_options` are those that it knows.
    `learning_rate: find` tries some around `auto`'s (`search`); the rate decays after the share `hold_ratio` of the
    steps. `time` is how long training may take (text: `90s`, `10m`), in which as many steps are done as fit.
    """

    objective: Objective = "supervised"
    objective_options: dict[str, str | bool | float] = {}
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    max_steps: Positive | None = None
    time: Duration | None = None
    learning_rate: LearningRate | Auto | Find = AUTO
    schedule: AutoSchedule = AUTO
    warmup_ratio: Share | Auto = AUTO
    hold_ratio: Share = 0.0
    batch_rows: Positive | Auto = AUTO
    micro_batch_rows: Positive | Auto = AUTO
    weight_decay: Annotated[float, Field(ge=0.0)] | Auto = AUTO
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    evaluate_every_steps: Positive | Auto = AUTO
    checkpoint_every_steps: Positive | Auto = AUTO
    patience: Positive | None = None
    seed: int = 17
    optimizer: AutoOptimizer = AUTO
    checkpointing: bool | Auto = AUTO
    resident_layers: Annotated[int, Field(ge=0)] | Auto = AUTO
    fast: AnyFast = Fast()
    together: bool | Auto = AUTO
    trackers: tuple[Tracker, ...] = ()


class DriftLimits(Spec):
    """Most that merging or another storage may change: mean KL divergence per label, and points of the metric."""

    kl_nats: Annotated[float, Field(ge=0.0)] = 0.02
    points: Annotated[float, Field(ge=0.0)] = 0.5


class Evaluate(Spec):
    """How the adapter is compared with its base.

    `metrics` are names, or paths of modules of `evaluate`. `gates` are the smallest allowed gains by metric name; a
    gain is positive when the adapter is better, and `general_text: -0.5` allows a loss of half a point of perplexity.

    `generate_rows` are test rows whose completions are generated for text metrics, `general_text` the check of a
    language model's perplexity on general text, `transfer` the matrix of every adapter on every domain, `security` the
    leak and robustness checks, `drift` the check of merging, and bases in other precision, `harness` names of tasks of
    lm-evaluation-harness. `without_pretrain` trains a second adapter on the task alone, for as many steps, and shows
    what `pretrain` has changed.
    """

    metrics: tuple[str, ...] | Auto = AUTO
    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    batch_rows: Positive | Auto = AUTO
    gates: dict[str, float] = {}
    generate_rows: Annotated[int, Field(ge=0)] = 64
    general_text: bool = True
    transfer: bool = True
    security: bool = True
    drift: bool = True
    drift_limits: DriftLimits = DriftLimits()
    without_pretrain: bool = False
    harness: tuple[str, ...] = ()


class Recipe(Spec):
    """One model, several domains, several targets; everything not said is `auto` and answered by the plan.

    `choose` narrows what is done, not what the recipe holds: rows are compared across domains, so that those of a
    domain would be others if its neighbours were gone. The choice is the caller's and in no file.
    """

    name: Name
    model: str
    task: TaskName
    domains: Annotated[dict[Name, AnyDomain], Field(min_length=1)]
    targets: Annotated[tuple[TargetName, ...], Field(min_length=1)] = (THIS_MACHINE,)
    budgets: dict[TargetName, Budget] = {}
    template: Template | None = None
    quant: AutoQuant = AUTO
    dtype: AutoDtype = AUTO
    processes: Positive = 1
    memory_margin: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    adapter: Adapter = Adapter()
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    pretrain: AnyPretrain | None = None
    student: AnyStudent | None = None
    search: Search | None = None
    _chosen: tuple[str, ...] = PrivateAttr(())

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

    @property
    def chosen(self) -> tuple[str, ...]:
        """The domains to do, in recipe order; all where none were chosen."""
        return tuple(name for name in self.domains if not self._chosen or name in self._chosen)

    def choose(self, domains: Sequence[str] = ()) -> Self:
        """The same recipe, of which only these domains are done; all when empty.

        Raises:
            RequestError: it has no domain of such a name.
        """
        problems = [
            choice_problem("there is no domain of that name in the recipe", name, self.domains, "domains")
            for name in domains
            if name not in self.domains
        ]
        if problems:
            raise RequestError(problems[0].what, problems=problems)
        copy = self.model_copy()
        copy._chosen = tuple(domains)
        return copy

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
