"""What a field of a recipe can hold, as types: names from sets to which files and packages add, and number ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hfadapt.core import registry
from hfadapt.core.errors import nearest
from hfadapt.hardware import catalogue
from hfadapt.records.stages import FINDINGS

Auto = Literal["auto"]
AUTO: Auto = "auto"
Find = Literal["find"]
FIND: Find = "find"
THIS_MACHINE = "this-machine"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
OPTIMIZERS = ("adamw", "adamw-8bit", "paged-adamw-8bit")
SCHEDULES = ("linear", "cosine", "constant")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
DTYPES = ("float32", "bfloat16", "float16")
TEXT_METRICS = ("exact_match", "rouge_l", "chrf", "bleu")
"""Those that compare generated texts."""
METRICS = (
    *("accuracy", "label_accuracy", "macro_f1", "calibration_error", "loss", "perplexity"),
    *TEXT_METRICS,
)
"""Metrics that evaluate.metrics can name whatever the task; made in `evaluate/metrics/rows.py`."""

OTHER_NAMES = {
    **dict.fromkeys(("sequence-classification", "sentiment-analysis", "classification"), "text-classification"),
    **dict.fromkeys(("ner", "pos", "sequence-labeling", "sequence-tagging"), "token-classification"),
    **dict.fromkeys(("sft", "clm", "text-generation", "instruct", "chat", "language-modeling"), "causal-lm"),
    **dict.fromkeys(("regression", "sequence-regression"), "text-regression"),
    **dict.fromkeys(("4bit", "4-bit", "4", "qlora", "q4"), "nf4"),
    **dict.fromkeys(("8bit", "8-bit", "8", "llm.int8"), "int8"),
    **dict.fromkeys(("off", "no", "16bit", "false"), "none"),
}
"""Values of other tools, and what they are called here."""


ANY_LAYER = "*"


def matches(path: str, name: str) -> bool:
    """Whether a module of this path is meant by the ending of a path, in which `*` is the number of any layer; without
    it as peft matches them."""
    parts, wanted = path.split("."), name.split(".")
    ending = parts[-len(wanted) :]
    return len(ending) == len(wanted) and all(
        one == other or (other == ANY_LAYER and one.isdigit()) for one, other in zip(ending, wanted, strict=True)
    )


def gate_names() -> tuple[str, ...]:
    """What evaluate.gates can name, besides metrics: perplexity on general text, and what stages judge themselves."""
    return ("general_text", *(gate for stage in registry.stages() for gate in stage.gates))


def metric_names() -> tuple[str, ...]:
    """What evaluate.metrics can name, besides paths of modules of `evaluate`: also what a task brings."""
    own = [metric.name for name in registry.names("tasks") for metric in registry.task(name).own_metrics]
    return tuple(dict.fromkeys((*METRICS, *own)))


def is_metric_path(name: str) -> bool:
    """Whether an entry of evaluate.metrics is a file or folder, not the name of a metric."""
    return "/" in name or "\\" in name or name.endswith(".py")


def is_task_path(name: str) -> bool:
    """Whether an entry of evaluate.harness is a file or folder, not the name of a task."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def _objectives(self_supervised: bool) -> tuple[str, ...]:
    """Objectives of the task, or those that learn from texts without labels."""
    names = registry.names("objectives")
    return tuple(name for name in names if registry.objective(name).self_supervised == self_supervised)


@dataclass(frozen=True)
class OneOf:
    """Accepts names from a set; the set may be a function, since files and packages can add names."""

    what: str
    allowed: Any

    def options(self) -> tuple[str, ...]:
        """The names at this moment."""
        return tuple(self.allowed() if callable(self.allowed) else self.allowed)

    def __call__(self, value: str) -> str:
        """The value itself, when it is among the names."""
        options = self.options()
        if value not in options:
            close = nearest(value, options)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"{self.what} must be one of {', '.join(options)}{hint}")
        return value


