"""plan.json: the decisions, the predicted memory and the verdict of every cell, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hfadapt.core.show import Block, Heading, Table, Text, View, show_bytes, show_latency, show_seconds
from hfadapt.core.spec import Record, Spec
from hfadapt.records.search import named_try
from hfadapt.records.stages import Phase

PLANNED = (
    "data.augment",
    "data.max_length",
    "quant",
    "dtype",
    "train.micro_batch_rows",
    "train.checkpointing",
    "train.together",
    "train.shard",
)
"""Settings that data and target decide; the reasons for the others are the same for all plans of a task."""


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
    """Predicted peak of one phase on the training device, by part; `host_parts` are in main memory beside it."""

    phase: Phase
    parts: dict[str, int]
    host_parts: dict[str, int] = {}

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def host_bytes(self) -> int:
        """Main memory beside the device's own; 0 on a CPU, where `parts` are main memory."""
        return sum(self.host_parts.values())


class Alternative(Spec):
    """A nearby plan that would fit, and what it gives up."""

    changes: dict[str, Any]
    gives_up: str
    predicted_peak_bytes: int


class PlannedExport(Spec):
    """What a form of an export would be on a target that only serves, before there is anything to measure.

    Args:
        seconds: Of one answer; None where nobody has published what such a device does.
        verdict: `fits`, `may fit` where the estimate of time is too rough to tell, or why not.
        shrink: What would have to become smaller, where it does not fit.
    """

    format: str
    form: str
    bytes: int
    seconds: float | None
    verdict: str
    shrink: str = ""

    @property
    def fits(self) -> bool:
        """Whether it is worth training for."""
        return not self.shrink


class PlannedSearch(Spec):
    """The tries of a search, before the first of them.

    Args:
        tries: Settings by their place in the recipe.
        rungs: The steps after which tries are compared, and how many of them come so far.
        steps: What all tries but the one that goes on cost beside it, in steps; comparing them is part of it.
        seconds: The same in time; None where the target's speed is not known.
        together: Whether they are trained side by side on one base, or one after the other.
    """

    tries: tuple[dict[str, float], ...]
    rungs: tuple[tuple[int, int], ...]
    steps: int
    seconds: float | None
    together: bool


