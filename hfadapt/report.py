"""report.html: the matrix of a run as one page that needs nothing else, no script, font or image from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from hfadapt import resources, svg
from hfadapt.records import PHASES, CellReport, EvaluationRecord, Metric, Report, Step, TrainRecord, show_gain
from hfadapt.run_folder import Run
from hfadapt.show import show_bytes, show_number, show_seconds
from hfadapt.spec import write_text

PREDICTED, MEASURED = "var(--pale)", "var(--c0)"
CORE = ("torch", "transformers", "peft")
STAGES = (("load", "var(--c4)"), ("train", "var(--c0)"), ("train, predicted", PREDICTED), ("evaluate", "var(--c2)"))


@dataclass(frozen=True)
class Seen:
    """One cell with those of its records that exist."""

    report: CellReport
    train: TrainRecord | None
    evaluation: EvaluationRecord | None
    steps: Sequence[Step]

    @property
    def name(self) -> str:
        """Domain and target."""
        return f"{self.report.domain} · {self.report.target}"


def write_page(run: Run, report: Report) -> Path:
    """Writes report.html into the run's folder and returns its path.

    Args:
        report: As in report.json; loss curves and classes are read from the cells' records.
    """
    path = run.folder / "report.html"
    write_text(path, page(report, [_seen(run, cell) for cell in report.cells]))
    return path


def page(report: Report, cells: Sequence[Seen]) -> str:
    """The whole page as HTML."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    several = len({cell.report.target for cell in cells}) > 1
    names = {id(cell): cell.name if several else cell.report.domain for cell in cells}
    leading = next((cell.report.metrics[0] for cell in cells if cell.report.metrics), None)
    baseline = next((cell.report.baseline for cell in cells if cell.report.baseline), "baseline")
    evaluated = next((cell.evaluation for cell in cells if cell.evaluation), None)
    return environment.from_string(resources.template("report.html.j2")).render(
        report=report,
        chart_style=Markup(svg.STYLE),
        tiles=_tiles(report, cells),
        metric=leading.name if leading else "",
        direction="Higher" if leading is None or leading.higher_is_better else "Lower",
        heat=_heat(cells, leading, baseline),
        several=several,
        forests=_forests(cells, names),
        confidence=f"{evaluated.confidence:.0%}".replace("%", " %") if evaluated else "",
        baseline=baseline,
        cells=[_row(cell.report) for cell in cells],
        recall=_recall(cells, names),
        losses=[
            (
                names[id(cell)],
                Markup(svg.loss_chart([step.model_dump() for step in cell.steps], small=True)),
            )
            for cell in cells
            if cell.steps
        ],
        memory=_memory(cells, names),
        time=_time(cells, names),
        speed=_speed(cells, names),
        made=_made(cells),
    )


def _seen(run: Run, report: CellReport) -> Seen:
    cell = run.cell(report.domain, report.target)
    has = {name: (cell.folder / name).exists() for name in ("train.json", "evaluation.json")}
    return Seen(
        report,
        cell.train if has["train.json"] else None,
        cell.evaluation if has["evaluation.json"] else None,
        cell.steps(),
    )


def verdict(metric: Metric) -> str:
    """`better`, `worse`, or `open` where the interval of the difference holds zero or is unknown."""
    if metric.low is None or metric.high is None or metric.low <= 0 <= metric.high:
        return "open"
    return "better" if (metric.low > 0) == metric.higher_is_better else "worse"


def _tiles(report: Report, cells: Sequence[Seen]) -> list[dict[str, str]]:
    done = sum(cell.status == "done" for cell in report.cells)
    leading = [cell.metrics[0] for cell in report.cells if cell.metrics]
    better = sum(verdict(metric) == "better" for metric in leading)
    worse = sum(verdict(metric) == "worse" for metric in leading)
    peaks = [m.measured_peak_bytes for cell in report.cells for m in cell.memory.values() if m.measured_peak_bytes]
    seconds = [cell.seconds for cell in report.cells if cell.seconds is not None]
    sizes = [cell.adapter_bytes for cell in report.cells if cell.adapter_bytes is not None]
    others = len(report.cells) - done
    tiles = [
        {
            "name": "cells done",
            "value": f"{done} of {len(report.cells)}",
            "note": f"{others} not done" if others else "all of the run",
        },
        {
            "name": "gain above chance",
            "value": f"{better} of {len(leading)}" if leading else "none yet",
            "note": f"{worse} worse than the baseline" if leading else "not evaluated",
        },
    ]
    if seconds:
        tiles.append(
            {"name": "time of all cells", "value": show_seconds(sum(seconds)), "note": "load, train, evaluate"}
        )
    if peaks:
        tiles.append({"name": "highest peak memory", "value": show_bytes(max(peaks)), "note": "measured"})
    if sizes:
        tiles.append({"name": "size of an adapter", "value": show_bytes(max(sizes)), "note": "the largest"})
    return tiles


def _row(cell: CellReport) -> dict[str, Any]:
    return {
        "domain": cell.domain,
        "target": cell.target,
        "status": cell.status,
        "error": cell.error,
        "metrics": [
            {
                "name": metric.name,
                "base": show_number(metric.base) if metric.base is not None else "",
                "adapter": show_number(metric.adapter),
                "gain": show_gain(metric),
                "verdict": verdict(metric),
                "rows": f"{metric.rows:,}",
            }
            for metric in cell.metrics
        ],
        "seconds": show_seconds(cell.seconds) if cell.seconds is not None else "",
        "size": show_bytes(cell.adapter_bytes) if cell.adapter_bytes is not None else "",
        "card": quote(f"{cell.domain}/{cell.target}/README.md") if cell.card else None,
    }