@dataclass(frozen=True)
class WithUnit:
    """Reads a number with its unit, such as `30MB`; a number without one is in the unit of 1."""

    units: tuple[tuple[str, float], ...]
    example: str

    @property
    def words(self) -> str:
        """What is read, in words."""
        return f"a number with a unit ({', '.join(name for name, _ in self.units)}), such as {self.example}"

    def __call__(self, value: Any) -> Any:
        """The number in the unit of 1."""
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", value)
        unit = {name.lower(): size for name, size in self.units}.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise ValueError(self.words)
        return float(found[1]) * unit


def listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several, or none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def one_of(what: str, allowed: Any) -> Any:
    """A validator for names from a set, whose message carries the allowed names and the nearest one."""
    return AfterValidator(OneOf(what, allowed))


def with_unit(units: tuple[tuple[str, float], ...], example: str) -> Any:
    """Reads a number that may have one of these units."""
    return BeforeValidator(WithUnit(units, example))


def with_auto(names: Any) -> Any:
    """The same names, with `auto` first."""
    return lambda: ("auto", *(names() if callable(names) else names))


def _encoding(name: str | None) -> str | None:
    """Raises ValueError for what Python cannot decode texts with."""
    try:
        known = name is None or isinstance("".encode(name).decode(name), str)
    except (LookupError, UnicodeError):
        known = False
    if not known:
        raise ValueError(f"{name!r} is no encoding of texts, as windows-1252, windows-1251, gb18030 and utf-16 are")
    return name


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
TaskName = Annotated[str, one_of("task", lambda: registry.names("tasks"))]
TargetName = Annotated[str, one_of("target", catalogue.names)]
Quant = Annotated[str, one_of("quant", lambda: registry.names("quants"))]
AutoQuant = Annotated[str, one_of("quant", with_auto(lambda: registry.names("quants")))]
Method = Annotated[str, one_of("adapter method", lambda: registry.names("adapters"))]
AutoMethod = Annotated[str, one_of("adapter method", with_auto(lambda: registry.names("adapters")))]
Dtype = Annotated[str, one_of("dtype", DTYPES)]
AutoDtype = Annotated[str, one_of("dtype", with_auto(DTYPES))]
Optimizer = Annotated[str, one_of("optimizer", OPTIMIZERS)]
AutoOptimizer = Annotated[str, one_of("optimizer", with_auto(OPTIMIZERS))]
Schedule = Annotated[str, one_of("schedule", SCHEDULES)]
AutoSchedule = Annotated[str, one_of("schedule", with_auto(SCHEDULES))]
FormatName = Annotated[str, one_of("format", lambda: registry.names("formats"))]
Tracker = Annotated[str, one_of("tracker", TRACKERS)]
FindingCode = Annotated[str, one_of("finding", FINDINGS)]
Objective = Annotated[str, one_of("objective", lambda: _objectives(False))]
SelfSupervised = Annotated[str, one_of("objective", lambda: _objectives(True))]
AutoSelfSupervised = Annotated[str, one_of("objective", with_auto(lambda: _objectives(True)))]

Switch = Literal[True, False]
"""`true` or `false` in the place of a section, and no word or number that stands for one."""
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Duration = Annotated[float, Field(gt=0.0), with_unit((("s", 1), ("m", 60), ("h", 3600)), "90s")]


def as_source(value: Any) -> Any:
    """A text in the place of a section with `source` is that source."""
    return {"source": value} if isinstance(value, str) else value


# Fields that several sections have, with what they do.
SOURCE_WORDS = "A Hub data set id, a local file, folder or glob, or `sample:NAME`.\n\nExample: data.csv"
HubConfig = Annotated[str | None, Field(description="Configuration of a Hub data set.\n\nExample: english")]
HubSplit = Annotated[
    str | None,
    Field(
        description="Split of a Hub data set, by default `train`, or sheet of a workbook, by default the first."
        "\n\nExample: train"
    ),
]
HubRevision = Annotated[str | None, Field(description="Commit, tag or branch of a Hub data set.\n\nExample: main")]
Encoding = Annotated[
    str | None,
    AfterValidator(_encoding),
    Field(description="Encoding of the texts of a local file that is not UTF-8.\n\nExample: windows-1252"),
]
MostRows = Annotated[Positive | None, Field(description="The most rows to take.\n\nExample: 1000")]