class CellPlan(Spec):
    """The plan of one domain on one target. `merge` does not count for `fits`: it can be done on another machine.

    `predicted_seconds` are those of training on the task, `pretrain_seconds` of the adaptation to texts before it and
    `student_seconds` of the smaller model's training at most; `disk` is the room in bytes that its parts take in the
    run folder at most, beside the rows."""

    domain: str
    target: str
    decisions: tuple[Decision, ...]
    memory: tuple[PhaseMemory, ...]
    merge: PhaseMemory | None = None
    budget_bytes: int
    margin: float
    disk: dict[str, int] = {}
    fits: bool
    trains_on: str
    predicted_seconds: float | None = None
    predicted_tokens_per_second: float | None = None
    pretrain_seconds: float | None = None
    student_seconds: float | None = None
    data_basis: str
    data_gaps: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    exports: tuple[PlannedExport, ...] = ()
    search: PlannedSearch | None = None
    warnings: tuple[str, ...] = ()

    def decision(self, field: str) -> Decision:
        """What was decided for a dotted field. Raises KeyError when the plan has no such field."""
        for decision in self.decisions:
            if decision.field == field:
                return decision
        raise KeyError(field)

    def value(self, field: str) -> Any:
        """The resolved value of a dotted field. Raises KeyError when the plan has no such field."""
        return self.decision(field).value

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs the most memory."""
        return max(self.memory, key=lambda phase: phase.total_bytes)

    @property
    def shortage(self) -> str:
        """Why the cell does not fit, in a line; '' where it does."""
        if self.fits:
            return ""
        if self.peak.total_bytes <= self.budget_bytes:
            return self.warnings[0]
        needed, usable = show_bytes(self.peak.total_bytes), show_bytes(self.budget_bytes)
        return f"does not fit: predicted peak {needed} in '{self.peak.phase}', {usable} usable"


class Plan(Record):
    """All cells of a recipe, resolved; `unit` is what rows are measured by.

    Example:
        >>> from hfadapt import load_recipe, make_plan
        >>> plan = make_plan(load_recipe("sentiment.yaml"))
        >>> plan.fits, plan.cells[0].value("train.batch_rows")
        (True, 8)
    """

    FILE: ClassVar[str] = "plan.json"
    recipe: str
    model: str
    parameters: int
    unit: str = "tokens"
    cells: tuple[CellPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every cell fits its target."""
        return all(cell.fits for cell in self.cells)

    def blocks(self, why: bool = False) -> list[Block]:
        """The verdict on every cell, what would fit instead, and what was decided; what cells share is shown once.

        Args:
            why: Every decision with its reason and what was rejected for it, and the predicted memory by part.
        """
        targets = {cell.target for cell in self.cells}
        where = f" on {self.cells[0].target}" if len(targets) == 1 else ""
        shown: list[Block] = [
            Heading(f"Plan of {self.recipe}{where}: {self.model}, {self.parameters / 1e6:,.1f} M parameters", 1),
            self._verdicts(),
            *self._alternatives(),
            *self._exports(),
            *self._searches(),
            self._notes(),
        ]
        if why:
            return [*shown, *self._explained(), *self._memory()]
        hint = "all reasons, memory by part, what was rejected: --why, in Python plan.why()"
        return [*shown, *self._decided(), Text(hint)]

    def why(self) -> View:
        """The plan with every reason, the predicted memory by part, and what was rejected."""
        return View(self.blocks(why=True))

    def _verdicts(self) -> Table:
        """A row for each cell; cells with the same figures share one."""
        groups = _alike(
            self.cells,
            lambda cell: (
                "fits" if cell.fits else "DOES NOT FIT",
                show_bytes(cell.peak.total_bytes),
                show_bytes(cell.budget_bytes),
                "unknown" if cell.predicted_seconds is None else _seconds(cell),
                "unknown" if cell.predicted_tokens_per_second is None else f"{cell.predicted_tokens_per_second:,.0f}",
            ),
        )
        figures = ["peak memory", "usable", "training time", f"{self.unit}/s"]
        rows = [[self._names(cells, whole=""), *figure] for figure, cells in groups]
        several = len({cell.target for cell in self.cells}) > 1
        return Table(["cells" if several else "domains", "verdict", *figures], rows, frozenset(figures))

    def _alternatives(self) -> list[Block]:
        """What would fit where a cell does not."""
        failing = [cell for cell in self.cells if cell.alternatives]
        return [
            Table(
                [f"{self._names(cells, whole='')} would fit with", "gives up", "peak"],
                [
                    [
                        "\n".join(f"{name}={_plain(value)}" for name, value in other.changes.items()),
                        other.gives_up,
                        show_bytes(other.predicted_peak_bytes),
                    ]
                    for other in cells[0].alternatives
                ],
                frozenset({"peak"}),
            )
            for _, cells in _alike(failing, lambda cell: cell.alternatives)
        ]

    def _exports(self) -> list[Block]:
        """What would leave for a target that only serves."""
        return [
            Table(
                [f"export for {self._names(cells, whole='') or cells[0].target}", "bytes", "latency, ×2", "estimated"],
                [
                    [
                        f"{each.format}, {each.form}",
                        show_bytes(each.bytes),
                        "not known" if each.seconds is None else show_latency(each.seconds),
                        "\n".join(filter(None, (each.verdict, each.shrink))),
                    ]
                    for each in exports
                ],
                frozenset({"bytes", "latency, ×2"}),
            )
            for exports, cells in _alike([cell for cell in self.cells if cell.exports], lambda cell: cell.exports)
        ]

    def _searches(self) -> list[Block]:
        """What is tried while training, how long, and at which cost."""
        shown: list[Block] = []
        searching = [cell for cell in self.cells if cell.search]
        # Of whatever speed: what differs by the length of rows alone is shown once.
        for search, cells in _alike(
            searching, lambda cell: cell.search and cell.search.model_copy(update={"seconds": 0})
        ):
            known = [each.search.seconds for each in cells if each.search and each.search.seconds is not None]
            times = list(dict.fromkeys(show_seconds(seconds) for seconds in (min(known), max(known)))) if known else []
            time = f", about {' to '.join(times)}{' for each domain' if len(cells) > 1 else ''}" if times else ""
            how = "side by side on one base" if search.together else "one after the other"
            halves = ", ".join(f"{count} for {steps:,} steps" for steps, count in search.rungs)
            tried = "\n".join(named_try(each) for each in search.tries)
            cost = f"{search.steps:,} further steps{time}, {how}; the best goes on"
            columns = ["tried", "how far", "cost"]
            if names := self._names(cells):
                shown.append(Text(f"for {names}:"))
            shown.append(Table(columns, [[tried, halves.replace(", ", "\n"), cost]]))
        return shown

    def _notes(self) -> Table:
        """What the verdicts rest on, and warnings."""
        margins = ", ".join(f"{margin:.0%}" for margin, _ in _alike(self.cells, lambda cell: cell.margin))
        rows = [["data", text] for text in self._named(lambda cell: [cell.data_basis])]
        rows += [["", text] for text in self._named(lambda cell: cell.data_gaps)]
        rows.append(["memory", f"usable leaves a margin of {margins} (memory_margin)"])
        rows += [["disk", text] for text in self._named(lambda cell: _disk(cell.disk))]
        rows.append(["time", "rough, for each domain; a run corrects it after its first steps"])
        rows += [["warning", text] for text in self._named(lambda cell: cell.warnings)]
        return Table(["", ""], rows)

    def _named(self, texts: Callable[[CellPlan], Sequence[str]]) -> list[str]:
        """Texts of cells, each once, with the cells that it holds for unless these are all."""
        found: dict[str, list[CellPlan]] = {}
        for cell in self.cells:
            for text in texts(cell):
                found.setdefault(text, []).append(cell)
        named = [(self._names(cells), text) for text, cells in found.items()]
        return [f"{name}: {text}" if name and not text.startswith(name) else text for name, text in named]

    def _decided(self) -> list[Block]:
        """What data and target decide, with reasons; then the other settings in the recipe's own words."""
        rows: list[list[str]] = []
        sections: dict[str, list[str]] = {"base": []}
        off: list[str] = []
        for field in self._fields():
            groups = self._decided_as(field, lambda decision: (decision.value, decision.asked))
            decision = groups[0][1][0].decision(field)
            if len(groups) > 1 or (field in PLANNED and not decision.asked):
                for (value, _), cells in groups:
                    reasons = list(dict.fromkeys(cell.decision(field).reason for cell in cells))
                    reason = reasons[0] if len(reasons) == 1 else "differs by cell: --why"
                    rows.append([field, _plain(value), self._names(cells), reason])
                continue
            section, _, name = field.rpartition(".") if field.count(".") < 2 else field.partition(".")
            written = f"{name}={_listed(decision.value)}" if decision.value else field
            place = sections.setdefault(section or "base", []) if decision.value else off
            place.append(written + "*" * decision.asked)
        shown: list[Block] = [_settings(rows)] if rows else []
        found = [[name, ", ".join(settings)] for name, settings in {**sections, "off": off}.items() if settings]
        asked = any("*" in settings for _, settings in found)
        return [*shown, Table(["section", "settings"], found), *([Text("* set in the recipe")] if asked else [])]

    def _explained(self) -> list[Block]:
        """Every decision with its reason, and below it what was rejected."""
        rows = []
        for field in self._fields():
            for _, cells in self._decided_as(field, lambda decision: decision):
                decision = cells[0].decision(field)
                rejected = [f"  not {_plain(other.value)}: {other.reason}" for other in decision.rejected]
                setting = f"{field}={_listed(decision.value)}"
                names = [f"  {self._names(cells)}"] if len(cells) < len(self.cells) else []
                rows.append(["\n".join([setting, *names]), "\n".join([decision.reason, *rejected])])
        return [Table(["setting", "why"], rows)]

    def _memory(self) -> list[Block]:
        """Parts by phase, for each group of cells with the same."""
        shown: list[Block] = []
        for _, cells in _alike(self.cells, lambda cell: (cell.memory, cell.merge)):
            shown += [Heading(f"Predicted memory: {self._names(cells, whole='every cell')}"), _memory_table(cells[0])]
        return shown

    def _fields(self) -> list[str]:
        """The dotted names of all decisions, in order."""
        return list(dict.fromkeys(decision.field for cell in self.cells for decision in cell.decisions))

    def _decided_as(self, field: str, key: Callable[[Decision], Any]) -> list[tuple[Any, list[CellPlan]]]:
        """The cells that have this field, by what was decided for it."""
        having = [cell for cell in self.cells if any(decision.field == field for decision in cell.decisions)]
        return _alike(having, lambda cell: key(cell.decision(field)))

    def _names(self, some: Sequence[CellPlan], whole: str | None = None) -> str:
        """What to call these cells: by domain, by target, or both; `whole` where they are all, '' to name them."""
        if len(some) == len(self.cells) and whole != "":
            return whole or ""
        domains, targets = (list(dict.fromkeys(getattr(c, side) for c in self.cells)) for side in ("domain", "target"))
        by_domains: dict[tuple[str, ...], list[str]] = {}
        for target in targets:
            if here := tuple(cell.domain for cell in some if cell.target == target):
                by_domains.setdefault(here, []).append(target)
        names = []
        for here, there in by_domains.items():
            if len(targets) == 1 or (there == targets and len(here) < len(domains)):
                names.append(", ".join(here))
            elif len(here) == len(domains):
                names.append(", ".join(there))
            else:
                names.append(f"{', '.join(here)} on {', '.join(there)}")
        return "; ".join(names)


