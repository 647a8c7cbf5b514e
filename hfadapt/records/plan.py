"""plan.json: the decisions, the predicted memory and the verdict of every cell, and how they are shown."""

from __future__ import annotations

from typing import Any, ClassVar

from hfadapt.core.show import Block, Heading, Shown, Table, show_bytes, show_seconds
from hfadapt.core.spec import Record, Spec
from hfadapt.records.stages import Phase


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


class CellPlan(Spec):
    """The plan of one domain on one target. `merge` does not count for `fits`: it can be done on another machine."""

    domain: str
    target: str
    decisions: tuple[Decision, ...]
    memory: tuple[PhaseMemory, ...]
    merge: PhaseMemory | None = None
    budget_bytes: int
    margin: float
    fits: bool
    trains_on: str
    predicted_seconds: float | None = None
    predicted_tokens_per_second: float | None = None
    data_basis: str
    alternatives: tuple[Alternative, ...] = ()
    warnings: tuple[str, ...] = ()

    def value(self, field: str) -> Any:
        """The resolved value of a dotted field. Raises KeyError when the plan has no such field."""
        for decision in self.decisions:
            if decision.field == field:
                return decision.value
        raise KeyError(field)

    @property
    def peak(self) -> PhaseMemory:
        """The phase that needs the most memory."""
        return max(self.memory, key=lambda phase: phase.total_bytes)


class Plan(Shown, Record):
    """All cells of a recipe, resolved."""

    FILE: ClassVar[str] = "plan.json"
    recipe: str
    model: str
    parameters: int
    cells: tuple[CellPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every cell fits its target."""
        return all(cell.fits for cell in self.cells)

    def blocks(self) -> list[Block]:
        """Per cell: the decisions with reasons, the predicted memory by part, and the verdict."""
        shown: list[Block] = [Heading(f"Plan of {self.recipe}: {self.model}, {self.parameters:,} parameters", 1)]
        for cell in self.cells:
            shown += _cell_blocks(cell)
        return shown


def _cell_blocks(cell: CellPlan) -> list[Block]:
    """Verdict first, then memory, then every decision with what was rejected on lines of its own."""
    rows = [
        [
            decision.field,
            _plain(decision.value).replace(", ", ",\n") + (" (set)" if decision.asked else ""),
            "\n".join([decision.reason, *(f"  not {other.value}: {other.reason}" for other in decision.rejected)]),
        ]
        for decision in cell.decisions
    ]
    time = ""
    if cell.predicted_seconds is not None:
        time = f"about {show_seconds(cell.predicted_seconds)} of training"
    if cell.predicted_tokens_per_second is not None:
        speed = f"{cell.predicted_tokens_per_second:,.0f} tokens a second"
        time = f"{time} at {speed}" if time else f"about {speed}"
    facts = [
        [
            "memory",
            f"{'fits' if cell.fits else 'DOES NOT FIT'}: peak {show_bytes(cell.peak.total_bytes)} in "
            f"'{cell.peak.phase}', {show_bytes(cell.budget_bytes)} usable with a margin of {cell.margin:.0%}",
        ],
        ["trains on", cell.trains_on],
        ["time", f"{time} (rough; the run corrects it after its first steps)" if time else "no rate is known"],
        ["data", cell.data_basis],
        *(["warning", warning] for warning in cell.warnings),
    ]
    shown: list[Block] = [
        Heading(f"{cell.domain} on {cell.target}"),
        Table(["verdict", ""], facts, wrap=frozenset({""})),
        _memory_table(cell),
        Table(["field", "value", "reason"], rows, wrap=frozenset({"reason"})),
    ]
    if cell.alternatives:
        rows = [
            [
                "\n".join(f"{k}={_plain(v)}" for k, v in other.changes.items()),
                other.gives_up,
                show_bytes(other.predicted_peak_bytes),
            ]
            for other in cell.alternatives
        ]
        wrap = frozenset({"would fit with", "gives up"})
        shown.insert(2, Table(["would fit with", "gives up", "peak"], rows, frozenset({"peak"}), wrap))
    return shown


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
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
