"""What the report draws: from the records of a run's cells to plots. The page and a notebook show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfadapt.core.show import show_bytes, show_latency, show_number, show_seconds
from hfadapt.records.evidence import (
    DriftRecord,
    ReliabilityBin,
    SecurityRecord,
    TransferRecord,
    TransferTarget,
    bounds,
    verdict,
)
from hfadapt.records.report import CellReport, show_gain
from hfadapt.records.stages import DataRecord, EvaluationRecord, Metric, Step, TrainRecord, in_order
from hfadapt.report import plots, svg

PREDICTED, MEASURED = "var(--pale)", "var(--c0)"
MOST_SLICES = 14
LOWEST_KL, LOWEST_SPREADS = 1e-6, 1e-3
CHANCE = 0.5
"""Area under the curve of a guess."""


@dataclass(frozen=True)
class CellRecords:
    """One cell with those of its records that exist."""

    report: CellReport
    train: TrainRecord | None = None
    evaluation: EvaluationRecord | None = None
    steps: Sequence[Step] = ()
    security: SecurityRecord | None = None
    drift: DriftRecord | None = None
    data: DataRecord | None = None
    folder: Path | None = None


Drawn = list[tuple[str, str]]
"""Titles and SVG."""


def names(cells: Sequence[CellRecords]) -> dict[int, str]:
    """What to call each cell: its domain, with the target where there are several."""
    several = len({cell.report.target for cell in cells}) > 1
    return {
        id(cell): f"{cell.report.domain} · {cell.report.target}" if several else cell.report.domain for cell in cells
    }


def leading(cells: Sequence[CellRecords]) -> Metric | None:
    """The first metric of the run."""
    return next((cell.report.metrics[0] for cell in cells if cell.report.metrics), None)


# --- results ---------------------------------------------------------------------------------------------------------


def matrix(cells: Sequence[CellRecords]) -> str | None:
    """The leading metric: domains by baseline and adapter; with several targets, domains by targets."""
    first = leading(cells)
    if first is None:
        return None
    baseline = next((cell.report.baseline for cell in cells if cell.report.baseline), "baseline")
    targets = list(dict.fromkeys(cell.report.target for cell in cells))
    values, notes = {}, {}
    for cell in cells:
        metric = next((metric for metric in cell.report.metrics if metric.name == first.name), None)
        if metric is None:
            continue
        column = "adapter" if len(targets) == 1 else cell.report.target
        values[cell.report.domain, column] = metric.adapter
        if metric.base is not None and len(targets) == 1:
            values[cell.report.domain, baseline] = metric.base
        if metric.base is not None and metric.delta is not None:
            gain = f"{metric.delta:+.3f}"
            notes[cell.report.domain, column] = gain if len(targets) == 1 else f"{metric.base:.3f} {gain}"
    return plots.heat_map(
        list(dict.fromkeys(cell.report.domain for cell in cells)),
        [baseline, "adapter"] if len(targets) == 1 else targets,
        values,
        title=f"{first.name} of baseline and adapter",
        show=show_number,
        notes=notes,
        higher_is_better=first.higher_is_better,
    )


def gains(cells: Sequence[CellRecords]) -> Drawn:
    """For each metric, the difference of every cell with its interval."""
    called = names(cells)
    kinds: dict[str, list[plots.Effect]] = {}
    for cell in cells:
        for metric in cell.report.metrics:
            if metric.delta is None:
                continue
            name, shown = called[id(cell)], show_gain(metric)
            effect = plots.Effect(name, metric.delta, metric.verdict, shown, metric.low, metric.high)
            kinds.setdefault(metric.name, []).append(effect)
    return [
        (name, plots.forest(effects, title=f"Difference in {name}", axis=f"adapter − baseline, {name}"))
        for name, effects in kinds.items()
    ]


def recall(cells: Sequence[CellRecords]) -> str | None:
    """Recall of each class, for at most twelve classes."""
    called, values, notes = names(cells), {}, {}
    for cell in cells:
        for label, found in (cell.evaluation.per_class if cell.evaluation else {}).items():
            key = (called[id(cell)], label)
            values[key], notes[key] = found["adapter"], f"from {found['base']:.2f}"
    columns = list(dict.fromkeys(label for _, label in values))
    if not columns or len(columns) > 12:
        return None
    rows = list(dict.fromkeys(row for row, _ in values))
    return plots.heat_map(rows, columns, values, title="Recall by class", show=lambda v: f"{v:.2f}", notes=notes)


def cross_domain(record: TransferRecord | None) -> Drawn:
    """For each target, every adapter on every domain, shaded by the difference from that domain's baseline."""
    return [(one.target, _cross(one)) for one in (record.targets if record else ()) if one.cells]


