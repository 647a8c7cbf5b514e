"""Another package adds a task, a row schema, a method, a quant, a format, an objective, a stage, a converter and a
backend (tests/extras): the command line takes them from a recipe to a checked card, answers, an exported folder and a
published one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Done, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core import registry
from hfadapt.run_folder import Cell

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


SESSION = "import json, sys, tiny; print(json.dumps([vars(tiny.command(*words)) for words in json.load(sys.stdin)]))"
"""Commands one after the other in one process: most of the time of a small one is the import of the libraries."""


def python(*arguments: object, folder: Path, **options: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, with the package beside hfadapt as pip would install it."""
    path = os.pathsep.join(map(str, (ROOT, TESTS, TESTS / "extras/installed")))
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **options)


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
    return made


@pytest.fixture
def cell(folder: Path, commands: dict[str, Done]) -> Cell:
    assert commands["first run"].code == 0, commands["first run"].out + commands["first run"].err
    return Run(folder / "runs/grades").cell("one", "this-machine")


@pytest.fixture(scope="module")
def commands(folder: Path) -> dict[str, Done]:
    """What each command says: a run, and what is done with it."""
    own = folder / "runs/grades/one/this-machine"
    texts = ("a lovely bright film", "a dreadful stale film")
    asked = {
        "first run": ("run", "grades.yaml"),
        "check": ("card", "check", own),
        "predict": ("predict", own, *texts),
        "export": ("export", own, "--format", "flat", "--to", "exported"),
        "predict exported": ("predict", "exported", texts[0]),
        "run": ("run", "grades.yaml"),
        "publish": ("publish", own, "--to", "hub"),
        "spread": ("run", "grades.yaml", "domains.one.license=cc-by-4.0", "--on", "in-turn"),
    }
    lines = json.dumps([[str(word) for word in words] for words in asked.values()])
    done = python("-c", SESSION, folder=folder, input=lines)
    assert done.returncode == 0, done.stderr
    return {name: Done(**said) for name, said in zip(asked, json.loads(done.stdout), strict=True)}


def test_nothing_of_it_is_known_here() -> None:
    added = {"tasks": "ordinal-classification", "schemas": "graded", "adapters": "ia3", "quants": "nf4-double",
             "formats": "flat", "objectives": "smoothed", "stages": "words", "converters": "nobodys",
             "backends": "in-turn"}  # fmt: skip
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


def test_the_card_is_made_and_checked(folder: Path, cell: Cell, commands: dict[str, Done]) -> None:
    card = (cell.folder / "README.md").read_text()
    for said in ("steps_off", "ia3", "nf4-double", "## Vocabulary", "smoothed"):
        assert said in card, said
    # The tiny base has no licence, which is all that is missing.
    assert commands["check"].err.count("fix:") <= 1, commands["check"].err
    assert "Vocabulary" in (folder / "runs/grades/report.md").read_text()


def test_its_backend_does_what_is_left(cell: Cell, commands: dict[str, Done]) -> None:
    done = commands["spread"]
    assert done.code == 0, done.err
    assert "in turn: 0001-card-one-this-machine" in done.err
    assert cell.data.sources[0].license == "cc-by-4.0", "the card's stage has brought it there"


def test_it_answers(commands: dict[str, Done]) -> None:
    done = commands["predict"]
    assert done.code == 0, done.err
    assert set(re.findall(r"\b[15] \(", done.out)) <= {"1 (", "5 ("}
    assert len(done.out.split("(")) == 3


def test_it_is_exported_and_answers_from_there(folder: Path, commands: dict[str, Done]) -> None:
    done = commands["export"]
    assert done.code == 0, done.out + done.err
    assert (folder / "exported/flat.safetensors").exists()
    told = commands["predict exported"]
    assert told.code == 0, told.err
    assert re.search(r"\b[15] \(", told.out)


def test_it_is_published_into_a_folder(commands: dict[str, Done]) -> None:
    done = commands["publish"]
    assert done.code == 0 or "licence" in done.out + done.err, done.out + done.err


def test_resumed_it_is_done_already(commands: dict[str, Done]) -> None:
    done = commands["run"]
    assert done.code == 0, done.err
    assert "done already" in done.out + done.err


def test_files_of_a_tool_of_another_package_are_converted(folder: Path):
    (folder / "theirs.yaml").write_text("net: a/b\nrows: c/d\npace: 0.001\nnoise: 3\n")
    done = python("-m", "hfadapt", "convert", "theirs.yaml", "-o", "ours.yaml", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tool"] == "Nobody's tool"
    assert [line["field"] for line in found["lacking"]] == ["noise"]
    assert "learning_rate: 0.001" in (folder / "ours.yaml").read_text()
