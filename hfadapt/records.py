"""The records: what each stage writes into the run folder and later stages read, and nothing else passes between them.

plan.json (Plan), data.json (DataRecord), train.json (TrainRecord), metrics.jsonl (one Step a line),
evaluation.json (EvaluationRecord), adapter/hfadapt.json (Manifest), card.json (CardRecord), report.json (Report).
Sizes are bytes, times are seconds, shares are ratios between 0 and 1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hfadapt.evidence import (
    Calibration,
    Compute,
    Efficiency,
    Energy,
    FailingExample,
    PairedTest,
    Slice,
    TransferTarget,
)
from hfadapt.show import Block, Heading, Shown, Table, Text, show_bytes, show_number, show_seconds
from hfadapt.spec import Record, Spec

Phase = Literal["load", "train", "evaluate", "save"]
PHASES: tuple[Phase, ...] = ("load", "train", "evaluate", "save")


class Versions(Spec):
    """Software and machine that made a record."""

    hfadapt: str
    python: str
    packages: dict[str, str]
    platform: str
    processor: str
    device: str


# --- cell.json ------------------------------------------------------------------------------------------------------


class CellState(Record):
    """Where a cell stands. `stages` has, for each finished stage, the hash of all that decided its result; a stage is
    done again when that hash changes."""

    status: Literal["done", "failed", "pending", "interrupted", "does-not-fit"] = "pending"
    error: str | None = None
    stages: dict[str, str] = {}


# --- plan.json -------------------------------------------------------------------------------------------------------


class Rejected(Spec):
    """An alternative that the plan looked at and did not take."""

    value: str
    reason: str


class Decision(Spec):
    """One resolved field: its value, whether the user had set it, why, and what else was considered."""

    field: str
    value: Any
    asked: bool
    reason: str
    rejected: tuple[Rejected, ...] = ()


class PhaseMemory(Spec):
    """Predicted peak of one phase on the training device, by part."""

    phase: Phase
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


class Alternative(Spec):
    """A nearby plan that would fit, and what it gives up."""

    changes: dict[str, Any]
    gives_up: str
    predicted_peak_bytes: int


class CellPlan(Spec):
    """The plan of one domain on one target."""

    domain: str
    target: str
    decisions: tuple[Decision, ...]
    memory: tuple[PhaseMemory, ...]
    budget_bytes: int
    margin: float
    fits: bool
    trains_on: str
    predicted_seconds: float | None = None
    predicted_tokens_per_second: float | None = None
    data_basis: str
    alternatives: tuple[Alternative, ...] = ()
    warnings: tuple[str, ...] = ()

    def value(self, field: str) -> Any:
        """The resolved value of a dotted field. Raises KeyError when the plan has no such field."""
        for decision in self.decisions:
            if decision.field == field:
                return decision.value
        raise KeyError(field)

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs the most memory."""
        return max(self.memory, key=lambda phase: phase.total_bytes)


