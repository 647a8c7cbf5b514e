"""The records: what each stage writes into the run folder and later stages read, and nothing else passes between them.

Sizes are bytes, times are seconds, shares are ratios between 0 and 1. metrics.jsonl has one Step a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from hfadapt.core import registry
from hfadapt.core.show import Block, Heading, Text
from hfadapt.core.spec import Record, Spec
from hfadapt.records.evidence import (
    Calibration,
    Compute,
    Efficiency,
    Energy,
    FailingExample,
    PairedTest,
    Slice,
    verdict,
)

Phase = str
"""A part of a stage whose peak memory is predicted or measured; each stage names its own."""
PHASES: tuple[Phase, ...] = ("load", "train", "evaluate", "save")
"""The order in which phases are shown; those of other stages follow."""


def in_order(phases: Iterable[Phase]) -> list[Phase]:
    """Phases as they are shown."""
    return sorted(phases, key=lambda phase: PHASES.index(phase) if phase in PHASES else len(PHASES))


class Versions(Spec):
    """Software and machine that made a record."""

    hfadapt: str
    python: str
    packages: dict[str, str]
    platform: str
    processor: str
    device: str


# --- cell.json ------------------------------------------------------------------------------------------------------


class StageError(Spec):
    """What went wrong in a stage, or what the recipe asked of it (a gate) and it did not reach."""

    stage: str
    message: str


class CellState(Record):
    """Where a cell stands. `stages` has the hash of all that decided a finished stage's result, which is made again
    when it changes; `seconds` are what each took; `running` is the one that was begun and has not come to any end."""

    FILE: ClassVar[str] = "cell.json"
    record_version: ClassVar[int] = 2
    status: Literal["done", "failed", "pending", "interrupted", "does-not-fit"] = "pending"
    errors: tuple[StageError, ...] = ()
    stages: dict[str, str] = {}
    seconds: dict[str, float] = {}
    running: str | None = None

    @property
    def error(self) -> str | None:
        """The errors as one text; None where there are none."""
        return "; ".join(error.message for error in self.errors) or None

    @classmethod
    def migrate(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 1 had one text for all errors and called the first stage `data`."""
        renamed = {"data": "prepare"}
        stages = {renamed.get(name, name): kept for name, kept in payload.get("stages", {}).items()}
        running = renamed.get(payload.get("running") or "", payload.get("running"))
        names = ("prepare", "plan", "train", "evaluate")
        at = running or next((name for name in names if name not in stages), names[-1])
        own, *others = (payload.pop("error", None) or "").split("; transfer: ")
        if own.startswith("transfer: "):
            own, others = "", [own.removeprefix("transfer: "), *others]
        errors = [{"stage": at, "message": own}] if own else []
        errors += [{"stage": "transfer", "message": message} for message in others]
        return {**payload, "errors": errors, "stages": stages, "running": running}


# --- data.json -------------------------------------------------------------------------------------------------------


class SourceRecord(Spec):
    """Where rows came from, with what is known about its licence and origin."""

    source: str
    rows: int
    sha256: str | None = None
    revision: str | None = None
    license: str | None = None
    citation: str | None = None
    url: str | None = None
    language: str | None = None


class Lengths(Spec):
    """Token lengths of one split after the tokenizer, before any cut; `mean` and `median` are of the sequences as which
    rows go through the model, `parts` of them for each row. Of a `sample`, `rows` are those that were looked at."""

    rows: int
    tokens: int
    mean: float
    median: int
    p95: int
    longest: int
    parts: float = 1.0
    sample: bool = False


FINDINGS = (
    *("identifiers", "wrong-column", "same-completion", "empty-completion", "many-dropped", "one-class", "class-lost"),
    *("label-never-trained", "label-in-text", "telltale-word", "answer-in-prompt", "mojibake", "split-overlap"),
    *("near-overlap", "refused", "rows-without-labels", "eos-masked", "eos-absent", "pad-hides-stop", "pad-trained"),
    *("answer-cut", "truncated", "double-bos", "other-chat-template", "no-response", "only-last-turn", "wrong-role"),
    *("prompt-trained", "turns-missing", "round-trip", "unknown-tokens"),
)
"""Codes of hard findings that a recipe may allow (`data.allow`); with the others nothing could be trained or scored."""


class Finding(Spec):
    """One result of the audit. A `hard` one stops the run, unless the recipe allows it; `rows` count from 0,
    `classes` are those that it is about."""

    code: str
    level: Literal["hard", "soft"]
    message: str
    rows: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    fix: str = ""


class LongRow(Spec):
    """A row that is among the longest, in tokens before any cut; `row` is from 0, `line` from 1."""

    source: str
    row: int
    line: int | None = None
    in_file: str | None = None
    tokens: int


class Audit(Spec):
    """What training will really see, counted after tokenisation; `dropped` gives an example for each reason, `brought`
    says how values came to the size that the model takes, where they are not just cut."""

    rows: int
    tokens: int
    labelled_tokens: int
    truncated_rows: int
    unlabelled_rows: int
    learns_to_stop: bool | None = None
    findings: tuple[Finding, ...] = ()
    sample: tuple[tuple[str, bool], ...] = ()
    longest: tuple[LongRow, ...] = ()
    dropped: dict[str, str] = {}
    brought: str = ""