def _cross(one: TransferTarget) -> str:
    values = {(cell.adapter, cell.data): cell.value for cell in one.cells}
    deltas = {(cell.adapter, cell.data): cell.delta for cell in one.cells if cell.delta is not None}
    return plots.heat_map(
        list(dict.fromkeys(cell.adapter for cell in one.cells)),
        list(dict.fromkeys(cell.data for cell in one.cells)),
        values,
        title=f"{one.metric} of every adapter on every domain, {one.target}",
        show=show_number,
        notes={pair: f"{delta:+.3f}" for pair, delta in deltas.items()},
        higher_is_better=one.higher_is_better,
        gains=deltas,
        corner="adapter ↓ data →",
    )


def slices(cells: Sequence[CellRecords]) -> str | None:
    """The slices of all cells on which the adapter does worst, from baseline to adapter."""
    called, found = names(cells), []
    for cell in cells:
        for one in cell.evaluation.slices if cell.evaluation else ():
            known = {metric.name: metric.higher_is_better for metric in cell.evaluation.metrics}  # type: ignore[union-attr]
            up = known.get(one.metric, True)
            change = f" ({one.delta:+.3f})" if one.delta is not None else ""
            move = plots.Move(
                f"{called[id(cell)]}: {one.by} {_short(one.name.rsplit('/', 1)[-1])}",
                one.adapter,
                verdict(one.low, one.high, up),
                f"{one.adapter:.3f}{change}, {one.rows:,} rows",
                one.base,
            )
            found.append((one.adapter if up else -one.adapter, move))
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])
    first = leading(cells)
    axis = f"{first.name if first else 'metric'}, baseline → adapter"
    return plots.dumbbell([move for _, move in found[:MOST_SLICES]], title="Slices, the worst first", axis=axis)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def calibration(cells: Sequence[CellRecords]) -> Drawn:
    """A reliability diagram of each cell, with the calibration error that follows from its bins."""
    drawn = []
    for cell in cells:
        found = cell.evaluation.calibration if cell.evaluation else None
        if found is None or not found.adapter:
            continue
        baseline = cell.evaluation.baseline if cell.evaluation else "base"
        curves = [
            (f"{who} {_error(bins):.3f}", colour, [(one.confidence, one.accuracy, one.rows) for one in bins])
            for who, colour, bins in ((baseline, 1, found.base), ("adapter", 0, found.adapter))
            if bins
        ]
        drawn.append((names(cells)[id(cell)], plots.reliability(curves, title="Reliability")))
    return drawn


