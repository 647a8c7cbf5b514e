"""A run as it shows itself: its report, tables of the evidence, and charts where they can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RunError
from hfadapt.core.show import Block, Picture, Sheet, Shown, as_markdown
from hfadapt.core.spec import write_text
from hfadapt.modalities import Modality
from hfadapt.records.report import CellReport, Report
from hfadapt.records.stages import DataRecord, EvaluationRecord, TrainRecord
from hfadapt.report import charts, pictures
from hfadapt.report.svg import alone
from hfadapt.report.tables import drift_blocks, leak_blocks
from hfadapt.run_folder import Run as RunFolder


@dataclass(frozen=True)
class Run(RunFolder, Shown):
    """A run folder; `str(run)` and a notebook show its report.

    A cell that fails stops no other, so `hfadapt.run` returns then, too: `failed` names it, and `raise_for_failures`
    stops a program there.

    Example:
        >>> from hfadapt import Run
        >>> print(Run("runs/sentiment"))
        sentiment: ...
        >>> Run("runs/sentiment").failed
        ()
    """

    @property
    def failed(self) -> tuple[CellReport, ...]:
        """The cells of the report that failed or do not fit, each with its `error`; none where all is well."""
        return self.report.failed

    def raise_for_failures(self) -> Self:
        """The run itself, so that it can follow `run(recipe)`.

        Raises:
            RunError: cells failed; names each with what happened.

        Example:
            >>> from hfadapt import load_recipe, run
            >>> run(load_recipe("sentiment.yaml")).raise_for_failures().failed
            ()
        """
        again = f"see what happened, and run the recipe again: finished cells of {self.folder} are kept"
        problems = [
            Problem(cell.error or cell.status, place=f"{cell.domain} on {cell.target}", fix=again)
            for cell in self.failed
        ]
        if problems:
            raise RunError(problems[0].what, problems=problems)
        return self

    def blocks(self) -> list[Block]:
        """The report's, with tables of the evidence and, where they can be shown, the charts."""
        report = self.report
        cells = [seen(self, cell) for cell in report.cells]
        shown, last = report.blocks(), bool(report.next_commands)
        drawn = [("Baseline and adapter", charts.matrix(cells))]
        drawn += [("Every adapter on every domain", plot) for _, plot in charts.cross_domain(self.transfer)]
        drawn += [(f"Loss: {name}", plot) for name, plot in charts.losses(cells)]
        plots = [Picture(title, alone(plot)) for title, plot in drawn if plot]
        files = [block for _, blocks in (*pictures.learned(cells), *pictures.errors(cells)) for block in blocks]
        sheets = [block for block in files if isinstance(block, Sheet)]
        evidence = [
            *drift_blocks([cell.drift for cell in cells if cell.drift]),
            *leak_blocks([cell.security for cell in cells if cell.security], modality_of(report).nouns),
            *added_blocks(self, report),
        ]
        end = len(shown) - last
        return [*shown[:end], *evidence, *plots, *sheets, *shown[end:]]

    def write_report(self, report: Report) -> None:
        """report.json and report.md."""
        report.write(self.folder / Report.FILE)
        write_text(self.folder / "report.md", as_markdown(self.blocks()))


def modality_of(report: Report) -> Modality:
    """What the rows of a run are made of."""
    return registry.modality_of(report.task)


def added_blocks(run: RunFolder, report: Report) -> list[Block]:
    """What other stages have to say about cells that have their records."""
    shown = []
    for stage in registry.stages():
        cells = [run.cell(cell.domain, cell.target) for cell in report.cells]
        shown += stage.report([cell for cell in cells if all(cell.holds(kind) for kind in stage.records)])
    return shown


def seen(run: RunFolder, report: CellReport) -> charts.CellRecords:
    """A cell of a report with those of its records that exist."""
    cell = run.cell(report.domain, report.target)
    try:
        records = (cell.maybe(TrainRecord), cell.maybe(EvaluationRecord), cell.steps(), cell.security, cell.drift)
        return charts.CellRecords(report, *records, cell.maybe(DataRecord), cell.folder)
    except RunError:
        # The report says which record cannot be read.
        return charts.CellRecords(report)
