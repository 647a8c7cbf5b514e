"""Runs that are started from the page: `hfadapt run` as a process of its own, told by the lines of `--json-lines`.

What the page shows of a run is folded from these lines (docs/events.md) and nothing else.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hfadapt.core.errors import RequestError, choice_problem

SETTING = re.compile(r"[A-Za-z_][\w.\-]*=.*", re.DOTALL)
MOST_BYTES, MOST_RECIPES, MOST_SAID = 1 << 18, 200, 40
STOP_SECONDS = 60
"""How long a run may take to write its checkpoint when it is stopped, before it is killed."""
ENDS = ("done", "failed", "interrupted")


# --- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A recipe in a file here."""

    path: Path
    name: str


def recipes(folder: Path) -> list[Found]:
    """The recipes of a folder and of `recipes/` in it."""
    found = []
    for path in sorted([*folder.glob("*.y*ml"), *(folder / "recipes").glob("*.y*ml")])[:MOST_RECIPES]:
        with suppress(OSError, ValueError, yaml.YAMLError):
            if path.stat().st_size > MOST_BYTES:
                continue
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(fields, dict) and {"model", "domains"} <= fields.keys():
                found.append(Found(path.relative_to(folder), str(fields.get("name") or path.stem)))
    return found


def chosen(folder: Path, name: str) -> Path:
    """One of `recipes`. Raises RequestError for another file."""
    known = [str(each.path) for each in recipes(folder)]
    if name not in known:
        problem = choice_problem("there is no such recipe here", name, known, str(folder))
        raise RequestError(problem.what, problems=[problem])
    return Path(name)