class Plan(Shown, Record):
    """All cells of a recipe, resolved."""

    recipe: str
    model: str
    parameters: int
    cells: tuple[CellPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every cell fits its target."""
        return all(cell.fits for cell in self.cells)

    def blocks(self) -> list[Block]:
        """Per cell: the decisions with reasons, the predicted memory by part, and the verdict."""
        shown: list[Block] = [Heading(f"Plan of {self.recipe}: {self.model}, {self.parameters:,} parameters", 1)]
        for cell in self.cells:
            shown.append(Heading(f"{cell.domain} on {cell.target}"))
            rows = [
                [
                    decision.field,
                    _plain(decision.value),
                    "set" if decision.asked else "auto",
                    decision.reason,
                    "; ".join(f"{other.value}: {other.reason}" for other in decision.rejected),
                ]
                for decision in cell.decisions
            ]
            shown.append(Table(["field", "value", "by", "reason", "rejected"], rows))
            parts = list(dict.fromkeys(part for phase in cell.memory for part in phase.parts))
            memory = [
                [part, *(show_bytes(phase.parts[part]) if part in phase.parts else "" for phase in cell.memory)]
                for part in parts
            ]
            memory.append(["peak", *(show_bytes(phase.total_bytes) for phase in cell.memory)])
            columns = ["memory", *(phase.phase for phase in cell.memory)]
            shown.append(Table(columns, memory, frozenset(columns[1:])))
            verdict = "fits" if cell.fits else "DOES NOT FIT"
            shown.append(
                Text(
                    f"{verdict}: peak {show_bytes(cell.peak.total_bytes)} while it runs '{cell.peak.phase}', "
                    f"{show_bytes(cell.budget_bytes)} usable with a margin of {cell.margin:.0%}; trains on "
                    f"{cell.trains_on}; data: {cell.data_basis}"
                    + (
                        f"; about {show_seconds(cell.predicted_seconds)} of training (rough)"
                        if cell.predicted_seconds is not None
                        else ""
                    )
                )
            )
            if cell.alternatives:
                rows = [
                    [
                        ", ".join(f"{k}={_plain(v)}" for k, v in other.changes.items()),
                        other.gives_up,
                        show_bytes(other.predicted_peak_bytes),
                    ]
                    for other in cell.alternatives
                ]
                shown.append(Table(["would fit with", "gives up", "peak"], rows, frozenset({"peak"})))
            shown.extend(Text(f"warning: {warning}") for warning in cell.warnings)
        return shown


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


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
    """Token lengths of one split after the tokenizer, before any cut."""

    rows: int
    tokens: int
    mean: float
    median: int
    p95: int
    longest: int


class Finding(Spec):
    """One result of the audit. A `hard` one stops the run."""

    code: str
    level: Literal["hard", "soft"]
    message: str
    rows: tuple[int, ...] = ()
    fix: str = ""


class LongRow(Spec):
    """A row that is among the longest, in tokens before any cut."""

    source: str
    row: int
    tokens: int


class Audit(Spec):
    """What training will really see, counted after tokenisation."""

    rows: int
    tokens: int
    labelled_tokens: int
    truncated_rows: int
    unlabelled_rows: int
    learns_to_stop: bool | None = None
    findings: tuple[Finding, ...] = ()
    sample: tuple[tuple[str, bool], ...] = ()
    longest: tuple[LongRow, ...] = ()


class PlantedCanaries(Spec):
    """Random rows in data/canaries.parquet that are trained on beside the training split (see `data.canaries`).

    They are no data: no count of this record includes them. `rows` is how many they are with their `repeats`.
    """

    count: int
    repeats: tuple[int, ...]
    rows: int
    sha256: str


class DataRecord(Record):
    """One domain, prepared: `rows_in` = `rows_kept` + all of `dropped`, exactly.

    `completions` gives what is generated for each label where a template made completions out of labels; `files` the
    SHA-256 of each split file.
    """

    domain: str
    form: Literal["text", "labelled", "completion", "messages"]
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
    validation_metric: float | None = None


class PhaseMeasure(Spec):
    """Peak memory of a phase: predicted by the plan, and measured above what the process held before it loaded."""

    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None


class TrainRecord(Record):
    """What training did."""

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
    tokens: int
    labelled_tokens: int
    seconds: float
    tokens_per_second: float
    load_seconds: float
    adapter_bytes: int
    world_size: int
    resumed_from_step: int | None = None
    memory: dict[Phase, PhaseMeasure] = {}
    check_losses: tuple[float, ...] = ()
    model_license: str | None = None
    model_hub_id: str | None = None
    model_revision: str | None = None
    model_citation: str | None = None
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
    def worse(self) -> bool:
        """Whether the interval of the difference lies wholly on the worse side."""
        if self.low is None or self.high is None:
            return False
        return self.high < 0 if self.higher_is_better else self.low > 0


class EvaluationRecord(Record):
    """The adapter against its baseline on the test split, from the files on disk.

    `prompts_sha256` is the hash of the token ids that both saw; `harness` has the metrics of tasks of
    lm-evaluation-harness, on rows of their own.
    """

    domain: str
    target: str
    baseline: str
    split: str = "test"
    rows: int
    confidence: float
    resamples: int
    rows_sha256: str
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
    harness: tuple[Metric, ...] = ()
    extra: dict[str, Any] = {}
    versions: Versions


# --- adapter/hfadapt.json --------------------------------------------------------------------------------------------


class Manifest(Record):
    """What an adapter belongs to; checked before it is loaded."""

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

    domain: str
    target: str
    metadata: dict[str, Any]
    snippet: str
    output: str | None
    facts: tuple[CardFact, ...]


# --- publish.json ----------------------------------------------------------------------------------------------------


class PublishedFile(Spec):
    """One file as it was sent: `name` is its path in the repository."""

    name: str
    bytes: int
    sha256: str


class PublishRecord(Record):
    """Where a cell's adapter was published, and what was found when it was downloaded again.

    `new_commit` is false when the repository held the same files already; `loaded_difference` is the mean difference
    of a check row's loss between the trained adapter and the downloaded one, in nats, None where it was not scored.
    """

    domain: str
    target: str
    repo: str
    folder: str
    private: bool
    commit: str
    tag: str
    new_commit: bool
    files: tuple[PublishedFile, ...]
    license: str
    loaded_difference: float | None
    collection: str | None = None
    versions: Versions


# --- report.json -----------------------------------------------------------------------------------------------------


class CellReport(Spec):
    """One cell of the matrix, as the last screen shows it."""

    domain: str
    target: str
    status: Literal["done", "failed", "pending", "interrupted", "does-not-fit"]
    error: str | None = None
    baseline: str | None = None
    metrics: tuple[Metric, ...] = ()
    memory: dict[Phase, PhaseMeasure] = {}
    seconds: float | None = None
    tokens_per_second: float | None = None
    adapter_bytes: int | None = None
    rows: dict[str, int] = {}
    card: str | None = None


class Report(Shown, Record):
    """The whole recipe: one row a cell."""

    recipe: str
    model: str
    task: str
    cells: tuple[CellReport, ...]
    transfer: tuple[TransferTarget, ...] = ()
    next_commands: tuple[str, ...] = Field(default=())

    def blocks(self) -> list[Block]:
        """The matrix: baseline, adapter, gain with interval, memory predicted / measured, seconds, size, card; then
        every adapter on every domain."""
        return [
            Heading(f"{self.recipe}: {self.model}, {self.task}", 1),
            *report_tables(self),
            *(block for target in self.transfer for block in transfer_tables(target, len(self.transfer) > 1)),
            *([Text("next: " + "\n      ".join(self.next_commands), code=True)] if self.next_commands else []),
        ]


def report_tables(report: Report) -> list[Block]:
    """The matrix and, below it, the cards and what failed. Columns that say the same everywhere are left out."""
    baseline = next((cell.baseline for cell in report.cells if cell.baseline), "base")
    columns = ["domain", "target", "status", "metric", baseline, "adapter", "gain [95 % interval]"]
    columns += ["peak memory predicted / measured", "time", "adapter size"]
    rows = [_report_row(cell) for cell in report.cells]
    same = {
        i for i, name in enumerate(columns) if name in ("target", "status", "metric") and len({r[i] for r in rows}) == 1
    }
    summary = ", ".join(f"{columns[i]}: {rows[0][i]}" for i in sorted(same) if rows and rows[0][i])
    kept = [i for i in range(len(columns)) if i not in same]
    right = frozenset({baseline, "adapter", "time", "adapter size"})
    table = Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], right)
    cards = [f"{cell.domain}: {cell.card}" for cell in report.cells if cell.card]
    return [
        *([Text(summary)] if summary else []),
        table,
        *([Text("cards:\n  " + "\n  ".join(cards), code=True)] if cards else []),
        *(Text(f"{cell.domain} on {cell.target}: {cell.error}") for cell in report.cells if cell.error),
    ]


def transfer_tables(target: TransferTarget, name_target: bool = False) -> list[Block]:
    """One line an adapter, one column a domain: the metric, and the difference from that domain's baseline."""
    found = {(cell.adapter, cell.data): cell for cell in target.cells}
    pairs = [*found, *(tuple(pair.split(" on ", 1)) for pair in target.skipped)]
    adapters, data = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    if not found:
        return []

    def shown(adapter: str, domain: str) -> str:
        cell = found.get((adapter, domain))
        if cell is None:
            return "-"
        if cell.delta is None:
            return show_number(cell.value)
        sure = cell.low is not None and cell.high is not None and not cell.low <= 0 <= cell.high
        return f"{show_number(cell.value)} ({cell.delta:+.3f}{'*' if sure else ''})"

    rows = sorted({cell.rows for cell in target.cells})
    counted = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
    where = f" on {target.target}" if name_target else ""
    better = "higher" if target.higher_is_better else "lower"
    reasons = [f"{pair}: {reason}" for pair, reason in target.skipped.items()]
    return [
        Heading(f"every adapter on every domain{where}: {target.metric}, {better} is better"),
        Table(
            ["adapter", *(f"on {domain}" for domain in data)],
            [[adapter, *(shown(adapter, domain) for domain in data)] for adapter in adapters],
            frozenset(f"on {domain}" for domain in data),
        ),
        Text(
            f"In brackets the difference from the domain's baseline on the same {counted} rows, * where its interval "
            "does not hold zero."
        ),
        *([Text("left out:\n  " + "\n  ".join(reasons), code=True)] if reasons else []),
    ]


def _report_row(cell: CellReport) -> list[str]:
    metric = cell.metrics[0] if cell.metrics else None
    return [
        cell.domain,
        cell.target,
        cell.status,
        metric.name if metric else "",
        show_number(metric.base) if metric else "",
        show_number(metric.adapter) if metric else "",
        show_gain(metric) if metric else "",
        peak_pair(cell.memory),
        show_seconds(cell.seconds) if cell.seconds is not None else "",
        show_bytes(cell.adapter_bytes) if cell.adapter_bytes is not None else "",
    ]


def show_gain(metric: Metric) -> str:
    """'+0.21 [+0.17, +0.25]', or the reason why there is none."""
    if metric.delta is None:
        return "no baseline"
    if metric.low is None or metric.high is None:
        return f"{metric.delta:+.3f}"
    return f"{metric.delta:+.3f} [{metric.low:+.3f}, {metric.high:+.3f}]"


def peak_pair(memory: dict[Phase, PhaseMeasure]) -> str:
    """The largest predicted and the largest measured phase."""
    predicted = [m.predicted_peak_bytes for m in memory.values() if m.predicted_peak_bytes is not None]
    measured = [m.measured_peak_bytes for m in memory.values() if m.measured_peak_bytes is not None]
    if not predicted and not measured:
        return ""
    return (
        f"{show_bytes(max(predicted)) if predicted else 'not predicted'} / "
        f"{show_bytes(max(measured)) if measured else 'not measured'}"
    )
