"""What the pages show, from the records of a run folder: nothing is computed here that a record or a command knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RequestError
from hfadapt.core.show import Block, Heading, Sheet, Table, Tile, as_html, show_bytes, show_seconds
from hfadapt.data import pictures
from hfadapt.files.places import Place
from hfadapt.formats import require_packages
from hfadapt.hardware import catalogue
from hfadapt.plan.make import make_plan
from hfadapt.recipe.schema import Recipe
from hfadapt.records.plan import Plan
from hfadapt.records.report import shown_metric
from hfadapt.records.stages import EvaluationRecord, TrainRecord
from hfadapt.report.run_view import Run
from hfadapt.report.svg import loss_chart
from hfadapt.run_folder import PREDICTIONS, STATE, Cell, read_rows
from hfadapt.ui.live import State

MOST_ROWS = 200
"""Test rows to pick from."""
SHORT, LONG = 90, 1200
"""Characters of a row in a list, and where it is shown."""
SIDE = 128


# --- which runs there are --------------------------------------------------------------------------------------------


def runs_of(folder: Path) -> dict[str, Run]:
    """The runs of a folder by name."""
    paths = sorted({path.parents[2] for path in folder.glob(f"*/*/*/{STATE}")})
    return {path.name: Run(path) for path in paths if not path.name.startswith(".")}


def found_run(folder: Path, name: str) -> Run:
    """A run by its name, which never leads out of the folder. Raises RequestError where there is none."""
    run = runs_of(folder).get(name)
    if run is None:
        raise Missing("there is no such run", place=str(folder), got=name, fix="choose one on the first page")
    return run


def found_cell(folder: Path, name: str, domain: str, target: str) -> Cell:
    """A cell by its names. Raises RequestError where there is none."""
    for cell in found_run(folder, name).cells():
        if (cell.domain, cell.target) == (domain, target):
            return cell
    raise Missing("the run has no such cell", place=name, got=f"{domain}/{target}", fix="choose one on the run's page")


class Missing(RequestError):
    """What is asked for is not there."""


def run_line(name: str, run: Run) -> dict[str, Any]:
    """A run in the list of runs."""
    cells = run.cells()
    locks = [cell.lock for cell in cells if cell.planned]
    done = sum(cell.state.status == "done" for cell in cells)
    return {
        "name": name,
        "task": locks[0].task if locks else "",
        "model": locks[0].model if locks else "",
        "done": f"{done} of {len(cells)}",
    }


# --- the matrix ------------------------------------------------------------------------------------------------------


def matrix(run: Run) -> list[dict[str, Any]]:
    """A line for each cell: metrics with their intervals, status, time and size."""
    found = []
    for cell in run.cells():
        report = cell.report()
        found.append(
            {
                "domain": cell.domain,
                "target": cell.target,
                "status": report.status,
                "error": report.error,
                "baseline": report.baseline or "baseline",
                "metrics": [
                    {
                        **shown_metric(metric),
                        "name": metric.name + ("" if metric.higher_is_better else " (lower is better)"),
                    }
                    for metric in report.metrics
                ],
                "seconds": show_seconds(report.seconds) if report.seconds is not None else "",
                "size": show_bytes(report.adapter_bytes) if report.adapter_bytes is not None else "",
                "trained": cell.has(TrainRecord),
            }
        )
    return found


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowView:
    """A test row as it is shown: its number, its text or picture, and what is right.

    Args:
        number: From 0, for addresses; a person is told `counted`.
        place: Where it is from.
        wrong: Whether predictions.parquet has another class of the adapter than the right one.
        answer: Where answers are written, the last of them.
    """

    number: int
    place: str
    text: str
    label: str
    tile: Tile | None = None
    wrong: bool = False
    answer: str = ""

    @property
    def counted(self) -> int:
        """Its number in the test split, from 1."""
        return self.number + 1

    @property
    def line(self) -> str:
        """The row in a list."""
        short = short_text(self.text, SHORT)
        return f"{self.counted}: {short} [{short_text(self.label, SHORT)}]" + (" (adapter wrong)" if self.wrong else "")


def short_text(text: str, most: int) -> str:
    """One line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def listed_rows(cell: Cell, numbers: Sequence[int] | None = None) -> list[RowView]:
    """The first test rows of a cell, or those of these numbers with their pictures.

    Raises:
        RequestError: there is no such row.
        RunError: the rows cannot be read.
    """
    rows, form = cell.read_split("test"), cell.data.form
    schema, wrong = registry.schema(form), _wrong(cell)
    wanted = list(range(min(len(rows), MOST_ROWS))) if numbers is None else list(numbers)
    if any(not 0 <= number < len(rows) for number in wanted):
        raise RequestError(
            "there is no such test row", got=str([number + 1 for number in wanted]), allowed=f"1 to {len(rows)}"
        )
    tiles: dict[int, Tile] = {}
    if schema.media and numbers is not None:
        shown = pictures.tiles(cell.folder, "test", form, {n: _label(schema, rows[n]) for n in wanted}, SIDE)
        tiles = dict(zip(wanted, shown, strict=False))
    return [
        RowView(
            number,
            str(Place.of(rows[number])),
            registry.modality(schema.modality).noun if schema.media else schema.shown(rows[number]),
            _label(schema, rows[number]),
            tiles.get(number),
            number in wrong,
            (schema.answers(rows[number]) or [""])[-1],
        )
        for number in wanted
    ]


