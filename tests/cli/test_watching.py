"""What one sees of a command while it runs: lines in a terminal, a few without one, JSON for other programs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.cli import ending, terminal
from hfadapt.cli.watched import Watch
from hfadapt.core import progress
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.json_lines import JsonLines, as_line
from hfadapt.core.progress import Event, Failed, Part, Said, StageFinished, StageStarted, Stepped, Validated
from hfadapt.pipeline.remaining import Remaining
from hfadapt.stages import Stage
from hfadapt.train.job import Job

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
DOCUMENT = Path(__file__).parents[2] / "docs" / "events.md"
CELLS = ("one/this-machine", "two/this-machine")


def stepped(step: int, left: float = 30.0, total: int = 40, cells: tuple[str, ...] = CELLS) -> Stepped:
    return Stepped(tuple(Part(cell, step, total, 0.5) for cell in cells), 100.0, left)


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("watched")
    write_rows(place / "one.jsonl", labelled(80))
    write_rows(place / "two.jsonl", labelled(80, seed=1))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    write_recipe(place / "tiny.yaml", recipe_fields(models / "encoder", domains=domains, train__together=True))
    return place


# --- without a terminal ----------------------------------------------------------------------------------------------


def test_without_a_terminal_steps_are_told_once_a_minute_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.Terminal() as shown:
        shown.tell(StageStarted("train", "training", CELLS))
        for step in range(1, 31):
            shown.tell(stepped(step))
            clock[0] += 5.0
        for cell in CELLS:
            shown.tell(Validated(cell, 30, 0.25))
        shown.tell(StageFinished("train", "training", CELLS, 150.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "one/this-machine, two/this-machine: training"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 1/40", "step 13/40", "step 25/40", "step 30/40"]
    assert all(line.count("tokens/s") == 1 for line in lines[1:])
    assert "two/this-machine loss 0.5000 (validation 0.2500)" in lines[-1]


def test_quiet_shows_faults_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Terminal(quiet=True) as shown:
        for event in (Said("reading"), StageStarted("train", "training", CELLS), stepped(1)):
            shown.tell(event)
        shown.tell(Failed("bad", None, "training of one failed"))
        shown.tell(StageFinished("train", "training", CELLS, 1.0))
    assert capsys.readouterr().err == "training of one failed\n"


def test_in_the_shell_of_a_notebook_nothing_is_renewed_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Tty())
    monkeypatch.delenv(terminal.KERNEL, raising=False)
    assert terminal.Terminal()._lives
    assert terminal.is_live(Tty(), Tty())
    assert not terminal.is_live(Tty(), io.StringIO())
    monkeypatch.setenv(terminal.KERNEL, "1")
    assert not terminal.Terminal()._lives
    assert not terminal.is_live(Tty(), Tty())


# --- a terminal ------------------------------------------------------------------------------------------------------


def test_messages_scroll_above_lines_that_stay() -> None:
    out = io.StringIO()
    shown = terminal.Terminal()
    shown.console = Console(file=out, force_terminal=True, width=100, height=20, color_system=None)
    shown._lives = True
    with shown:
        shown.tell(StageStarted("train", "training", CELLS))
        shown.tell(stepped(3))
        shown.tell(Said("a message"))
        shown.tell(StageFinished("train", "training", CELLS, 9.0))
    before, after = out.getvalue().split("a message")
    assert "one/this-machine  training" in before
    assert "two/this-machine  training in 9.0 s  step 3/40" in after


def test_long_messages_are_broken_between_words() -> None:
    out = io.StringIO()
    shown = terminal.Terminal()
    shown.console = Console(file=out, force_terminal=True, width=40, height=20, color_system=None)
    shown._lives = True
    folder = "runs/a-long-name-of-a-folder-that-is-copied/this-machine"
    shown.tell(Said(f"  note: the machine was busy when its speed was measured; {folder} has it"))
    lines = out.getvalue().splitlines()
    assert lines == ["  note: the machine was busy when its", "  speed was measured;", f"  {folder}", "  has it"]


@pytest.mark.parametrize("width", [60, 200])
def test_in_a_real_terminal_no_live_line_is_wrapped(folder: Path, tmp_path: Path, width: int) -> None:
    import fcntl
    import pty
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    words = [sys.executable, "-m", "hfadapt", "train", "tiny.yaml", "--runs", str(tmp_path)]
    found: list[bytes] = []

    def read() -> None:
        while True:
            try:
                if not (part := os.read(ours, 65536)):
                    return
            except OSError:
                return
            found.append(part)

    reader = threading.Thread(target=read)
    with subprocess.Popen(words, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment) as process:
        os.close(its)
        reader.start()
        assert process.wait(300) == 0
    reader.join(10)
    os.close(ours)
    text = b"".join(found).decode()
    assert "\x1b[" in text, "it is renewed in its place"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    live = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(CELLS) and "step" in line]
    assert any("step 4/4" in line for line in live)
    assert max(map(len, live)) <= width


# --- JSON ------------------------------------------------------------------------------------------------------------


def names() -> dict[str, type[Event]]:
    return {kind.name: kind for kind in Event.__subclasses__()}


def documented() -> dict[str, set[str]]:
    """The fields of each event as the page names them: lines of its tables beginning with a name in code."""
    found: dict[str, set[str]] = {}
    at = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("### `"):
            at = line.split("`")[1]
            found[at] = set()
        elif at and line.startswith("| `"):
            found[at].add(line.split("`")[1])
    return found


def test_every_event_and_field_is_documented() -> None:
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in names().items()}  # type: ignore[arg-type]
    fields["step"] |= {f"parts[].{field.name}" for field in dataclasses.fields(progress.Part)}
    assert documented() == fields


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_as_json_lines(folder: Path, tmp_path: Path) -> None:
    done = command("run", "tiny.yaml", "--runs", str(tmp_path), "--json-lines", "-", folder=folder)
    assert done.code == 0, done.err
    told = read(done.err)
    known = names()
    for each in told:
        fields = {field.name for field in dataclasses.fields(known[each["event"]])}  # type: ignore[arg-type]
        assert each.keys() == fields | {"schema", "event", "time"}
    begun = next(each for each in told if each["event"] == "run_started")
    assert begun["cells"] == list(CELLS)
    assert told[-1]["event"] == "run_finished"
    assert told[-1]["status"] == "done"
    steps = [each for each in told if each["event"] == "step"]
    assert [[(part["cell"], part["step"]) for part in each["parts"]] for each in steps] == [
        [(cell, step) for cell in CELLS] for step in range(1, 5)
    ]
    assert all(each["seconds_left"] > each["training_seconds_left"] for each in steps), "evaluation comes after"
    assert all(each["planned_memory_bytes"] > 0 <= each["memory_bytes"] for each in steps)
    stages = {each["stage"] for each in told if each["event"] == "stage_finished"}
    assert stages == set(begun["stages"])
    assert [each["status"] for each in told if each["event"] == "cell_finished"][-2:] == ["done", "done"]

    # Beside the terminal's lines into a file, quietly; what is done is kept.
    words = ("run", "tiny.yaml", "--runs", str(tmp_path), "--quiet", "--json-lines", str(tmp_path / "events.jsonl"))
    again = command(*words, folder=folder)
    assert (again.code, again.err) == (0, "")
    assert "baseline" in again.out or "adapter" in again.out
    events = [each["event"] for each in read((tmp_path / "events.jsonl").read_text())]
    assert "step" not in events
    assert events[-1] == "run_finished"


def test_a_wrong_request_is_an_event_with_its_fix(folder: Path) -> None:
    done = command("run", "tiny.yaml", "train.epohcs=1", "--json-lines", "-", folder=folder)
    assert done.code == 2
    (told,) = read(done.err)
    assert told["event"] == "failed"
    assert told["cell"] is None
    assert "epochs" in told["fix"]


def test_a_failed_cell_is_an_event_and_the_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RunError("the loss is not finite", fix="lower train.learning_rate")

    monkeypatch.setattr(Job, "update", fails)
    words = ("train", "tiny.yaml", "--runs", str(tmp_path), "-d", "one")
    done = command(*words, "--json-lines", str(tmp_path / "events.jsonl"), "--quiet", folder=folder)
    assert done.code == 1
    told = read((tmp_path / "events.jsonl").read_text())
    (failed,) = (each for each in told if each["event"] == "failed")
    assert (failed["stage"], failed["cell"]) == ("train", CELLS[0])
    assert (failed["what"], failed["fix"]) == ("the loss is not finite", "lower train.learning_rate")
    assert told[-1]["status"] == "failed"
    assert failed["text"] in done.err


def test_numbers_that_are_none_are_null() -> None:
    line = json.loads(as_line(Stepped((Part("one", 1, 2, float("nan")),), float("inf"), 1.0)))
    assert line["parts"][0]["loss"] is None
    assert line["tokens_per_second"] is None


def test_a_file_that_cannot_be_written_is_refused_and_a_reader_that_leaves_is_none_of_the_runs_business(
    tmp_path: Path,
) -> None:
    with pytest.raises(RequestError, match="events cannot be written"):
        JsonLines(tmp_path / "nowhere" / "events.jsonl")

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    lines = JsonLines(Gone())
    lines.tell(Said("one"))
    lines.tell(Said("two"))
    assert lines.stream is None


def test_where_json_is_alone_an_unexpected_error_and_ctrl_c_say_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(error: BaseException) -> int:
        def work() -> None:
            with Watch(json_lines=Path("-")).open():
                raise error

        return ending.attempt(work)

    assert fails(ZeroDivisionError("odd")) == 1
    (told,) = read(capsys.readouterr().err)
    assert told["what"] == "ZeroDivisionError: odd"
    assert "this is a bug in hfadapt" in told["text"]
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


# --- the time that is left -------------------------------------------------------------------------------------------


class Known(Stage):
    """A stage that takes 100 s by the plan."""

    def seconds(self, cell: Any) -> float | None:
        return 100.0


class Unknown(Stage):
    """A stage about which no plan says anything."""


class Place:
    """A cell with a plan, as far as it is asked."""

    def __init__(self, name: str, *done: str) -> None:
        self.name = name
        self.state = type("State", (), {"stages": dict.fromkeys(done, "hash")})()

    def has(self, kind: object) -> bool:
        return True


class Kept(progress.Silent):
    def __init__(self) -> None:
        self.left: list[float | None] = []

    def tell(self, event: Event) -> None:
        if isinstance(event, (StageStarted, Stepped)):
            self.left.append(event.seconds_left)


def test_what_is_left_counts_all_cells_and_follows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("hfadapt.pipeline.remaining.time.monotonic", lambda: clock[0])
    kinds: list[Stage] = [Known(), Unknown()]
    for kind, name in zip(kinds, ("train", "card"), strict=True):
        kind.name = name  # type: ignore[misc]
    kept = Kept()
    cells: Any = [Place("one/here"), Place("two/here"), Place("three/here", "train", "card")]
    left = Remaining(kept, cells, kinds)
    left.tell(StageStarted("train", "training", ("one/here",)))
    clock[0] = 50.0
    # Half of it took half of the time that the plan has for all: it is as fast as planned.
    left.tell(stepped(20, 50.0, cells=("one/here",)))
    # It is twice as slow, and so is the next cell.
    left.tell(stepped(20, 150.0, cells=("one/here",)))
    # What is tried says nothing about the training.
    left.tell(Stepped((Part("one/here", 1, 2, 1.0, "rank 8"),), 10.0, 5.0))
    clock[0] = 200.0
    left.tell(StageFinished("train", "training", ("one/here",), 200.0))
    left.tell(StageStarted("card", "card", ("one/here",)))
    left.tell(StageFinished("card", "card", ("one/here",), 7.0))
    left.tell(StageStarted("train", "training", ("two/here",)))
    assert kept.left == [200.0, 150.0, 350.0, 350.0, 200.0, 207.0]


def test_a_stage_of_moments_says_nothing_of_the_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("hfadapt.pipeline.remaining.time.monotonic", lambda: clock[0])
    quick, long = Known(), Known()
    quick.name, long.name = "train", "evaluate"  # type: ignore[misc]
    monkeypatch.setattr(quick, "seconds", lambda cell: 0.01)
    kept = Kept()
    left = Remaining(kept, [Place("one/here")], [quick, long])  # type: ignore[list-item]
    left.tell(StageStarted("train", "training", ("one/here",)))
    clock[0] = 20.0
    # It was planned for a moment, and took 20 s to start.
    left.tell(stepped(39, 1.0, cells=("one/here",)))
    assert kept.left == [pytest.approx(100.01), pytest.approx(101.0)]
