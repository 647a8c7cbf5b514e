"""The report of a run: report.json, report.md and report.html from the records of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.sources import near_model, placed_model
from hfadapt.records.published import DeviceRecord
from hfadapt.records.report import Report
from hfadapt.report.page import write_page
from hfadapt.report.run_view import Run
from hfadapt.run_folder import Cell


def write_report(run: Run, recipe: Recipe) -> Report:
    """Writes the report of all cells of the run, those of this recipe first; changes nothing else."""
    asked = [run.cell(domain, target) for domain, target in recipe.cells()]
    others = [cell for cell in run.cells() if cell.folder not in {other.folder for other in asked}]
    if (last := earlier(run)) is not None:
        before = [(cell.domain, cell.target) for cell in last.cells]
        others.sort(
            key=lambda cell: before.index(name) if (name := (cell.domain, cell.target)) in before else len(before)
        )
    cells = [cell for cell in [*asked, *others] if cell.folder.exists()]
    strange = {cell.folder: other_base(cell, recipe) for cell in others}
    report = Report(
        recipe=recipe.name,
        model=recipe.model,
        task=recipe.task,
        cells=tuple(cell.report().model_copy(update={"model": strange.get(cell.folder)}) for cell in cells),
        transfer=transfer.targets if (transfer := run.transfer) else (),
        next_commands=next_commands(cells),
    )
    run.write_report(report)
    write_page(run, report)
    return report


def earlier(run: Run) -> Report | None:
    """The report that is there; None where there is none, or one that a crash cut off: it is made from the records."""
    try:
        return run.report
    except RunError:
        return None


def other_base(cell: Cell, recipe: Recipe) -> str | None:
    """What a cell was made from, where that is not the recipe's: of another recipe that has the same name."""
    if not cell.planned:
        return None
    lock = cell.lock
    if lock.task == recipe.task and placed_model(lock.model) == placed_model(recipe.model):
        return None
    model = near_model(lock.model)
    return model if lock.task == recipe.task else f"{model}, {lock.task}"


def next_commands(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What to type next."""
    done = [cell for cell in cells if cell.state.status == "done" and cell.planned]
    if not done:
        return ()
    best = done[0]
    task = registry.task(best.lock.task)
    example = '"prompt"' if task.pipeline_tag == "text-generation" else registry.modality(task.modality).argument
    # What is published needs a licence, which nobody but the owner of the data can say.
    licensed = all(source.license for source in best.data.sources)
    devices = ((cell, cell.read(DeviceRecord)) for cell in done if cell.has(DeviceRecord))
    exported = next((quote(str(cell.folder / record.folder)) for cell, record in devices if record.folder), "")
    return (
        f"hfadapt predict {quote(str(best.folder))} {example}",
        *([f"hfadapt predict {exported} {example}", f"hfadapt bench {exported}"] if exported else ()),
        f"hfadapt publish {quote(str(best.folder))} --repo USER/NAME{'' if licensed else ' --license ID'}",
    )
