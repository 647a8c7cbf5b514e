"""The run folder: typed access to every record, and what is done.

runs/NAME/report.{json,md,html}, transfer.json and, for each cell, runs/NAME/DOMAIN/TARGET/ with lock.yaml, plan.json,
data.json, data/, adapter/, checkpoints/, metrics.jsonl, train.json, evaluation.json, security.json, drift.json,
transfer.json (the adapter's own row of the run's), predictions.parquet, README.md, card.json.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hfadapt.core import registry
from hfadapt.core.cache import remove
from hfadapt.core.errors import RequestError, RunError, choice_problem
from hfadapt.core.show import Block, Heading, Shown, Table, show_number
from hfadapt.core.spec import Record, reading, write_text
from hfadapt.files import stored
from hfadapt.recipe.schema import Lock
from hfadapt.recipe.sources import found_model, placed_model
from hfadapt.records.evidence import DriftRecord, SecurityRecord, TransferRecord
from hfadapt.records.gaps import unscored
from hfadapt.records.plan import Plan
from hfadapt.records.report import CellReport, Report
from hfadapt.records.stages import (
    CellState,
    DataRecord,
    EvaluationRecord,
    Manifest,
    PhaseMeasure,
    StageError,
    Step,
    TrainRecord,
)

log = logging.getLogger(__name__)
STATE = CellState.FILE
LOCK = "lock.yaml"
PREDICTIONS = "predictions.parquet"
CARD = "README.md"
BASES = "bases"
"""Bases that stages have made for a cell, each in a folder with the stage's name."""
BEGUN = "adapter.safetensors"
PRETRAIN = "pretrain"
"""What an adapter is adapted to before its task, and where that stands, in a cell's folder."""
PROBE_BYTES = 1 << 16
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""What begins a URL, also where `Path` has made one slash of two; a drive of Windows has one letter."""
UNFINISHED = ".*.tmp*"
"""What is being written is called so, and renamed when it is whole."""
Found = TypeVar("Found", bound=Record)


def _read(kind: type[Lock] | type[Record], path: Path) -> Any:
    """A lock or a record; parsed again only when the file has changed."""
    try:
        state = path.stat()
    except FileNotFoundError:
        if issubclass(kind, Record):
            kind.read(path)  # says what is missing
        raise
    return _parsed(kind, path, (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=512)
def _parsed(kind: Any, path: Path, state: tuple[int, ...]) -> Any:
    return kind.read(path) if issubclass(kind, Record) else read_lock(path)


def read_lock(path: Path) -> Lock:
    """A lock.yaml as it stands. Raises RunError where it is not as it was written."""
    with reading(path):
        return Lock.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a Parquet file, values that are files as `Stored`.

    Raises:
        RunError: it is not as it was written.
    """
    from pyarrow import parquet

    # Not read_table: that imports pandas, which takes longer than reading.
    with reading(path), parquet.ParquetFile(path) as file:
        return stored.rows(file.read(columns), path.parent)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without those that a crash or a full disk has cut off; [] where there are none."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError):
            Step.model_validate(step := json.loads(line))
            found.append(step)
    return found


def is_whole(path: Path) -> bool:
    """Whether a Parquet file is there to its last byte; its rows are not read."""
    from pyarrow import parquet

    try:
        parquet.read_metadata(path)
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        return False
    return True


@dataclass(frozen=True)
class _Folder:
    """A folder of records, which may be named by a text too."""

    folder: Path

    def __post_init__(self) -> None:
        """A path may be given as text, too."""
        object.__setattr__(self, "folder", Path(self.folder))

    def __fspath__(self) -> str:
        """Whatever takes the path of its folder takes it itself."""
        return str(self.folder)


