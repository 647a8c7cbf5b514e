"""report.json: the matrix of a run and how it is shown."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes, show_number, show_seconds
from hfadapt.core.spec import Record, Spec
from hfadapt.records.evidence import TransferTarget, migrate_targets
from hfadapt.records.stages import Metric, Phase, PhaseMeasure


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
    tokens_per_second: float | None = None
    adapter_bytes: int | None = None
    rows: dict[str, int] = {}
    card: str | None = None


class Report(Shown, Record):
    """The whole recipe: one row a cell."""

    FILE: ClassVar[str] = "report.json"
    record_version: ClassVar[int] = 2
    recipe: str
    model: str
    task: str
    cells: tuple[CellReport, ...]
    transfer: tuple[TransferTarget, ...] = ()
    next_commands: tuple[str, ...] = Field(default=())

    @classmethod
    def migrate(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 1 named the pairs that were left out in one text."""
        return {**payload, "transfer": migrate_targets(payload.get("transfer", []))}

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
        *_training_times(report),
        *_unproved(report),
        *([Text("cards:\n  " + "\n  ".join(cards), code=True)] if cards else []),
        *(Text(f"{cell.domain} on {cell.target}: {cell.error}") for cell in report.cells if cell.error),
    ]


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


def _training_times(report: Report) -> list[Block]:
    """Predicted and measured training time of each cell that has both."""
    pairs = [
        f"{cell.domain} {show_seconds(cell.predicted_train_seconds)} / {show_seconds(cell.train_seconds)}"
        for cell in report.cells
        if cell.predicted_train_seconds is not None and cell.train_seconds is not None
    ]
    return [Text("training time predicted / measured: " + ", ".join(pairs))] if pairs else []


def _unproved(report: Report) -> list[Block]:
    """What to try where the adapter is not better than the baseline beyond chance."""
    known = [cell for cell in report.cells if cell.metrics and cell.metrics[0].low is not None]
    several = len({cell.target for cell in known}) > 1

    def names(worse: bool) -> str:
        found = [cell for cell in known if not cell.metrics[0].better and cell.metrics[0].worse == worse]
        return ", ".join(f"{cell.domain} on {cell.target}" if several else cell.domain for cell in found)

    said = []
    if worse := names(True):
        said.append(f"worse than the baseline: {worse}. Look at the rows (hfadapt check), then at train.learning_rate")
    if unsure := names(False):
        said.append(
            f"not better than the baseline beyond chance: {unsure}. To try: more rows, train.epochs, "
            "train.learning_rate, adapter.rank; with few test rows the interval is wide"
        )
    return [Text(line) for line in said]


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
