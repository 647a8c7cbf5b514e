"""The report of a run: report.json, report.md and report.html from the records of its cells."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.core import registry
from hfadapt.recipe.schema import Recipe
from hfadapt.records.report import Report
from hfadapt.report.page import write_page
from hfadapt.report.run_view import Run
from hfadapt.run_folder import Cell


def write_report(run: Run, recipe: Recipe) -> Report:
    """Writes the report of all cells of the run, those of this recipe first; changes nothing else."""
    asked = [run.cell(domain, target) for domain, target in recipe.cells()]
    others = [cell for cell in run.cells() if cell.folder not in {other.folder for other in asked}]
    if (run.folder / Report.FILE).exists():
        before = [(cell.domain, cell.target) for cell in run.report.cells]
        others.sort(
            key=lambda cell: before.index(name) if (name := (cell.domain, cell.target)) in before else len(before)
        )
    cells = [cell for cell in [*asked, *others] if cell.folder.exists()]
    report = Report(
        recipe=recipe.name,
        model=recipe.model,
        task=recipe.task,
        cells=tuple(cell.report() for cell in cells),
        transfer=transfer.targets if (transfer := run.transfer) else (),
        next_commands=next_commands(cells),
    )
    run.write_report(report)
    write_page(run, report)
    return report


def next_commands(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What to type next."""
    done = [cell for cell in cells if cell.state.status == "done"]
    if not done:
        return ()
    best = done[0]
    example = '"text"' if registry.task(best.lock.task).pipeline_tag != "text-generation" else '"prompt"'
    return (
        f"hfadapt predict {best.folder} {example}",
        f"hfadapt publish {best.folder} --repo USER/NAME",
    )