@dataclass(frozen=True)
class Cell(_Folder, Shown):
    """One domain on one target: a folder of records.

    Example:
        >>> from hfadapt import Cell
        >>> cell = Cell("runs/sentiment/tweets/this-machine")
        >>> cell.name, cell.state.status
        ('tweets/this-machine', 'done')
        >>> cell.evaluation.metrics[0].name
        'accuracy'
    """

    @property
    def domain(self) -> str:
        """Its name in the recipe."""
        return self.folder.parent.name

    @property
    def target(self) -> str:
        """The target's name."""
        return self.folder.name

    def blocks(self) -> list[Block]:
        """Where it stands, and what its adapter gains."""
        found = self.maybe(EvaluationRecord)
        state = self.state
        rows = [["status", state.status], ["error", state.error or ""], ["stages", ", ".join(state.stages)]]
        metrics = [
            [metric.name, show_number(metric.base), show_number(metric.adapter)]
            for metric in (found.metrics if found else ())
        ]
        columns = ["metric", found.baseline if found else "base", "adapter"]
        figures = [Table(columns, metrics, frozenset(columns[1:]))] if metrics else []
        return [Heading(self.name, 2), Table(["", ""], [row for row in rows if row[1]]), *figures]

    @property
    def name(self) -> str:
        """`domain/target`, as events call it."""
        return f"{self.domain}/{self.target}"

    @property
    def adapter(self) -> Path:
        """The adapter's folder, which plain peft loads."""
        return self.folder / "adapter"

    def made_base(self, stage: str) -> Path:
        """The folder of the base that a stage makes for this cell."""
        return self.folder / BASES / stage

    def begun(self, stage: str) -> Path:
        """The weights of the adapter as a stage that comes before its training leaves them."""
        return self.folder / stage / BEGUN

    def has(self, kind: type[Record]) -> bool:
        """Whether the cell has this record."""
        return (self.folder / kind.FILE).exists()

    def holds(self, kind: type[Record]) -> bool:
        """Whether the cell has this record, and it can be read."""
        try:
            return self.has(kind) and bool(self.read(kind))
        except RunError:
            return False

    def read(self, kind: type[Found]) -> Found:
        """A record. Raises RunError where there is none."""
        record: Found = _read(kind, self.folder / kind.FILE)
        return record

    def maybe(self, kind: type[Found]) -> Found | None:
        """A record, or None where its stage was switched off or is of an older run."""
        return self.read(kind) if self.has(kind) else None

    def write(self, record: Record) -> None:
        """Writes a record under its own name."""
        record.write(self.folder / record.FILE)

    @property
    def state(self) -> CellState:
        """What is done; a cell that was never started is `pending`, and one whose file cannot be read says so."""
        path = self.folder / STATE
        try:
            return CellState.read(path) if path.exists() else CellState()
        except RunError as error:
            return CellState(errors=(StageError(stage=STATE, message=str(error)),))

    def set_state(self, **changes: Any) -> None:
        """Writes cell.json with these fields changed, if they do change."""
        before = self.state
        after = before.model_copy(update=changes)
        if after != before or not (self.folder / STATE).exists():
            self.write(after)

    @property
    def planned(self) -> bool:
        """Whether there is a lock that can be read."""
        try:
            return bool(self.lock)
        except RunError:
            return False

    @property
    def lock(self) -> Lock:
        """Every resolved value. Raises RunError before there is a plan."""
        path = self.folder / LOCK
        try:
            lock: Lock = _read(Lock, path)
        except FileNotFoundError:
            raise RunError("the cell has no plan yet", place=str(path), fix="hfadapt run RECIPE") from None
        found: dict[str, Any] = {"model": found_model(lock.model, self.folder)}
        if lock.base is not None:
            # In the file it is relative, so that a run can be moved.
            found["base"] = lock.base.model_copy(update={"folder": str(self.folder / lock.base.folder)})
        return lock.model_copy(update=found)

    def save_lock(self, lock: Lock) -> None:
        """Writes lock.yaml."""
        from hfadapt.recipe.yaml_lines import dump

        values = lock.model_dump(mode="json", exclude_none=True) | {"model": placed_model(lock.model)}
        if lock.base is not None:
            values["base"]["folder"] = Path(lock.base.folder).relative_to(self.folder).as_posix()
        write_text(self.folder / LOCK, dump(values))

    @property
    def plan(self) -> Plan:
        """plan.json."""
        return self.read(Plan)

    @property
    def data(self) -> DataRecord:
        """data.json."""
        return self.read(DataRecord)

    @property
    def train(self) -> TrainRecord:
        """train.json."""
        return self.read(TrainRecord)

    @property
    def evaluation(self) -> EvaluationRecord:
        """evaluation.json."""
        return self.read(EvaluationRecord)

    @property
    def security(self) -> SecurityRecord | None:
        """security.json, None where nothing of it was checked."""
        return self.maybe(SecurityRecord)

    @property
    def drift(self) -> DriftRecord | None:
        """drift.json, None where it was not measured."""
        return self.maybe(DriftRecord)

    @property
    def transfer(self) -> TransferRecord | None:
        """This adapter's own row of the run's cross-domain matrix, from which its card is made."""
        return self.maybe(TransferRecord)

    @property
    def manifest(self) -> Manifest:
        """What the adapter belongs to."""
        return Manifest.read(self.adapter / Manifest.FILE)

    def read_split(self, split: str) -> list[dict[str, Any]]:
        """The prepared rows of a split, in canonical columns with `source` and `row`. Raises RunError without them."""
        path = self.folder / "data" / f"{split}.parquet"
        if not path.exists():
            raise RunError("this split has not been prepared", place=str(path), fix="hfadapt prepare RECIPE")
        return read_rows(path)

    def steps(self) -> list[Step]:
        """The lines of metrics.jsonl."""
        return [Step.model_validate(step) for step in read_steps(self.folder / "metrics.jsonl")]

    def report(self) -> CellReport:
        """One row of the matrix, from the records that exist; where one cannot be read, the cell counts as failed."""
        try:
            return self._report()
        except RunError as error:
            return CellReport(domain=self.domain, target=self.target, status="failed", error=str(error))

    def _report(self) -> CellReport:
        state = self.state
        if (self.folder / LOCK).exists():
            _ = self.lock  # without it nobody can use the cell
        changes: dict[str, Any] = {}
        memory: dict[str, PhaseMeasure] = {}
        if plan := self.maybe(Plan):
            for phase in plan.cells[0].memory:
                memory[phase.phase] = PhaseMeasure(predicted_peak_bytes=phase.total_bytes)
        if data := self.maybe(DataRecord):
            changes |= {"rows": data.splits, "unscored": unscored(data.label_counts)}
        if train := self.maybe(TrainRecord):
            changes |= {
                "predicted_train_seconds": train.predicted_seconds,
                "train_seconds": train.seconds,
                "steps": train.steps,
                "best_step": train.best_step,
                "tokens_per_second": train.tokens_per_second,
                "adapter_bytes": train.adapter_bytes,
            }
        if evaluation := self.maybe(EvaluationRecord):
            changes |= {
                "metrics": evaluation.metrics,
                "baseline": evaluation.baseline,
            }
        if train or evaluation:
            changes["seconds"] = _in_all(state, train, evaluation)
        for kind in (kind for stage in registry.stages() for kind in stage.records):
            if "memory" in kind.model_fields and self.has(kind):
                memory |= getattr(self.read(kind), "memory")  # noqa: B009
        if (self.folder / CARD).exists():
            changes["card"] = str(self.folder / CARD)
        return CellReport(
            domain=self.domain, target=self.target, status=state.status, error=state.error, memory=memory, **changes
        )