class PlantedCanaries(Spec):
    """Random rows in data/canaries.parquet that are trained on beside the training split (see `data.canaries`).

    They are no data: no count of this record includes them. `rows` is how many they are with their `repeats`.
    """

    count: int
    repeats: tuple[int, ...]
    rows: int
    sha256: str


class Augmented(Spec):
    """What `data.augment` makes of the training rows: how many of `rows` it changes in the first epoch, and their token
    lengths then, before any cut."""

    rows: int
    changed: int
    lengths: Lengths


class UnlabelledTexts(Spec):
    """The texts of pretrain/texts.parquet: so many to learn from (`texts`, with `general` ones beside them), and held
    back to measure by (`validation`). `own` are those of the domain's training rows. `dropped` counts texts by reason,
    those that are like validation or test rows among them; `lengths` are of the texts to learn from."""

    sources: tuple[SourceRecord, ...] = ()
    own: bool
    rows_in: int
    texts: int
    general: int
    validation: int
    dropped: dict[str, int]
    lengths: Lengths | None = None


class DataRecord(Record):
    """One domain, prepared: `rows_in` = `rows_kept` + all of `dropped`, exactly.

    `completions` gives what is generated for each label where a template made completions out of labels; `files` the
    SHA-256 of each split file; `noticed` what reading found doubtful, which the audit shows with its own findings.
    """

    FILE: ClassVar[str] = "data.json"
    domain: str
    form: str
    sources: tuple[SourceRecord, ...]
    rows_in: int
    rows_kept: int
    dropped: dict[str, int]
    splits: dict[str, int]
    labels: tuple[str, ...] = ()
    label_counts: dict[str, dict[str, int]] = {}
    completions: dict[str, str] = {}
    lengths: dict[str, Lengths] = {}
    steps: dict[str, dict[str, Any]] = {}
    audit: Audit | None = None
    fingerprint: str
    seconds: float
    columns: dict[str, str] = {}
    files: dict[str, str] = {}
    canaries: PlantedCanaries | None = None
    augmented: Augmented | None = None
    unlabelled: UnlabelledTexts | None = None
    noticed: tuple[Finding, ...] = ()


# --- metrics.jsonl, train.json ---------------------------------------------------------------------------------------


class Step(Spec):
    """One line of metrics.jsonl: an optimizer step, or a validation when `validation_loss` is set."""

    step: int
    epoch: float
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    labelled_tokens: int | None = None
    seconds: float | None = None
    validation_loss: float | None = None


class PhaseMeasure(Spec):
    """Peak memory of a phase: predicted by the plan, and measured above what the process held before it loaded."""

    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None


class TrainRecord(Record):
    """What training did. `predicted_seconds` are the plan's, for the steps that `seconds` measures.

    `base_head` says what became of the base's own head, where it was not used as it is; `settings` what else the task
    takes from the base. `odd_sizes` says whether some 4-bit layers cannot be packed anew by bitsandbytes, as it does on
    some processors. `begun` is the file in the cell's folder with the weights of an earlier stage, from which the
    adapter went on.
    `frozen_layers` were run once for each row, which `seconds` include. `model_layers` is how many the model has, where
    only the last of them were adapted. `augmented_rows` are how many rows augmentation changed in each epoch begun.
    `halvings` is how often memory ran out, after each of which half as many rows went through the model at once.
    `same_as` is the target whose adapter was taken, as the same rows and settings would have made it again.
    """

    FILE: ClassVar[str] = "train.json"
    domain: str
    target: str
    method: str
    steps: int
    epochs: float
    first_loss: float | None
    final_loss: float | None
    best_step: int
    best_validation_loss: float | None
    stopped_early: bool
    trainable_parameters: int
    total_parameters: int
    quantised_modules: int
    odd_sizes: bool = False
    tokens: int
    labelled_tokens: int
    seconds: float
    tokens_per_second: float
    predicted_seconds: float | None = None
    predicted_tokens_per_second: float | None = None
    load_seconds: float
    adapter_bytes: int
    world_size: int
    resumed_from_step: int | None = None
    halvings: int = 0
    memory: dict[Phase, PhaseMeasure] = {}
    check_losses: tuple[float, ...] = ()
    model_license: str | None = None
    model_hub_id: str | None = None
    model_revision: str | None = None
    model_citation: str | None = None
    base_head: str | None = None
    head_start: str | None = None
    begun: str | None = None
    settings: dict[str, Any] = {}
    fast_path: str | None = None
    frozen_layers: int = 0
    model_layers: int | None = None
    augmented_rows: tuple[int, ...] = ()
    same_as: str = ""
    compile_seconds: float | None = None
    together: tuple[str, ...] = ()
    energy: Energy | None = None
    compute: Compute | None = None
    versions: Versions


# --- evaluation.json -------------------------------------------------------------------------------------------------