def _error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error (Naeini et al. 2015) over bins."""
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / rows if rows else 0.0


# --- risks -----------------------------------------------------------------------------------------------------------


def robustness(cells: Sequence[CellRecords]) -> Drawn:
    """For each change of the rows, what every adapter loses."""
    called = names(cells)
    kinds: dict[str, list[plots.Effect]] = {}
    metric = "the metric"
    for cell in cells:
        for one in cell.security.robustness if cell.security else ():
            metric = one.metric
            drop = one.drop
            shown = f"{drop.value:+.3f}{bounds(drop.low, drop.high)}"
            good = verdict(drop.low, drop.high, higher_is_better=False)
            effect = plots.Effect(called[id(cell)], drop.value, good, shown, drop.low, drop.high)
            kinds.setdefault(one.name, []).append(effect)
    return [
        (name, plots.forest(effects, title=f"What {name} cost", axis=f"loss of {metric}"))
        for name, effects in kinds.items()
    ]


def membership(cells: Sequence[CellRecords], nouns: str = "texts") -> str | None:
    """The strongest membership inference of each cell, beside what the texts alone give away, or what the rows are."""
    effects = []
    for cell in cells:
        found = cell.security.membership if cell.security else None
        if found is None or not found.attacks:
            continue
        worst, blind = max(found.attacks, key=lambda attack: attack.auc.value), found.blind.auc
        value = worst.auc
        shown = f"{value.value:.3f} by {worst.name}; {nouns} alone {blind.value:.3f}"
        effects.append(
            plots.Effect(
                names(cells)[id(cell)], value.value, "worse" if found.leaks else "better", shown, value.low, value.high,
                (blind.value, blind.low, blind.high),
            )
        )  # fmt: skip
    if not effects:
        return None
    return plots.forest(
        effects, title="Membership inference", axis="area under the curve", reference=CHANCE, wide=380.0
    )


def drift(cells: Sequence[CellRecords]) -> str | None:
    """The divergence of every way to serve the adapters, on a logarithmic axis with the limit."""
    dots, limit, measure, numbers = [], 0.0, "", False
    for cell in cells:
        if cell.drift is None:
            continue
        limit, measure, numbers = cell.drift.limit, cell.drift.measure, cell.drift.limit_spreads is not None
        for one in cell.drift.variants:
            refused = one.name in cell.drift.refused
            state = "worse" if refused else "better"
            shown = f"{one.apart:.2g} {'spreads' if numbers else 'nats'}{', refused' if refused else ''}"
            dots.append(plots.Line(f"{names(cells)[id(cell)]}: {one.name}", one.apart, state, shown))
    if not dots:
        return None
    return plots.log_dots(
        dots,
        limit=limit,
        lowest=LOWEST_SPREADS if numbers else LOWEST_KL,
        title="Merge drift",
        axis=measure,
    )


# --- training and machine --------------------------------------------------------------------------------------------


def losses(cells: Sequence[CellRecords]) -> Drawn:
    """Loss curves."""
    called = names(cells)
    return [
        (called[id(cell)], svg.loss_chart([step.model_dump() for step in cell.steps], small=True))
        for cell in cells
        if cell.steps
    ]


def memory(cells: Sequence[CellRecords]) -> Drawn:
    """Peak memory of each phase, predicted and measured, all cells on one scale."""
    every = [
        value or 0
        for cell in cells
        for found in cell.report.memory.values()
        for value in (found.predicted_peak_bytes, found.measured_peak_bytes)
    ]
    drawn = []
    for cell in cells:
        groups = []
        for phase in in_order(cell.report.memory):
            found = cell.report.memory[phase]
            pair = ((found.predicted_peak_bytes, PREDICTED), (found.measured_peak_bytes, MEASURED))
            groups.append((phase, [plots.Bar(float(v or 0), show_bytes(v), colour) for v, colour in pair]))
        if groups:
            legend = (("predicted", PREDICTED), ("measured", MEASURED))
            plot = plots.bars(groups, legend, title="Peak memory by phase", most=float(max(every)), wide=160.0)
            drawn.append((names(cells)[id(cell)], plot))
    return drawn


def time(cells: Sequence[CellRecords]) -> str | None:
    """Seconds of loading, training and evaluating."""
    legend = (("load", "var(--c4)"), ("train", MEASURED), ("train, predicted", PREDICTED), ("evaluate", "var(--c2)"))
    groups = []
    for cell in cells:
        if cell.train is None:
            continue
        spent = {"load": cell.train.load_seconds, "train": cell.train.seconds}
        if cell.train.predicted_seconds is not None:
            spent["train, predicted"] = cell.train.predicted_seconds
        if cell.evaluation:
            spent["evaluate"] = cell.evaluation.seconds
        group = [plots.Bar(spent[name], show_seconds(spent[name]), colour) for name, colour in legend if name in spent]
        groups.append((names(cells)[id(cell)], group))
    return plots.bars(groups, legend, title="Time by stage", wide=190.0) if groups else None


def speed(cells: Sequence[CellRecords], unit: str = "tokens") -> str | None:
    """Tokens a second of training and evaluation, or what the rows are measured by."""
    short = "tok" if unit == "tokens" else unit
    colours = {"training": "var(--c0)", "evaluation": "var(--c2)"}
    groups = []
    for cell in cells:
        if cell.train is None:
            continue
        speeds = {"training": cell.train.tokens_per_second}
        if cell.evaluation and cell.evaluation.tokens_per_second:
            speeds["evaluation"] = cell.evaluation.tokens_per_second
        group = [plots.Bar(value, f"{value:,.0f} {short}/s", colours[name]) for name, value in speeds.items()]
        groups.append((names(cells)[id(cell)], group))
    return (
        plots.bars(groups, tuple(colours.items()), title=f"{unit.capitalize()} a second", wide=190.0)
        if groups
        else None
    )


def latency(cells: Sequence[CellRecords]) -> str | None:
    """Time for one row alone, of base and adapter."""
    legend = (("base, median", "var(--pale)"), ("adapter, median", "var(--c0)"), ("slowest 5 %", "var(--c1)"))
    groups = []
    for cell in cells:
        found = cell.evaluation.efficiency if cell.evaluation else None
        if found is None:
            continue
        values = (found.base_latency_p50_seconds, found.latency_p50_seconds, found.latency_p95_seconds)
        group = [
            plots.Bar(value, show_latency(value), colour) for value, (_, colour) in zip(values, legend, strict=True)
        ]
        groups.append((names(cells)[id(cell)], group))
    return plots.bars(groups, legend, title="Latency of one row", wide=190.0) if groups else None