def _in_all(state: CellState, train: TrainRecord | None, evaluation: EvaluationRecord | None) -> float:
    """Seconds of all stages; those of a training that went on after an interruption stand in its record, as do the two
    that runs of an older version tell."""
    took = dict(state.seconds)
    if train is not None and not train.same_as:
        took["train"] = max(train.seconds + train.load_seconds, took.get("train", 0.0))
    if evaluation is not None:
        took.setdefault("evaluate", evaluation.seconds)
    return sum(took.values())


@dataclass(frozen=True)
class Run(_Folder):
    """A run folder: its cells and the records of all of them."""

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
        """report.json. Raises RunError where there is none."""
        if not self.folder.is_dir():
            raise RunError("there is no run in this folder", place=str(self.folder), fix="name that of one: runs/NAME")
        return Report.read(self.folder / Report.FILE)

    @property
    def transfer(self) -> TransferRecord | None:
        """transfer.json; None where adapters were not tried on other domains, or, which is said, it is not whole."""
        path = self.folder / TransferRecord.FILE
        try:
            return TransferRecord.read(path) if path.exists() else None
        except RunError as error:
            log.warning("%s", error)
            return None


def local_folder(said: str | Path) -> Path:
    """A folder that was named for a run, for cells or for what is written: one of this machine.

    Raises:
        RequestError: it is an address such as `s3://bucket/runs`.
    """
    text = str(said)
    if (found := ADDRESS.match(text)) is None:
        return Path(text)
    scheme = found[1].lower()
    fix = "mount the bucket (mount-s3, gcsfuse, rclone mount …) and give the folder where it is mounted"
    if scheme == "file":
        fix = f"the path alone: {shlex.quote('/' + text[found.end() :].lstrip('/'))}"
    elif scheme == "hf":
        fix = "keep runs in a folder here, and send what is finished to the Hub: hfadapt publish RUN --repo USER/NAME"
    raise RequestError(
        "an address is no folder",
        place=text,
        got=f"{scheme}:// in the place of a folder",
        allowed="a path on this machine; a network file system or a bucket counts once it is mounted",
        fix=fix,
    )


