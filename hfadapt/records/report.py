"""report.json: the matrix of a run and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from hfadapt.core.show import Block, Heading, Table, Text, show_bytes, show_number, show_seconds
from hfadapt.core.spec import Record, Spec
from hfadapt.records.evidence import TransferTarget, migrate_targets
from hfadapt.records.gaps import said_of
from hfadapt.records.stages import Metric, Phase, PhaseMeasure

COSTS = (
    *("peak memory predicted", "peak memory measured", "training predicted", "training measured"),
    *("time in all", "adapter size"),
)


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
    predicted_train_seconds: float | None = None
    train_seconds: float | None = None
    steps: int | None = None
    best_step: int | None = None
    """At which the loss on validation rows was lowest."""
    tokens_per_second: float | None = None
    adapter_bytes: int | None = None
    rows: dict[str, int] = {}
    unscored: tuple[str, ...] = ()
    """Classes that were trained and have no test row."""
    card: str | None = None
    model: str | None = None
    """The base, where it is not that of the report: of another recipe that has the same name."""


class Report(Record):
    """The whole recipe: one row a cell.

    Example:
        >>> from pathlib import Path
        >>> from hfadapt import Run
        >>> report = Run(Path("runs/sentiment")).report
        >>> [(cell.domain, cell.status) for cell in report.cells]
        [('movies', 'done'), ('tweets', 'done')]
    """

    FILE: ClassVar[str] = "report.json"
    AGAIN: ClassVar[str] = "hfadapt report RUN, which writes it again from the records"
    record_version: ClassVar[int] = 2
    recipe: str
    model: str
    task: str
    cells: tuple[CellReport, ...]
    transfer: tuple[TransferTarget, ...] = ()
    next_commands: tuple[str, ...] = Field(default=())

    @property
    def failed(self) -> tuple[CellReport, ...]:
        """The cells that failed or do not fit."""
        return tuple(cell for cell in self.cells if cell.status in ("failed", "does-not-fit"))

    @classmethod
    def migrate(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 1 named the pairs that were left out in one text."""
        return {**payload, "transfer": migrate_targets(payload.get("transfer", []))}

    def blocks(self) -> list[Block]:
        """The matrix: baseline, adapter, gain with interval; memory and time predicted and measured, size; cards; then
        every adapter on every domain."""
        return [
            Heading(f"{self.recipe}: {self.model}, {self.task}", 1),
            *report_tables(self),
            *(block for target in self.transfer for block in transfer_tables(target, len(self.transfer) > 1)),
            *([Text("next: " + "\n      ".join(self.next_commands), code=True)] if self.next_commands else []),
        ]


def report_tables(report: Report) -> list[Block]:
    """What the adapters gain and cost; below, the cards and what failed. What all cells share is said once."""
    baseline = next((cell.baseline for cell in report.cells if cell.baseline), "base")
    names = ["target", "status", "metric", "base"]
    rows = [[cell.target, cell.status, _metric_name(cell), cell.model or ""] for cell in report.cells]
    differing = [n for n in range(len(names)) if len({row[n] for row in rows}) > 1]
    rows = [[*row[:-1], row[-1] or report.model] for row in rows]
    summary = ", ".join(
        f"{names[n]}: {rows[0][n]}"
        for n in range(len(names))
        if rows and n not in differing and rows[0][n] and rows[0][n] != report.model
    )
    gains, costs = [baseline, "adapter", "gain [95 % interval]"], list(COSTS)
    keys = [[cell.domain, *(row[n] for n in differing)] for cell, row in zip(report.cells, rows, strict=True)]
    which = [n for n in differing if names[n] == "target"]
    cards = [f"{cell.domain}: {cell.card}" for cell in report.cells if cell.card]
    failed = ", ".join(f"{cell.domain} on {cell.target}" for cell in report.failed)
    count = f"{len(report.failed)} of {len(report.cells)} cells failed: {failed}; what happened stands below the tables"
    return [
        *([Text(summary)] if summary else []),
        *([Text(count)] if failed else []),
        _filled(
            ["domain", *(names[n] for n in differing)],
            gains,
            [[*key, *_gain_row(cell)] for key, cell in zip(keys, report.cells, strict=True)],
        ),
        _filled(
            ["domain", *(names[n] for n in which)],
            costs,
            [[cell.domain, *(cell.target for _ in which), *_cost_row(cell)] for cell in report.cells],
        ),
        *(Text(f"{name}: {text}") for name, text in not_scored(report)),
        *_unproved(report),
        *([Text("cards:\n  " + "\n  ".join(cards), code=True)] if cards else []),
        *(Text(f"{cell.domain} on {cell.target}: {cell.error}") for cell in report.cells if cell.error),
    ]