def _heat(cells: Sequence[Seen], leading: Metric | None, baseline: str) -> Markup | None:
    """The leading metric: domains by baseline and adapter; with several targets, domains by targets."""
    if leading is None:
        return None
    targets = list(dict.fromkeys(cell.report.target for cell in cells))
    values, notes = {}, {}
    for cell in cells:
        metric = next((metric for metric in cell.report.metrics if metric.name == leading.name), None)
        if metric is None:
            continue
        column = "adapter" if len(targets) == 1 else cell.report.target
        values[cell.report.domain, column] = metric.adapter
        if metric.base is not None and len(targets) == 1:
            values[cell.report.domain, baseline] = metric.base
        if metric.base is not None and metric.delta is not None:
            gain = f"{metric.delta:+.3f}"
            notes[cell.report.domain, column] = gain if len(targets) == 1 else f"{metric.base:.3f} {gain}"
    return Markup(
        svg.heat_map(
            list(dict.fromkeys(cell.report.domain for cell in cells)),
            [baseline, "adapter"] if len(targets) == 1 else targets,
            values,
            title=f"{leading.name} of baseline and adapter",
            show=show_number,
            notes=notes,
            higher_is_better=leading.higher_is_better,
        )
    )


def _forests(cells: Sequence[Seen], names: Mapping[int, str]) -> list[tuple[str, Markup]]:
    kinds: dict[str, list[svg.Effect]] = {}
    for cell in cells:
        for metric in cell.report.metrics:
            if metric.delta is None:
                continue
            state = verdict(metric)
            better = None if state == "open" else state == "better"
            effect = svg.Effect(names[id(cell)], metric.delta, metric.low, metric.high, better, show_gain(metric))
            kinds.setdefault(metric.name, []).append(effect)
    return [
        (
            name,
            Markup(svg.forest(effects, title=f"Difference in {name}", axis=f"adapter − baseline, {name}")),
        )
        for name, effects in kinds.items()
    ]


def _recall(cells: Sequence[Seen], names: Mapping[int, str]) -> Markup | None:
    values, notes = {}, {}
    for cell in cells:
        for label, found in (cell.evaluation.per_class if cell.evaluation else {}).items():
            key = (names[id(cell)], label)
            values[key], notes[key] = found["adapter"], f"from {found['base']:.2f}"
    columns = list(dict.fromkeys(label for _, label in values))
    if not columns or len(columns) > 12:
        return None
    rows = list(dict.fromkeys(row for row, _ in values))
    return Markup(svg.heat_map(rows, columns, values, title="Recall by class", show=lambda v: f"{v:.2f}", notes=notes))


def _memory(cells: Sequence[Seen], names: Mapping[int, str]) -> Markup | None:
    groups = []
    for cell in cells:
        for phase in PHASES:
            if phase not in cell.report.memory:
                continue
            found = cell.report.memory[phase]
            pair = ((found.predicted_peak_bytes, PREDICTED), (found.measured_peak_bytes, MEASURED))
            group = [svg.Bar(float(value or 0), show_bytes(value), colour) for value, colour in pair]
            groups.append((f"{names[id(cell)]}, {phase}", group))
    if not groups:
        return None
    legend = (("predicted", PREDICTED), ("measured", MEASURED))
    return Markup(svg.bars(groups, legend, title="Peak memory by phase"))


def _time(cells: Sequence[Seen], names: Mapping[int, str]) -> Markup | None:
    groups = []
    for cell in cells:
        if cell.train is None:
            continue
        spent = {"load": cell.train.load_seconds, "train": cell.train.seconds}
        if cell.train.predicted_seconds is not None:
            spent["train, predicted"] = cell.train.predicted_seconds
        if cell.evaluation:
            spent["evaluate"] = cell.evaluation.seconds
        group = [svg.Bar(spent[name], show_seconds(spent[name]), colour) for name, colour in STAGES if name in spent]
        groups.append((names[id(cell)], group))
    return Markup(svg.bars(groups, STAGES, title="Time by stage")) if groups else None


def _speed(cells: Sequence[Seen], names: Mapping[int, str]) -> Markup | str:
    colours = {"training": "var(--c0)", "evaluation": "var(--c2)"}
    groups = []
    for cell in cells:
        if cell.train is None:
            continue
        speeds = {"training": cell.train.tokens_per_second}
        if cell.evaluation and cell.evaluation.tokens_per_second:
            speeds["evaluation"] = cell.evaluation.tokens_per_second
        group = [svg.Bar(value, f"{value:,.0f} tok/s", colours[name]) for name, value in speeds.items()]
        groups.append((names[id(cell)], group))
    return Markup(svg.bars(groups, tuple(colours.items()), title="Tokens a second")) if groups else ""


def _made(cells: Sequence[Seen]) -> str:
    """Software and machine of the first trained cell."""
    train = next((cell.train for cell in cells if cell.train), None)
    if train is None:
        return "hfadapt"
    versions = train.versions
    packages = [f"{name} {versions.packages[name]}" for name in CORE if name in versions.packages]
    made = ", ".join([f"hfadapt {versions.hfadapt}", *packages])
    return f"{made}; {versions.processor}, {versions.platform}, trained on {versions.device}"
