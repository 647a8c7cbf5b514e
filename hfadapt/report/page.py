"""report.html: the matrix of a run as one page that needs nothing else, no script, font or image from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from hfadapt.core import resources
from hfadapt.core.show import Block, as_html, show_bytes, show_seconds
from hfadapt.core.spec import write_text
from hfadapt.records.evidence import TransferRecord, bounds
from hfadapt.records.report import CellReport, Report, not_scored, shown_metric
from hfadapt.report import charts, pictures, svg, tables
from hfadapt.report.charts import CellRecords
from hfadapt.report.run_view import added_blocks, modality_of, seen
from hfadapt.run_folder import Run

WIDTH = re.compile(r'<svg [^>]*? width="([\d.]+)"')
CORE = ("torch", "transformers", "peft")


def write_page(run: Run, report: Report) -> Path:
    """Writes report.html into the run's folder and returns its path.

    Args:
        report: As in report.json; everything else is read from the records of the run and its cells.
    """
    path = run.folder / "report.html"
    cells = [seen(run, cell) for cell in report.cells]
    write_text(path, page(report, cells, run.transfer, added_blocks(run, report)))
    return path


def page(
    report: Report, cells: Sequence[CellRecords], transfer: TransferRecord | None = None, added: Sequence[Block] = ()
) -> str:
    """The whole page as HTML.

    Args:
        added: What stages beside the usual ones have to show.
    """
    environment = resources.templates(Path(__file__).with_name("templates"), html=True)
    # How wide a chart was drawn, for the style of the page.
    environment.filters["svg"] = lambda drawn: Markup(WIDTH.sub(r'\g<0> style="--wide:\1px"', drawn or "", count=1))
    first, kind = charts.leading(cells), modality_of(report)
    evaluated = next((cell.evaluation for cell in cells if cell.evaluation), None)
    return environment.get_template("report.html.j2").render(
        report=report,
        kind=kind,
        chart_style=Markup(svg.STYLE),
        tiles=_tiles(report, cells),
        metric=first.name if first else "",
        direction="Higher" if first is None or first.higher_is_better else "Lower",
        several=len({cell.report.target for cell in cells}) > 1,
        confidence=f"{evaluated.confidence:.0%}".replace("%", " %") if evaluated else "",
        baseline=next((cell.report.baseline for cell in cells if cell.report.baseline), "baseline"),
        cells=[_row(cell.report) for cell in cells],
        unscored=not_scored(report),
        matrix=charts.matrix(cells),
        gains=charts.gains(cells),
        recall=charts.recall(cells),
        cross=charts.cross_domain(transfer),
        skipped=[(pair.name, pair.reason) for one in (transfer.targets if transfer else ()) for pair in one.skipped],
        slices=charts.slices(cells),
        calibration=charts.calibration(cells),
        robustness=charts.robustness(cells),
        membership=charts.membership(cells, kind.nouns),
        leaks=tables.leak_table([cell.security for cell in cells if cell.security], kind.nouns),
        drift=charts.drift(cells),
        drifts=_drifts(cells),
        added=Markup(as_html(added)),
        learned=[(name, Markup(as_html(blocks))) for name, blocks in pictures.learned(cells)],
        errors=[(name, Markup(as_html(blocks))) for name, blocks in pictures.errors(cells)],
        losses=charts.losses(cells),
        memory=charts.memory(cells),
        time=charts.time(cells),
        speed=charts.speed(cells, kind.unit),
        latency=charts.latency(cells),
        missing=_missing(cells, transfer),
        made=_made(cells),
    )


def _tiles(report: Report, cells: Sequence[CellRecords]) -> list[dict[str, str]]:
    done = sum(cell.status == "done" for cell in report.cells)
    leading = [cell.metrics[0] for cell in report.cells if cell.metrics]
    better = sum(metric.verdict == "better" for metric in leading)
    worse = sum(metric.verdict == "worse" for metric in leading)
    others = len(report.cells) - done
    tiles = [
        {
            "name": "cells done",
            "value": f"{done} of {len(report.cells)}",
            "note": f"{others} not done" if others else "all of the run",
        },
        {
            "name": "better than baseline",
            "value": f"{better} of {len(leading)}" if leading else "none yet",
            "note": f"beyond chance, {worse} worse" if leading else "not evaluated",
            "state": "better" if leading and better == len(leading) else "worse" if worse else "",
        },
    ]
    tiles += _risk_tiles(cells)
    seconds = [cell.seconds for cell in report.cells if cell.seconds is not None]
    peaks = [m.measured_peak_bytes for cell in report.cells for m in cell.memory.values() if m.measured_peak_bytes]
    sizes = [cell.adapter_bytes for cell in report.cells if cell.adapter_bytes is not None]
    if seconds:
        tiles.append({"name": "time", "value": show_seconds(sum(seconds)), "note": "all stages of all cells"})
    if peaks:
        tiles.append({"name": "peak memory", "value": show_bytes(max(peaks)), "note": "highest measured"})
    if sizes:
        tiles.append({"name": "adapter size", "value": show_bytes(max(sizes)), "note": "the largest"})
    return tiles


def _risk_tiles(cells: Sequence[CellRecords]) -> list[dict[str, str]]:
    tiles = []
    members = [cell.security.membership for cell in cells if cell.security and cell.security.membership]
    if members:
        leaking = sum(found.leaks for found in members)
        tiles.append(
            {
                "name": "adapters that leak",
                "value": f"{leaking} of {len(members)}",
                "note": "membership inference",
                "state": "worse" if leaking else "better",
            }
        )
    drifts = [cell.drift for cell in cells if cell.drift]
    if drifts:
        refused = sum(len(found.refused) for found in drifts)
        tiles.append(
            {
                "name": "forms refused",
                "value": f"{refused} of {sum(len(found.variants) for found in drifts)}",
                "note": "merged, other precision",
                "state": "worse" if refused else "better",
            }
        )
    return tiles


def _row(cell: CellReport) -> dict[str, Any]:
    return {
        "domain": f"{cell.domain} (base: {cell.model})" if cell.model else cell.domain,
        "target": cell.target,
        "status": cell.status,
        "error": cell.error,
        "metrics": [shown_metric(metric) for metric in cell.metrics],
        "seconds": show_seconds(cell.seconds) if cell.seconds is not None else "",
        "size": show_bytes(cell.adapter_bytes) if cell.adapter_bytes is not None else "",
        "card": quote(f"{cell.domain}/{cell.target}/README.md") if cell.card else None,
    }


def _drifts(cells: Sequence[CellRecords]) -> list[dict[str, Any]]:
    """Lines of the table of merge drift."""
    called = charts.names(cells)
    return [
        {
            "cell": called[id(cell)] if number == 0 else "",
            "name": variant.name,
            "apart": f"{variant.apart:.2g}",
            "measure": cell.drift.measure,
            "logit": f"{variant.max_logit_difference:.2g}",
            "metric": variant.metric,
            "delta": f"{variant.delta:+.3f}{bounds(variant.low, variant.high)}",
            "refused": cell.drift.refused.get(variant.name),
        }
        for cell in cells
        if cell.drift
        for number, variant in enumerate(cell.drift.variants)
    ]


def _missing(cells: Sequence[CellRecords], transfer: TransferRecord | None) -> list[tuple[str, str]]:
    """What no cell of the run has measured, and what measures it."""
    evaluated = [cell for cell in cells if cell.evaluation]
    if not evaluated:
        return []
    asked = "hfadapt evaluate RECIPE evaluate.{}=true"
    found = [
        ("leaks and robustness", asked.format("security"), any(cell.security for cell in cells)),
        ("merging, and bases in other precision", asked.format("drift"), any(cell.drift for cell in cells)),
        ("other domains", "hfadapt run RECIPE evaluate.transfer=true", transfer is not None),
    ]
    domains = {cell.report.domain for cell in cells}
    return [(what, how) for what, how, there in found if not there and (what != "other domains" or len(domains) > 1)]


def _made(cells: Sequence[CellRecords]) -> str:
    """Software and machine of the first trained cell."""
    train = next((cell.train for cell in cells if cell.train), None)
    if train is None:
        return "hfadapt"
    versions = train.versions
    packages = [f"{name} {versions.packages[name]}" for name in CORE if name in versions.packages]
    made = ", ".join([f"hfadapt {versions.hfadapt}", *packages])
    return f"{made}; {versions.processor}, {versions.platform}, trained on {versions.device}"
