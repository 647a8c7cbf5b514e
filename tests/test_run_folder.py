"""The run folder: states, records and finding a cell."""

from __future__ import annotations

import json

import pytest

from hfadapt.core.errors import RequestError, RunError
from hfadapt.records.evidence import TransferRecord
from hfadapt.records.report import CellReport, Report
from hfadapt.report.run_view import Run
from hfadapt.run_folder import Cell, find_cell


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "runs/r")
    for domain in ("tweets", "movies"):
        cell = made.cell(domain, "t4")
        cell.folder.mkdir(parents=True)
        cell.set_state(status="done")
        (cell.folder / "lock.yaml").write_text("{}")
    return made


def test_a_cell_that_was_never_started_is_pending(tmp_path):
    cell = Cell(tmp_path / "a" / "t4")
    assert (cell.state.status, cell.state.stages) == ("pending", {})
    assert (cell.domain, cell.target) == ("a", "t4")
    assert cell.steps() == []


def test_states_are_changed_field_by_field(run):
    cell = run.cell("tweets", "t4")
    cell.set_state(stages={"data": "x"})
    assert (cell.state.status, cell.state.stages) == ("done", {"data": "x"})


@pytest.mark.parametrize(
    ("text", "stages", "wanted"),
    [
        (None, {}, []),
        ("loss gained +0.1, the recipe asks for +0.2", {"data": "a", "plan": "b", "train": "c", "evaluate": "d"},
         [("evaluate", "loss gained +0.1, the recipe asks for +0.2")]),
        ("no rows; fix: more; transfer: on news worse", {"data": "a"},
         [("plan", "no rows; fix: more"), ("transfer", "on news worse")]),
        ("transfer: on news worse", {}, [("transfer", "on news worse")]),
    ],
)  # fmt: skip
def test_a_state_of_the_first_version_is_read(run, text, stages, wanted):
    """There all errors were one text, and the first stage was called data."""
    cell = run.cell("tweets", "t4")
    old = {"record": "CellState", "version": 1, "status": "failed", "error": text, "stages": stages, "running": None}
    (cell.folder / "cell.json").write_text(json.dumps(old))
    assert [(error.stage, error.message) for error in cell.state.errors] == wanted
    assert list(cell.state.stages) == ["prepare" if name == "data" else name for name in stages]
    cell.set_state(running="train")
    assert json.loads((cell.folder / "cell.json").read_text())["version"] == 2


def test_a_record_is_parsed_again_only_when_its_file_has_changed(run):
    cell = run.cell("tweets", "t4")
    record = TransferRecord(targets=(), inputs_sha256="a")
    cell.write(record)
    assert cell.transfer is cell.transfer
    cell.write(record.model_copy(update={"inputs_sha256": "b"}))
    assert cell.transfer.inputs_sha256 == "b"
    (cell.folder / "transfer.json").unlink()
    assert cell.transfer is None


def test_cells_are_listed_by_name(run):
    assert [cell.domain for cell in run.cells()] == ["movies", "tweets"]


def test_a_missing_record_says_which_stage_writes_it(run):
    cell = run.cell("tweets", "t4")
    with pytest.raises(RunError, match=r"there is no train\.json yet"):
        _ = cell.train
    (cell.folder / "lock.yaml").unlink()
    with pytest.raises(RunError, match="no plan yet"):
        _ = cell.lock


def test_a_damaged_lock_is_named_with_what_is_wrong_and_what_makes_it_again(run):
    cell = run.cell("tweets", "t4")
    (cell.folder / "lock.yaml").write_text("name: r\ntask: causal-ml\n")
    with pytest.raises(RunError, match="not as it was written") as caught:
        _ = cell.lock
    (problem,) = caught.value.problems
    assert problem.place.endswith("lock.yaml")
    assert problem.fix


def test_metrics_are_read_line_by_line(run):
    cell = run.cell("tweets", "t4")
    lines = [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 1, "epoch": 0.5, "validation_loss": 1.5}]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(step.loss, step.validation_loss) for step in cell.steps()] == [(2.0, None), (None, 1.5)]


def test_finding_a_cell(run):
    assert find_cell(run.folder / "tweets/t4").domain == "tweets"
    assert find_cell(run.folder, "movies").domain == "movies"
    with pytest.raises(RequestError, match="several cells match"):
        find_cell(run.folder)
    with pytest.raises(RequestError, match="did you mean 'tweets'"):
        find_cell(run.folder, "tweet")
    with pytest.raises(RequestError, match="no such target"):
        find_cell(run.folder, "tweets", "h100")
    with pytest.raises(RequestError, match="neither a run nor a cell"):
        find_cell(run.folder / "nothing")


def test_a_report_is_written_twice_and_reads_back(run):
    report = Report(
        recipe="r", model="m", task="causal-lm", cells=(CellReport(domain="a", target="t4", status="done"),)
    )
    run.write_report(report)
    assert run.report == report
    assert "| a |" in (run.folder / "report.md").read_text()
    assert "m, causal-lm" in str(run)