def _seconds(cell: CellPlan) -> str:
    """Of training, and of what comes before it."""
    search = cell.search.seconds if cell.search else None
    parts = [cell.pretrain_seconds, search, cell.predicted_seconds or 0.0]
    return " + ".join(show_seconds(part) for part in parts if part is not None)


def _disk(parts: Mapping[str, int]) -> list[str]:
    """Room in the run folder, the largest part first."""
    if not parts:
        return []
    shown = [f"{show_bytes(size)} {name}" for name, size in sorted(parts.items(), key=lambda part: -part[1])]
    return [f"up to {show_bytes(sum(parts.values()))} in the folder of a cell, rows apart: {', '.join(shown)}"]


def _alike(cells: Sequence[CellPlan], key: Callable[[CellPlan], Any]) -> list[tuple[Any, list[CellPlan]]]:
    """Cells with the same key, in the order of the first of each."""
    groups: list[tuple[Any, list[CellPlan]]] = []
    for cell in cells:
        value = key(cell)
        group = next((found for known, found in groups if known == value), None)
        if group is None:
            groups.append((value, [cell]))
        else:
            group.append(cell)
    return groups


def _settings(rows: Sequence[Sequence[str]]) -> Table:
    """Rows of setting, value, cells and why; setting and why are said once, and cells only where some differ."""
    columns = ["setting", "value", "cells", "why"]
    named = [list(row) for row in rows]
    for above, row, shown in zip(rows, rows[1:], named[1:], strict=False):
        if above[0] == row[0]:
            shown[0], shown[3] = "", "" if above[3] == row[3] else row[3]
    kept = [n for n in range(len(columns)) if n != 2 or any(row[2] for row in rows)]
    return Table([columns[n] for n in kept], [[row[n] for n in kept] for row in named])


def _memory_table(cell: CellPlan) -> Table:
    """Parts by phase; below the peak, main memory beside an accelerator."""
    phases = [*cell.memory, *([cell.merge] if cell.merge else [])]
    parts = dict.fromkeys(part for phase in phases for part, size in phase.parts.items() if size)
    rows = [
        [part, *(show_bytes(phase.parts[part]) if phase.parts.get(part) else "" for phase in phases)] for part in parts
    ]
    rows.append(["peak", *(show_bytes(phase.total_bytes) for phase in phases)])
    if any(phase.host_parts for phase in phases):
        rows.append(["peak in main memory", *(show_bytes(phase.host_bytes) for phase in phases)])
    columns = ["memory", *(phase.phase for phase in phases)]
    return Table(columns, rows, frozenset(columns[1:]))


def _plain(value: Any) -> str:
    """As a recipe writes it, lists without their brackets."""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {share:g}" for name, share in value.items()) or "off"
    return str(value).lower() if str(value) in ("True", "False") else str(value)


def _listed(value: Any) -> str:
    """As a recipe writes it, in a list of settings."""
    several = isinstance(value, (list, tuple)) and len(value) > 1
    return f"[{_plain(value)}]" if several else _plain(value)
