"""Trackers, each for real and offline: what they hold after a run of two domains, and after one that goes on."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.train import trackers
from hfadapt.train.trackers import ALL, Tracked, known

HERE = [name for name, each in ALL.items() if find_spec(each.package)]
STEPS = 4


def needs(name):
    return pytest.mark.skipif(name not in HERE, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """A run with all trackers that are installed, which end with the evaluation, the card and the page of the run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        write_rows(folder / "one.jsonl", labelled(60))
        train = {"batch_rows": 8, "max_steps": STEPS, "learning_rate": 0.01, "trackers": HERE}
        fields = recipe_fields(models / "encoder", "text-classification", train=train)
        fields["evaluate"] |= {"security": False, "drift": False}
        write_recipe(folder / "tiny.yaml", fields)
        done = command("run", "tiny.yaml", folder=folder)
        assert done.code == 0, done.err
        assert "did not take" not in done.err + done.out, done.err
        again = command("run", "tiny.yaml", folder=folder)
        assert "tracking" not in again.err
        yield folder / "runs/tiny"


@pytest.fixture(scope="module")
def tracked(run) -> Tracked:
    found = known(run / "trackers", "one-this-machine")
    assert found is not None
    assert sorted(found.ids) == sorted(HERE)
    return found


@pytest.fixture(scope="module")
def accuracy(run) -> float:
    record = json.loads((run / "one/this-machine/evaluation.json").read_text(encoding="utf-8"))
    return next(each["adapter"] for each in record["metrics"] if each["name"] == "accuracy")


@needs("tensorboard")
def test_tensorboard(run, tracked, accuracy):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "trackers/one-this-machine/tiny"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == [*range(1, STEPS + 1)]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(accuracy)
    assert "README.md/text_summary" in events.Tags()["tensors"]
    names = {path.name for path in (folder / "files").iterdir()}
    assert {"README.md", "evaluation.json", "loss.svg", "report.html", "lock.yaml"} <= names
    assert (folder / "files/evaluation.json").read_bytes() == (run / "one/this-machine/evaluation.json").read_bytes()


@needs("wandb")
def test_wandb_offline(run, tracked):
    """Two parts with one id, which `wandb sync` makes one run of."""
    parts = sorted((run / "trackers/wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert all(part.name.endswith(tracked.ids["wandb"]) for part in parts)
    written = b"".join(path.read_bytes() for part in parts for path in part.glob("*.wandb"))
    assert b"adapter.method" in written
    assert b"grad_norm" in written
    assert b"test/accuracy" in written
    assert b"evaluation.json" in written
    media = [path for part in parts for path in part.rglob("*.html")]
    assert any("<svg" in path.read_text(encoding="utf-8") for path in media)


@needs("mlflow")
def test_mlflow_file_store(run, tracked, accuracy):
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "trackers/mlruns").resolve().as_uri())
    found = client.get_run(tracked.ids["mlflow"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "one-this-machine"
    assert found.data.params["task"] == "text-classification"
    assert found.data.metrics["test/accuracy"] == pytest.approx(accuracy)
    assert len(client.get_metric_history(found.info.run_id, "loss")) == STEPS
    names = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert {"README.md", "evaluation.json", "loss.svg", "report.html"} <= names


@needs("trackio")
def test_trackio(run, tracked, accuracy, monkeypatch):
    import sqlite3

    (base,) = (run.parents[1] / "trackio").glob("tiny*.db")
    with sqlite3.connect(base) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert sum("loss" in each for each in rows) == STEPS
    (last,) = (each for each in rows if "test/accuracy" in each)
    assert last["test/accuracy"] == pytest.approx(accuracy)
    assert "README" in last


def test_what_fails_is_said_and_spoils_nothing(tmp_path, monkeypatch):
    class Broken(trackers.Tracker):
        name = "broken"

        def keep(self, place, tracked, values, files):
            raise OSError("no\nroom")

    monkeypatch.setattr(trackers, "ALL", {"broken": Broken()})
    Tracked(project="p", run="r", identity="i", ids={"broken": "1"}).write(tmp_path / "r/tracked.json")
    (said,) = trackers.keep(tmp_path, "r", ["broken"], {}, [])
    assert said == "broken did not take the evaluation: OSError: no room"
    (said,) = trackers.keep(tmp_path, "other", ["broken"], {}, [])
    assert "it has no run of this training" in said


def test_a_training_that_goes_on_is_the_same_run(tmp_path):
    from accelerate import Accelerator

    asked = Tracked(project="p", run="r", identity="one", ids={})
    names = [name for name in HERE if name == "tensorboard"]
    accelerator = Accelerator(cpu=True, log_with=names, project_dir=str(tmp_path))
    begun = trackers.start(accelerator, tmp_path, asked, names, {"a": {"b": 1}})
    assert trackers.start(accelerator, tmp_path, asked, names, {}).ids == begun.ids
    other = trackers.start(accelerator, tmp_path, asked.model_copy(update={"identity": "two"}), names, {})
    assert not names or other.ids != begun.ids
    accelerator.end_training()


def test_a_missing_package_is_named_before_anything_is_done(models, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    write_rows(tmp_path / "one.jsonl", labelled(20))
    fields = recipe_fields(models / "encoder", "text-classification", train={"trackers": ["mlflow", "tensorboard"]})
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 2
    for part in ("train.trackers", "no mlflow, no tensorboard", "hfadapt[mlflow]", "hfadapt[tensorboard]"):
        assert part in done.err
    assert not (tmp_path / "runs/tiny/one").exists()


def test_long_names_fit_a_folder():
    name = trackers.run_name([f"domain{number}" for number in range(60)], "this-machine")
    assert len(name) < 120
    assert name != trackers.run_name([f"domain{number}" for number in range(61)], "this-machine")