def not_scored(report: Report) -> list[tuple[str, str]]:
    """What is not measured of the classes of a domain, by domain."""
    return list({cell.domain: said_of(cell.unscored) for cell in report.cells if cell.unscored}.items())


def _filled(names: Sequence[str], figures: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of rows, without the columns of figures that no row has."""
    columns = [*names, *figures]
    kept = [n for n in range(len(columns)) if n < len(names) or any(row[n] for row in rows)]
    return Table([columns[n] for n in kept], [[row[n] for n in kept] for row in rows], frozenset(figures))


def transfer_tables(target: TransferTarget, name_target: bool = False) -> list[Block]:
    """One line an adapter, one column a domain: the metric, and the difference from that domain's baseline."""
    found = {(cell.adapter, cell.data): cell for cell in target.cells}
    pairs = [*found, *((pair.adapter, pair.data) for pair in target.skipped)]
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
    reasons = [f"{pair.name}: {pair.reason}" for pair in target.skipped]
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


def _unproved(report: Report) -> list[Block]:
    """What to try where the adapter is not better than the baseline beyond chance."""
    known = [cell for cell in report.cells if cell.metrics and cell.metrics[0].low is not None]
    several = len({cell.target for cell in known}) > 1

    def flawless(metric: Metric) -> bool:
        return metric.base == (1.0 if metric.higher_is_better else 0.0)

    def names(worse: bool, perfect: bool = False) -> str:
        found = [cell for cell in known if not cell.metrics[0].better and cell.metrics[0].worse == worse]
        found = [cell for cell in found if worse or flawless(cell.metrics[0]) == perfect]
        return ", ".join(f"{cell.domain} on {cell.target}" if several else cell.domain for cell in found)

    said = []
    if solved := names(False, perfect=True):
        said.append(f"the baseline makes no mistake on these test rows, and leaves nothing to gain: {solved}")
    if worse := names(True):
        said.append(f"worse than the baseline: {worse}. Look at the rows (hfadapt check), then at train.learning_rate")
    if unsure := names(False):
        said.append(
            f"not better than the baseline beyond chance: {unsure}. To try: more rows, train.epochs, "
            "train.learning_rate, adapter.rank; with few test rows the interval is wide"
        )
    peaks = [(cell, cell.best_step, cell.steps) for cell in known if not cell.metrics[0].better]
    if turned := [
        f"{cell.domain} at step {best} of {steps}" for cell, best, steps in peaks if best and steps and best < steps
    ]:
        said.append(
            f"the loss on validation rows was lowest before the end: {', '.join(turned)}. train.patience: 2 stops "
            "after two validations without a gain, and keeps what was best"
        )
    return [Text(line) for line in said]


def _metric_name(cell: CellReport) -> str:
    if not cell.metrics:
        return ""
    metric = cell.metrics[0]
    return metric.name if metric.higher_is_better else f"{metric.name} (lower is better)"


def _gain_row(cell: CellReport) -> list[str]:
    if not cell.metrics:
        return ["", "", ""]
    metric = cell.metrics[0]
    return [show_number(metric.base), show_number(metric.adapter), show_gain(metric)]


def _cost_row(cell: CellReport) -> list[str]:
    """COSTS of a cell; memory is that of the largest phase."""
    peaks = [
        [m.predicted_peak_bytes for m in cell.memory.values()],
        [m.measured_peak_bytes for m in cell.memory.values()],
    ]
    known = [[peak for peak in side if peak is not None] for side in peaks]
    seconds = (cell.predicted_train_seconds, cell.train_seconds, cell.seconds)
    return [
        *(show_bytes(max(side)) if side else "" for side in known),
        *(show_seconds(value) if value is not None else "" for value in seconds),
        show_bytes(cell.adapter_bytes) if cell.adapter_bytes is not None else "",
    ]


def shown_metric(metric: Metric) -> dict[str, str]:
    """A metric as pages show it: name, baseline, adapter, gain, verdict and rows."""
    return {
        "name": metric.name,
        "base": show_number(metric.base) if metric.base is not None else "",
        "adapter": show_number(metric.adapter),
        "gain": show_gain(metric),
        "verdict": metric.verdict,
        "rows": f"{metric.rows:,}",
    }


def show_gain(metric: Metric) -> str:
    """'+0.21 [+0.17, +0.25]', or the reason why there is none."""
    if metric.delta is None:
        return "no baseline"
    if metric.low is None or metric.high is None:
        return f"{metric.delta:+.3f}"
    return f"{metric.delta:+.3f} [{metric.low:+.3f}, {metric.high:+.3f}]"
