"""The command line beside `run`: what every verb prints, and that wrong requests end with 2 and without a traceback."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from tiny import NO_CHECKS, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import __version__
from hfadapt.core import registry


@pytest.fixture(scope="module")
def ready(models, tmp_path_factory):
    """A trained cell of one domain."""
    folder = tmp_path_factory.mktemp("cli")
    write_rows(folder / "one.jsonl", labelled(80))
    fields = recipe_fields(models / "encoder")
    fields["evaluate"] |= NO_CHECKS
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


def test_version():
    assert command("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["list", "targets"], ("this-machine", "t4")),
        (["list", "tasks"], registry.names("tasks")),
        (["list", "adapters"], registry.names("adapters")),
        (["list", "quants"], registry.names("quants")),
        (["list", "samples"], ("sample:minilm-l6", "sample:vader/tweets")),
        (["list", "metrics"], ("accuracy", "perplexity")),
        (["list"], ("lora", "t4", "macro_f1")),
        (["show", "target", "t4"], ("memory", "https://")),
        (["show", "target", "this-machine"], ("memory", "cores")),
        (["show", "sample", "vader/tweets"], ("mit", "vaderSentiment")),
    ],
)
def test_what_can_be_named_is_listed(words, shown):
    done = command(*words)
    assert done.code == 0, done.err
    for name in shown:
        assert name.lower() in done.out.lower()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "adapter"], "did you mean 'adapters'"),
        (["show", "targets", "t4"], "did you mean 'target'"),
        (["show", "target", "rtx-4091"], "did you mean 'rtx-4090'"),
        (["show", "sample", "vader/tweet"], "did you mean 'vader/tweets'"),
        (["show", "run", "nowhere"], "there is no run in this folder"),
        (["report", "nowhere"], "not a run"),
        (["predict", "nowhere", "text"], "neither a run nor a cell"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run"], "RECIPE"),
        (["nothing"], "nothing"),
        (["run", "tiny.yaml", "--nothing"], "--nothing"),
        (["run", "tiny.yaml", "train.epoch=3"], "epochs"),
        (["run", "tiny.yaml", "train.epochs=many"], "train.epochs"),
        (["run", "tiny.yaml", "--domain", "two"], "one"),
        (["run", "tiny.yaml", "--target", "t44"], "t4"),
        (["run", "tiny.yaml", "quant=nf4", "adapter.method=pissa"], "pissa"),
    ],
)
def test_wrong_requests_end_with_2(ready, words, message):
    done = command(*words, folder=ready)
    assert done.code == (1 if words[:2] == ["show", "run"] else 2), done.err
    assert message in done.err
    assert "Traceback" not in done.err + done.out


def test_a_crash_is_one_line_and_a_file(ready, monkeypatch, tmp_path):
    import tempfile

    import hfadapt.pipeline.run

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def crash(*arguments, **options):
        raise ZeroDivisionError("by a fault")

    monkeypatch.setattr(hfadapt.pipeline.run, "plan_recipe", crash)
    done = command("plan", "tiny.yaml", folder=ready)
    assert done.code == 1
    assert done.err.splitlines()[0] == "ZeroDivisionError: by a fault"
    assert "Traceback" not in done.err
    [log] = tmp_path.glob("hfadapt-*.log")
    assert str(log) in done.err
    assert "Traceback" in log.read_text()


def test_plan_as_text_and_as_json(ready):
    shown = command("plan", "tiny.yaml", folder=ready)
    assert shown.code == 0, shown.err
    assert "fits" in shown.out
    plan = json.loads(command("plan", "tiny.yaml", "--json", folder=ready).out)
    [cell] = plan["cells"]
    assert (cell["domain"], cell["target"], cell["fits"]) == ("one", "this-machine", True)
    asked = {decision["field"] for decision in cell["decisions"] if decision["asked"]}
    assert "train.batch_rows" in asked
    assert all(decision["reason"] for decision in cell["decisions"])
    assert {phase["phase"] for phase in cell["memory"]} == {"load", "train", "evaluate", "save"}


def test_a_plan_for_another_target(ready):
    plan = json.loads(command("plan", "tiny.yaml", "--json", "--target", "t4", "--target", "l4", folder=ready).out)
    assert [cell["target"] for cell in plan["cells"]] == ["t4", "l4"]


def test_report_renews_the_report(ready):
    path = ready / "runs/tiny/report.json"
    before = path.read_text()
    path.unlink()
    done = command("report", "runs/tiny", "--json", folder=ready)
    assert done.code == 0, done.err
    assert [cell["domain"] for cell in json.loads(done.out)["cells"]] == ["one"]
    assert json.loads(path.read_text())["cells"] == json.loads(before)["cells"]
    assert "linear probe" in command("report", "runs/tiny", folder=ready).out


def test_predict(ready):
    done = command("predict", "runs/tiny", "a lovely film", "a dull film", folder=ready)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2
    assert all(line.split()[0] in ("good", "bad") and line.endswith("%)") for line in done.out.splitlines())
    answers = json.loads(command("predict", "runs/tiny/one/this-machine", "a lovely film", "--json", folder=ready).out)
    assert answers[0]["label"] == done.out.split()[0]
    assert 0.5 <= answers[0]["probability"] <= 1


def test_predict_from_a_file_and_standard_input(ready, tmp_path):
    said = command("predict", "runs/tiny", "a lovely film", "a dull film", folder=ready).out
    (tmp_path / "rows.txt").write_text("a lovely film\na dull film\n")
    assert command("predict", "runs/tiny", "--file", tmp_path / "rows.txt", folder=ready).out == said
    piped = subprocess.run(
        [sys.executable, "-m", "hfadapt", "predict", "runs/tiny", "-"],
        cwd=ready, input="a lovely film\na dull film\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert piped.stdout == said
    write_rows(tmp_path / "rows.jsonl", [{"text": "a lovely film", "id": 1}, {"id": 2}, {"text": "a dull film"}])
    done = command("predict", "runs/tiny", "--file", tmp_path / "rows.jsonl", folder=ready)
    assert done.code == 1
    assert [done.out.splitlines()[n] for n in (0, 2)] == said.splitlines()
    assert done.out.splitlines()[1] == ""
    assert f"line 2 of {tmp_path / 'rows.jsonl'} has no text, only id" in done.err
    assert "1 of 3 rows have no answer" in done.err
    long = command("predict", "runs/tiny", "a lovely film " * 200, folder=ready)
    assert long.out.rstrip().endswith("tokens were read]")
    assert "1 of 1 rows are longer than the model was trained to take, and were cut" in long.err
    out = tmp_path / "out.jsonl"
    done = command("predict", "runs/tiny", "--file", tmp_path / "rows.jsonl", "--output", out, folder=ready)
    assert (done.code, done.out) == (1, "")
    assert "2 answers of 3 rows" in done.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["row"], each.get("text"), "fault" in each) for each in lines] == [
        (0, "a lovely film", False),
        (1, None, True),
        (2, "a dull film", False),
    ]
    shown = command("predict", "runs/tiny", "--file", tmp_path / "rows.jsonl", "--output", "-", folder=ready)
    assert (shown.code, shown.out) == (1, out.read_text())
    assert not (ready / "-").exists()
    assert "exists already" in command("predict", "runs/tiny", "text", "--output", out, folder=ready).err
    blank = command("predict", "runs/tiny", "a lovely film", "  ", folder=ready)
    assert (blank.code, blank.out) == (1, said.splitlines()[0] + "\n")
    assert "a blank text" in blank.err
    assert "nothing to answer" in command("predict", "runs/tiny", folder=ready).err
    both = command("predict", "runs/tiny", "text", "--file", tmp_path / "rows.txt", folder=ready)
    assert (both.code, "leave one of them out" in both.err) == (2, True)


def test_predict_before_training(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(80))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder"))
    assert command("prepare", "tiny.yaml", folder=tmp_path).code == 0
    done = command("predict", "runs/tiny", "text", folder=tmp_path)
    assert done.code == 2
    assert "not trained yet" in done.err


def test_check(ready):
    done = command("check", "tiny.yaml", "--json", folder=ready)
    assert done.code == 0, done.err
    [record] = json.loads(done.out)
    assert record["rows_in"] == record["rows_kept"] + sum(record["dropped"].values()) == 80
    assert command("check", "tiny.yaml", folder=ready).code == 0


def test_doctor(cache_folder):
    done = command("doctor", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["verdict"] in ("ready", "limited")
    assert report["target"]["name"] == "this-machine"
    assert report["float32_tflops"] > 0
    assert {"torch", "transformers", "peft"} <= report["packages"].keys()


def test_libraries_are_quiet_in_every_command(monkeypatch):
    levels = []
    monkeypatch.setattr("hfadapt.cli.app.app", lambda **_: levels.append(logging.getLogger("torchao").level))
    before = logging.getLogger("torchao").level
    assert command("card", "check", "x").code == 0
    assert levels == [logging.ERROR]
    assert logging.getLogger("torchao").level == before