class Metric(Spec):
    """One metric of base and adapter on the same rows; `low` to `high` is the paired-bootstrap interval of `delta`."""

    name: str
    base: float | None
    adapter: float
    delta: float | None
    low: float | None
    high: float | None
    rows: int
    higher_is_better: bool = True
    base_low: float | None = None
    base_high: float | None = None
    adapter_low: float | None = None
    adapter_high: float | None = None

    @property
    def gain(self) -> float | None:
        """`delta`, turned so that more is better."""
        return None if self.delta is None else self.delta if self.higher_is_better else -self.delta

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval of the difference lies wholly on one side, else `open`."""
        return verdict(self.low, self.high, self.higher_is_better)

    @property
    def better(self) -> bool:
        """Whether the interval of the difference lies wholly on the better side."""
        return self.verdict == "better"

    @property
    def worse(self) -> bool:
        """Whether the interval of the difference lies wholly on the worse side."""
        return self.verdict == "worse"


class EvaluationRecord(Record):
    """The adapter against its baseline on the test split, from the files on disk.

    `setting` says what the metrics depend on beside the rows, such as among how many documents a query has to find its
    own. `prompts_sha256` is the hash of the token ids that both saw; `harness` has the metrics of tasks of
    lm-evaluation-harness, on rows of their own. `worst` are test rows on which an adapter whose answers are no classes
    is wrong, `warnings` sentences on what its metrics mean.
    """

    FILE: ClassVar[str] = "evaluation.json"
    domain: str
    target: str
    baseline: str
    split: str = "test"
    rows: int
    confidence: float
    resamples: int
    rows_sha256: str
    setting: str | None = None
    metrics: tuple[Metric, ...]
    confusion: dict[str, dict[str, int]] = {}
    per_class: dict[str, dict[str, float]] = {}
    reopened_difference: float
    seconds: float
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    gates_failed: tuple[str, ...] = ()
    memory: dict[Phase, PhaseMeasure] = {}
    prompts_sha256: str | None = None
    paired_tests: tuple[PairedTest, ...] = ()
    slices: tuple[Slice, ...] = ()
    calibration: Calibration | None = None
    efficiency: Efficiency | None = None
    general_text: Metric | None = None
    failures: tuple[FailingExample, ...] = ()
    worst: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    harness: tuple[Metric, ...] = ()
    extra: dict[str, Any] = {}
    versions: Versions


# --- a base that a stage made ----------------------------------------------------------------------------------------


class Change(Spec):
    """How a base came from another: the stage that made it, in words for a reader, and the SHA-256 of its weights."""

    made_by: str
    how: str
    sha256: str


class BaseRecord(Change, Record):
    """base.json in the folder of a base that a stage made, so that the folder says itself what it is.

    `model` is the recipe's, from which it comes in the end; `parent` the weights' SHA-256 of the made base that was
    changed, None where that was the model itself.
    """

    FILE: ClassVar[str] = "base.json"
    model: str
    parent: str | None = None


# --- adapter/hfadapt.json --------------------------------------------------------------------------------------------


class Manifest(Record):
    """What an adapter belongs to; checked before it is loaded.

    In an exported folder `format` says what the folder holds, and `form`, `prompt` and `completions` (what is generated
    for each label) how texts are put to it, so that it can be used without the run. `base` is set where a stage had
    made the base out of `model`.
    """

    FILE: ClassVar[str] = "hfadapt.json"
    task: str
    model: str
    model_revision: str | None
    config_sha256: str
    shapes_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    weights_sha256: str | None = None
    quant: str
    dtype: str
    method: str
    rank: int
    labels: tuple[str, ...]
    files: dict[str, str]
    tensors: int
    max_length: int
    versions: Versions
    format: str = "adapter"
    form: str | None = None
    prompt: str | None = None
    completions: dict[str, str] = {}
    base: Change | None = None

    @property
    def whole(self) -> bool:
        """Whether the folder holds a model of its own, which needs no base."""
        return registry.adapter(self.method).whole_model or not registry.format(self.format).needs_base


# --- card.json -------------------------------------------------------------------------------------------------------


class CardFact(Spec):
    """One value that the card shows: where it comes from, and the very text that stands in the card.

    `fields` are `FILE#/JSON/POINTER`; `how` says what was done with their values.
    """

    id: str
    value: str | int | float | bool | None
    fields: tuple[str, ...]
    how: Literal["value", "product", "ratio", "differing"] = "value"
    factor: int = 1
    form: str = "text"
    shown: str


class CardRecord(Record):
    """The card as data: its metadata, every value in it, the loading snippet and what it printed when it was run."""

    FILE: ClassVar[str] = "card.json"
    AGAIN: ClassVar[str] = "hfadapt card build CELL, which writes it again from the records"
    domain: str
    target: str
    metadata: dict[str, Any]
    snippet: str
    output: str | None
    facts: tuple[CardFact, ...]

    def blocks(self) -> list[Block]:
        """What it is the card of, and its snippet; all else stands in README.md, better to be read."""
        said = f"Card of {self.domain} on {self.target}: {len(self.facts):,} values from its records"
        return [Heading(said, 1), Text(f"{self.snippet.strip()}\n# {self.output}", code=True)]