def raw_row(cell: Cell, number: int) -> dict[str, Any]:
    """A test row as it was prepared. Raises RequestError where there is none."""
    rows = cell.read_split("test")
    if not 0 <= number < len(rows):
        raise RequestError("there is no such test row", got=str(number + 1), allowed=f"1 to {len(rows)}")
    return rows[number]


def _label(schema: Any, row: Mapping[str, Any]) -> str:
    return ", ".join(schema.classes(row)) or " ".join(schema.answers(row)) or (schema.label(row) or "")


def _wrong(cell: Cell) -> set[int]:
    """The test rows for which the evaluation has recorded another class than the right one."""
    path = cell.folder / PREDICTIONS
    rows = read_rows(path) if path.exists() else []
    # Numbers are ranks or estimates, which are never quite right.
    return {n for n, row in enumerate(rows) if isinstance(row.get("gold"), str) and row["gold"] != row["adapter"]}


def worst_errors(cell: Cell) -> list[dict[str, Any]]:
    """The test rows on which the adapter is wrong, the surest first, or the farthest off."""
    record = cell.maybe(EvaluationRecord)
    if record is None or not record.failures:
        return []
    views = {view.number: view for view in listed_rows(cell, [one.split_row for one in record.failures])}
    return [
        {
            "row": one.split_row,
            "counted": views[one.split_row].counted,
            "place": views[one.split_row].place,
            "text": short_text(views[one.split_row].text, LONG),
            "tile": views[one.split_row].tile,
            "gold": one.gold,
            "adapter": one.adapter,
            "base": one.base,
            "confidence": "" if one.confidence is None else f"{one.confidence:.0%}",
        }
        for one in record.failures
    ]


# --- plan and export -------------------------------------------------------------------------------------------------


def plan_for(cell: Cell, target: str) -> Plan:
    """The plan of a cell's recipe for another target: what the plan had answered is asked again.

    Raises:
        RequestError: no such target, or it cannot do what the recipe asks for.
    """
    catalogue.target(target)  # says what there is
    return make_plan(asked_recipe(cell).model_copy(update={"targets": (target,)}), data={cell.domain: cell.data})


def asked_recipe(cell: Cell) -> Recipe:
    """The recipe behind a lock: without what the plan has decided."""
    fields = cell.lock.model_dump(mode="json")
    fields.pop("base", None)
    for decision in cell.plan.cells[0].decisions:
        if decision.asked:
            continue
        *sections, last = decision.field.split(".")
        place = fields
        for section in sections:
            place = place[section]
        place.pop(last, None)
    return Recipe.model_validate(fields)


def formats_of(cell: Cell) -> list[tuple[str, str]]:
    """The formats by name, each with why this adapter cannot be written in it, or ''."""
    found = []
    for name in registry.names("formats"):
        kind = registry.format(name)
        try:
            require_packages(kind)
            found.append((name, kind.refusal(cell) or ""))
        except HfadaptError as error:
            found.append((name, error.what))
    return found


# --- HTML ------------------------------------------------------------------------------------------------------------


def framed(blocks: Sequence[Block]) -> Markup:
    """Blocks as HTML; tables and code scroll by themselves, also with the keyboard, where the window is narrow."""
    parts, name = [], "table"
    for block in blocks:
        html = Markup(as_html([block]))
        if isinstance(block, Heading):
            name = block.text
            # The page has a first heading.
            html = Markup("<h2>{}</h2>").format(block.text)
        elif not isinstance(block, Sheet) and (isinstance(block, Table) or getattr(block, "code", False)):
            html = Markup('<div class="scroll" tabindex="0" role="group" aria-label="{}">{}</div>').format(name, html)
        parts.append(html)
    return Markup("\n").join(parts)


def told(error: HfadaptError) -> Markup:
    """An error as the terminal has it."""
    return Markup("<pre>{}</pre>").format(str(error))


def loss_plots(state: State) -> list[tuple[str, Markup]]:
    """The curves of a run that goes on."""
    return [(cell, Markup(loss_chart(steps, small=True))) for cell, steps in state.steps.items() if steps]