def make_writable(folder: Path, cells: Iterable[Path] = ()) -> None:
    """Makes a run's folder and shows, before anything is done, that files can be written there.

    Args:
        cells: Folders of its cells; those that exist must be writable, too.

    Raises:
        RequestError: they cannot.
    """
    place, lock = local_folder(folder), folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = [path for cell in cells for path in (cell.parent, cell, *cell.glob("*"))]
        for place in (folder, *(path for path in known if path.is_dir())):
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
        if lock.exists():
            place = lock
            lock.open("ab").close()
    except OSError as error:
        in_the_way = next((str(path) for path in (place, *place.parents) if path.is_file()), None)
        raise RequestError(
            "the run folder cannot be written",
            place=str(place),
            got=f"{in_the_way} is a file" if in_the_way and place != lock else error.strerror or str(error),
            allowed="a folder with free space in which you may make files",
            fix="free it, or keep runs elsewhere: --runs FOLDER",
        ) from None


def sweep(folder: Path) -> None:
    """Takes away what a process that was killed had not yet written to its end; only for whoever holds the folder."""
    for path in list(folder.rglob(UNFINISHED)):
        remove(path)


def find_cell(path: Path, domain: str | None = None, target: str | None = None) -> Cell:
    """The cell at `path`, or the one cell of the run at `path` that matches.

    Raises:
        RequestError: nothing there, no such domain, or several cells match.
    """
    path = local_folder(path)
    if (path / STATE).exists() and (path / LOCK).exists():
        return Cell(path)
    # The folder of a domain holds its cells.
    cells = Run(path).cells() or [cell for cell in Run(path.parent).cells() if cell.folder.parent == path]
    if not cells:
        runs = sorted({cell.parents[2].name for cell in path.glob(f"*/*/*/{STATE}")})
        raise RequestError(
            "this is neither a run nor a cell of one",
            place=str(path),
            got=f"a folder of the runs {', '.join(runs)}" if runs else None,
            fix=f"give one of them, such as {shlex.quote(str(path / runs[0]))}"
            if runs
            else "give a folder such as runs/NAME",
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
