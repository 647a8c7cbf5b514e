"""Another package adds a task, a row schema, a method, a quant, a format, an objective and a stage (tests/extras): the
command line takes them from a recipe to a checked card, answers, an exported folder and a published one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core import registry
from hfadapt.run_folder import Cell

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def hfadapt(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, with the package beside it as pip would install it."""
    path = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "extras/installed")))
    command = [sys.executable, "-m", "hfadapt", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plugin")
    rows = [{"text": row["text"], "stars": {"bad": 1, "good": 5}[row["label"]]} for row in labelled(120)]
    write_rows(made / "one.jsonl", rows)
    domains = {"one": {"source": "one.jsonl", "license": "cc0-1.0"}}
    fields = recipe_fields(models / "encoder", "ordinal-classification", domains, quant="nf4-double", dtype="float32")
    fields["adapter"] = {"method": "ia3"}
    objective = {"objective": "smoothed", "objective_options": {"smoothing": 0.05}}
    fields["train"] |= {**objective, "max_steps": 30, "learning_rate": 0.05}
    fields["evaluate"] = {
        "resamples": 200, "drift": True, "security": True, "drift_limits": {"kl_nats": 100.0, "points": 100.0}
    }  # fmt: skip
    write_recipe(made / "grades.yaml", {**fields, "name": "grades"})
    done = hfadapt("run", "grades.yaml", folder=made)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture
def cell(folder: Path) -> Cell:
    return Run(folder / "runs/grades").cell("one", "this-machine")


def test_nothing_of_it_is_known_here() -> None:
    added = {"tasks": "ordinal-classification", "schemas": "graded", "adapters": "ia3", "quants": "nf4-double",
             "formats": "flat", "objectives": "smoothed", "stages": "words"}  # fmt: skip
    assert added.keys() == registry.KINDS.keys() - {"modalities"}
    assert not [name for kind, name in added.items() if name in registry.names(kind)]


def test_every_record_is_of_it(cell: Cell) -> None:
    assert cell.state.status == "done"
    assert set(cell.state.stages) >= {"prepare", "plan", "words", "train", "evaluate", "card"}
    assert cell.data.form == "graded"
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert metrics["steps_off"].higher_is_better is False
    assert metrics["accuracy"].rows == metrics["steps_off"].rows > 0
    assert cell.train.method == "ia3"
    assert cell.train.fast_path == "plain" or "loss" not in cell.train.fast_path
    assert json.loads((cell.folder / "words.json").read_text())["different"] > 10
    assert cell.security is not None
    assert cell.drift is not None


def test_the_card_is_made_and_checked(folder: Path, cell: Cell) -> None:
    card = (cell.folder / "README.md").read_text()
    for said in ("steps_off", "ia3", "nf4-double", "## Vocabulary", "smoothed"):
        assert said in card, said
    checked = hfadapt("card", "check", cell.folder, folder=folder)
    # The tiny base has no licence, which is all that is missing.
    assert checked.stderr.count("fix:") <= 1, checked.stderr
    assert "Vocabulary" in (folder / "runs/grades/report.md").read_text()


def test_it_answers(folder: Path, cell: Cell) -> None:
    done = hfadapt("predict", cell.folder, "a lovely bright film", "a dreadful stale film", folder=folder)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"\b[15] \(", done.stdout)) <= {"1 (", "5 ("}
    assert len(done.stdout.split("(")) == 3


def test_it_is_exported_and_answers_from_there(folder: Path, cell: Cell, tmp_path: Path) -> None:
    done = hfadapt("export", cell.folder, "--format", "flat", "--to", tmp_path / "out", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/flat.safetensors").exists()
    told = hfadapt("predict", tmp_path / "out", "a lovely bright film", folder=folder)
    assert told.returncode == 0, told.stderr
    assert re.search(r"\b[15] \(", told.stdout)


def test_it_is_published_into_a_folder(folder: Path, cell: Cell, models: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(folder, tmp_path / "work"))
    own = work / cell.folder.relative_to(folder)
    done = hfadapt("publish", own, "--to", tmp_path / "hub", folder=work)
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "licence" in said, said


def test_resumed_it_is_done_already(folder: Path) -> None:
    again = hfadapt("run", "grades.yaml", folder=folder)
    assert again.returncode == 0, again.stderr
    assert "done already" in again.stdout + again.stderr
