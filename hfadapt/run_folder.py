"""The run folder: typed access to every record, and what is done.

runs/NAME/report.{json,md,html}, transfer.json and, for each cell, runs/NAME/DOMAIN/TARGET/ with lock.yaml, plan.json,
data.json, data/, adapter/, checkpoints/, metrics.jsonl, train.json, evaluation.json, security.json, drift.json,
transfer.json (the adapter's own row of the run's), predictions.parquet, README.md, card.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hfadapt.core.errors import RequestError, RunError, choice_problem
from hfadapt.core.spec import Record
from hfadapt.recipe.schema import Lock
from hfadapt.records.evidence import DriftRecord, SecurityRecord, TransferRecord
from hfadapt.records.plan import Plan
from hfadapt.records.report import CellReport, Report
from hfadapt.records.stages import (
    CellState,
    DataRecord,
    EvaluationRecord,
    Manifest,
    Phase,
    PhaseMeasure,
    Step,
    TrainRecord,
)

STATE = "cell.json"
Found = TypeVar("Found", bound=Record)


def _where_there_is(kind: type[Found], path: Path) -> Found | None:
    """The record, or None where its stage was switched off or is of an older run."""
    return kind.read(path) if path.exists() else None


@dataclass(frozen=True)
class Cell:
    """One domain on one target: a folder of records."""

    folder: Path

    @property
    def domain(self) -> str:
        """Its name in the recipe."""
        return self.folder.parent.name

    @property
    def target(self) -> str:
        """The target's name."""
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """The adapter's folder, which plain peft loads."""
        return self.folder / "adapter"

    @property
    def state(self) -> CellState:
        """What is done; a cell that was never started is `pending`."""
        path = self.folder / STATE
        return CellState.read(path) if path.exists() else CellState()

    def set_state(self, **changes: Any) -> None:
        """Writes cell.json with these fields changed."""
        self.state.model_copy(update=changes).write(self.folder / STATE)

    @property
    def lock(self) -> Lock:
        """Every resolved value. Raises RunError before there is a plan."""
        path = self.folder / "lock.yaml"
        try:
            return Lock.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError("the cell has no plan yet", place=str(path), fix="hfadapt run RECIPE") from None

    @property
    def plan(self) -> Plan:
        """plan.json."""
        return Plan.read(self.folder / "plan.json")

    @property
    def data(self) -> DataRecord:
        """data.json."""
        return DataRecord.read(self.folder / "data.json")

    @property
    def train(self) -> TrainRecord:
        """train.json."""
        return TrainRecord.read(self.folder / "train.json")

    @property
    def evaluation(self) -> EvaluationRecord:
        """evaluation.json."""
        return EvaluationRecord.read(self.folder / "evaluation.json")

    @property
    def security(self) -> SecurityRecord | None:
        """security.json, None where nothing of it was checked."""
        return _where_there_is(SecurityRecord, self.folder / "security.json")

    @property
    def drift(self) -> DriftRecord | None:
        """drift.json, None where it was not measured."""
        return _where_there_is(DriftRecord, self.folder / "drift.json")

    @property
    def transfer(self) -> TransferRecord | None:
        """This adapter's own row of the run's cross-domain matrix, from which its card is made."""
        return _where_there_is(TransferRecord, self.folder / "transfer.json")

    @property
    def manifest(self) -> Manifest:
        """What the adapter belongs to."""
        return Manifest.read(self.adapter / "hfadapt.json")

    def read_split(self, split: str) -> list[dict[str, Any]]:
        """The prepared rows of a split, in canonical columns with `source` and `row`. Raises RunError without them."""
        from pyarrow import parquet

        path = self.folder / "data" / f"{split}.parquet"
        if not path.exists():
            raise RunError("this split has not been prepared", place=str(path), fix="hfadapt prepare RECIPE")
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows

    def steps(self) -> list[Step]:
        """The lines of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Step.model_validate(json.loads(line)) for line in lines]

    def report(self) -> CellReport:
        """One row of the matrix, from the records that exist."""
        state = self.state
        report = CellReport(domain=self.domain, target=self.target, status=state.status, error=state.error)
        changes: dict[str, Any] = {}
        memory: dict[Phase, PhaseMeasure] = {}
        if (self.folder / "plan.json").exists():
            for phase in self.plan.cells[0].memory:
                memory[phase.phase] = PhaseMeasure(predicted_peak_bytes=phase.total_bytes)
        if (self.folder / "data.json").exists():
            changes["rows"] = self.data.splits
        if (self.folder / "train.json").exists():
            train = self.train
            memory |= train.memory
            changes |= {
                "seconds": train.seconds + train.load_seconds,
                "predicted_train_seconds": train.predicted_seconds,
                "train_seconds": train.seconds,
                "tokens_per_second": train.tokens_per_second,
                "adapter_bytes": train.adapter_bytes,
            }
        if (self.folder / "evaluation.json").exists():
            evaluation = self.evaluation
            memory |= evaluation.memory
            changes |= {
                "metrics": evaluation.metrics,
                "baseline": evaluation.baseline,
                "seconds": changes.get("seconds", 0.0) + evaluation.seconds,
            }
        if (self.folder / "README.md").exists():
            changes["card"] = str(self.folder / "README.md")
        return report.model_copy(update={**changes, "memory": memory})


@dataclass(frozen=True)
class Run:
    """A run folder: its cells and the records of all of them."""

    folder: Path

    def cell(self, domain: str, target: str) -> Cell:
        """The cell of a domain and a target, whether it exists or not."""
        return Cell(self.folder / domain / target)

    def cells(self) -> list[Cell]:
        """The cells that have been started, sorted by name."""
        found = sorted(self.folder.glob(f"*/*/{STATE}"))
        # Folders with a dot hold earlier results that were kept aside.
        return [Cell(path.parent) for path in found if not path.parent.parent.name.startswith(".")]

    @property
    def report(self) -> Report:
        """report.json."""
        return Report.read(self.folder / "report.json")

    @property
    def transfer(self) -> TransferRecord | None:
        """transfer.json, None where the adapters were not tried on other domains."""
        return _where_there_is(TransferRecord, self.folder / "transfer.json")


def find_cell(path: Path, domain: str | None = None, target: str | None = None) -> Cell:
    """The cell at `path`, or the one cell of the run at `path` that matches.

    Raises:
        RequestError: nothing there, no such domain, or several cells match.
    """
    if (path / STATE).exists() and (path / "lock.yaml").exists():
        return Cell(path)
    cells = Run(path).cells()
    if not cells:
        raise RequestError(
            "this is neither a run nor a cell of one", place=str(path), fix="give a folder such as runs/NAME"
        )
    if domain is not None and domain not in {cell.domain for cell in cells}:
        problem = choice_problem("the run has no such domain", domain, {cell.domain for cell in cells}, str(path))
        raise RequestError(problem.what, problems=[problem])
    if target is not None and target not in {cell.target for cell in cells}:
        problem = choice_problem("the run has no such target", target, {cell.target for cell in cells}, str(path))
        raise RequestError(problem.what, problems=[problem])
    cells = [cell for cell in cells if domain in (None, cell.domain) and target in (None, cell.target)]
    if len(cells) != 1:
        raise RequestError(
            "several cells match",
            place=str(path),
            got=", ".join(f"{cell.domain}/{cell.target}" for cell in cells),
            fix="name one with --domain and --target",
        )
    return cells[0]