def settings(text: str) -> list[str]:
    """What was typed behind the recipe, `FIELD=VALUE` each. Raises RequestError for what is something else."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RequestError("the settings cannot be read", got=str(error), fix="close every quote") from None
    for word in words:
        # Nothing else: an option of the command would do other things than this page says.
        if not SETTING.fullmatch(word):
            raise RequestError("this is no setting", got=word[:80], allowed="FIELD=VALUE", fix="such as train.epochs=3")
    return words


# --- what happens ----------------------------------------------------------------------------------------------------


@dataclass
class State:
    """Where a run stands, by its events.

    Args:
        stages: In their order: `waiting`, `running`, `done` or `failed`.
        cells: The last word on each cell: its status, or its step.
        steps: Lines as in metrics.jsonl, of each cell.
        status: '' while it goes on.
    """

    run: str = ""
    folder: str = ""
    unit: str = "tokens"
    stages: dict[str, str] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    doing: str = ""
    seconds_left: float | None = None
    rate: float | None = None
    said: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    status: str = ""

    def tell(self, event: Mapping[str, Any]) -> None:
        """One event more; one that is not known changes nothing."""
        kind = getattr(self, f"_{event.get('event')}", None)
        if kind is not None:
            kind(event)

    def _run_started(self, event: Mapping[str, Any]) -> None:
        self.run, self.folder, self.unit = event["run"], event["folder"], event["unit"]
        self.cells = dict.fromkeys(event["cells"], "waiting")
        self.stages = dict.fromkeys(event["stages"], "waiting")

    def _stage_started(self, event: Mapping[str, Any]) -> None:
        self.stages[event["stage"]] = "running"
        self.doing = f"{event['title']}: {', '.join(event['cells'])}"
        self.seconds_left = event["seconds_left"]
        self.cells |= dict.fromkeys(event["cells"], event["title"])

    def _step(self, event: Mapping[str, Any]) -> None:
        for part in event["parts"]:
            self.cells[part["cell"]] = f"step {part['step']:,} of {part['total']:,}"
            if not part["trial"]:
                line = {"step": part["step"], "loss": part["loss"]}
                self.steps.setdefault(part["cell"], []).append(line)
        self.rate, self.seconds_left = event["tokens_per_second"], event["seconds_left"]

    def _validation(self, event: Mapping[str, Any]) -> None:
        if not event["trial"]:
            line = {"step": event["step"], "validation_loss": event["loss"]}
            self.steps.setdefault(event["cell"], []).append(line)

    def _said(self, event: Mapping[str, Any]) -> None:
        self.said = [*self.said, event["text"]][-MOST_SAID:]

    def _stage_finished(self, event: Mapping[str, Any]) -> None:
        self.stages[event["stage"]] = "done"

    def _cell_finished(self, event: Mapping[str, Any]) -> None:
        self.cells[event["cell"]] = event["status"]

    def _failed(self, event: Mapping[str, Any]) -> None:
        where = f"{event['cell']}: " if event["cell"] else ""
        self.failures.append(where + event["text"])
        if event["stage"]:
            self.stages[event["stage"]] = "failed"
        if event["cell"] is None and event["stage"] is None:
            self.status = self.status or "failed"

    def _run_finished(self, event: Mapping[str, Any]) -> None:
        self.status, self.doing, self.seconds_left = event["status"], "", None


def folded(lines: Iterable[bytes]) -> State:
    """The state after these lines; one that is not whole yet is left for the next time."""
    state = State()
    for line in lines:
        with suppress(ValueError):
            state.tell(json.loads(line))
    return state


# --- the process -----------------------------------------------------------------------------------------------------


class Live:
    """The run that was started from here, one at a time, and those before it.

    Args:
        runs: The folder of runs.
        folder: Where recipes are, and the process works.
    """

    def __init__(self, runs: Path, folder: Path) -> None:
        self.runs, self.folder = runs, folder
        self._lock = threading.Lock()
        self._place = tempfile.TemporaryDirectory(prefix="hfadapt-ui-")
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, recipe: str, typed: str = "", domains: Sequence[str] = ()) -> int:
        """Starts a run, or goes on with it, and returns its number.

        Raises:
            RequestError: no such recipe, something that is no setting, or another run goes on.
        """
        path, words = chosen(self.folder, recipe), settings(typed)
        command = [sys.executable, "-m", "hfadapt", "run", str(path), *words, "--runs", str(self.runs), "--quiet"]
        for domain in domains:
            command += ["--domain", domain]
        with self._lock:
            if self.busy is not None:
                raise RequestError("another run goes on", fix="wait for it to end, or stop it")
            number = len(self._processes)
            with self._file(number, "log").open("wb") as log:
                process = subprocess.Popen(
                    [*command, "--json-lines", str(self._file(number, "jsonl"))],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C is for the page, which then asks the run to stop.
                    start_new_session=True,
                )
            self._processes.append(process)
        return number

    @property
    def busy(self) -> int | None:
        """The number of the run that goes on."""
        return next((n for n, each in enumerate(self._processes) if each.poll() is None), None)

    @property
    def last(self) -> int | None:
        """The number of the run that was started last."""
        return len(self._processes) - 1 if self._processes else None

    def state(self, number: int) -> State:
        """Where a run stands. Raises RequestError where there is none of this number."""
        if not 0 <= number < len(self._processes):
            raise RequestError("no such run was started here", got=str(number), fix="start one on the first page")
        ended = self._processes[number].poll()
        path = self._file(number, "jsonl")
        state = folded(path.read_bytes().splitlines() if path.exists() else ())
        if ended is not None and state.status not in ENDS:
            log = self._file(number, "log").read_text(encoding="utf-8", errors="replace").strip()
            state.status = "failed"
            state.failures.append(log[-4000:] or f"the run ended with exit code {ended} and said nothing")
        elif ended is None and state.status:
            # It still writes its report.
            state.doing, state.status = "the last files are written", ""
        return state

    def stop(self, number: int) -> None:
        """Asks a run to stop, as Ctrl-C does: it keeps its checkpoint, and goes on from there another time."""
        self.state(number)
        process = self._processes[number]
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Stops what goes on."""
        if (number := self.busy) is not None:
            self.stop(number)
            try:
                self._processes[number].wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._processes[number].kill()
        self._place.cleanup()

    def _file(self, number: int, kind: str) -> Path:
        return Path(self._place.name) / f"{number}.{kind}"
