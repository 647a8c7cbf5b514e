"""Forms of a runtime of their own: what the gate lets through, what it refuses, and what it says of each."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import command

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.export.gate import Gate, TestRows, agreement_asked, at_least, from_evaluation
from hfadapt.export.write import export
from hfadapt.formats import Form, Runner, Shape
from hfadapt.formats.merged import Merged
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.export import ExportLimits
from hfadapt.run_folder import Cell

PHONE = "android-8gb"
TEXTS = ["lovely bright film superb", "dreadful stale film awful", "the paper window"]


class Engine(Merged):
    """Runs a merged model as if it were another runtime; `coarse` rounds what its layers multiply by to 2 bits."""

    name = "engine"
    shape = Shape()

    @property
    def runtime(self):
        return "engine 1.2"

    def forms(self, lock):
        return tuple(Form("float32", True, own=name) for name in ("coarse", "exact"))

    def write(self, cell, form, folder, device):
        from safetensors.torch import load_file, save_file

        model = super().write(cell, Form("float32", True), folder, device)
        if form.own == "coarse":
            tensors = load_file(folder / "model.safetensors")
            for name, each in tensors.items():
                if each.ndim == 2:
                    step = each.abs().max() / 1.5
                    tensors[name] = ((each / step).round() * step).contiguous()
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return model

    def tolerance(self, cell, form):
        return None if form.own == "coarse" else 1e-4

    def reopen(self, cell, folder, device):
        plain = super().reopen(cell, folder, torch.device("cpu"))

        def run(arrays):
            with torch.inference_mode():
                return {"logits": plain(**{k: torch.from_numpy(v) for k, v in arrays.items()}).logits.numpy()}

        return Runner(run, {"input_ids": "int64", "attention_mask": "int64"}, plain.config, self.shape)


@pytest.fixture
def engine(monkeypatch):
    """The format, known to the registry."""
    kind = Engine()
    entry = EntryPoint("engine", "test_gate:KIND", "hfadapt.formats")
    monkeypatch.setattr(EntryPoint, "load", lambda self: kind)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    clear = (registry.names, registry.load)
    for each in clear:
        each.cache_clear()
    yield kind
    monkeypatch.undo()
    for each in clear:
        each.cache_clear()


def test_the_first_form_that_passes_is_written_and_all_are_shown(classifier, engine, tmp_path):
    done = export(classifier, "engine", tmp_path / "out")
    record = done.record
    assert (record.variant, record.forced, record.runtime) == ("exact", None, "engine 1.2")
    coarse, exact = record.judged
    assert coarse.refused
    assert not exact.refused
    assert exact.kl_nats < 1e-6 < coarse.kl_nats <= coarse.most_kl_nats
    assert exact.agreement == 1.0
    assert (exact.rows, exact.answers, exact.metric) == (24, 24, "accuracy")
    assert exact.points == 0
    assert exact.latency_ms > 0
    assert exact.bytes == (tmp_path / "out/model.safetensors").stat().st_size + sum(
        (tmp_path / "out" / name).stat().st_size for name in ("config.json",)
    )
    shown = " ".join(str(done).split())
    assert "refused" in shown
    assert "passes" in shown
    readme = (tmp_path / "out/README.md").read_text()
    assert "| exact |" in readme
    assert "run by engine 1.2" in readme
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "tokenizer.json", "export.json"}
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())
    expected = load_adapted(classifier.folder).predict(TEXTS)
    assert [each.label for each in load_adapted(tmp_path / "out").predict(TEXTS)] == [e.label for e in expected]


def test_what_is_refused_is_written_by_force_alone(classifier, engine, tmp_path):
    with pytest.raises(RunError) as caught:
        export(classifier, "engine", tmp_path / "out", variant="coarse")
    assert "coarse is refused" in str(caught.value)
    assert "nats per label, the limit is 0.02" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    done = export(classifier, "engine", tmp_path / "out", variant="coarse", force=True)
    assert done.record.forced.startswith("coarse is refused: ")
    assert "Exported by force" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(RequestError, match="no such variant") as wrong:
        export(classifier, "engine", tmp_path / "no", variant="fine")
    assert "coarse, exact" in str(wrong.value)


def test_the_recipe_says_format_form_and_limits(classifier, engine, tmp_path):
    import yaml

    cell = Cell(shutil.copytree(classifier.folder, tmp_path / "one/this-machine"))
    lock = yaml.safe_load((cell.folder / "lock.yaml").read_text())
    lock["export"] = {"format": "engine", "storage": "coarse"}
    (cell.folder / "lock.yaml").write_text(yaml.safe_dump(lock))
    assert command("export", cell.folder, "--to", tmp_path / "out").code == 1
    lock["export"]["limits"] = {"points": 100.0, "kl_nats": 100.0, "agreement": 0.0}
    (cell.folder / "lock.yaml").write_text(yaml.safe_dump(lock))
    said = command("export", cell.folder, "--to", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    record = json.loads(said.out)
    assert (record["format"], record["variant"], record["limits"]["agreement"]) == ("engine", "coarse", 0.0)
    # A form is one of its format's alone.
    assert command("export", cell.folder, "--to", tmp_path / "plain", "--format", "merged").code == 0


def test_a_form_beyond_the_budget_of_its_target_is_refused(classifier, engine, tmp_path):
    """What is written is weighed, and an estimate of the time there stands beside that of here."""
    cell = Cell(shutil.copytree(classifier.folder, tmp_path / "one" / PHONE))
    budget = {"bytes": 1000, "latency": 1e-6}
    cell.save_lock(cell.lock.model_validate({**cell.lock.model_dump(), "targets": [PHONE], "budgets": {PHONE: budget}}))
    with pytest.raises(RunError) as caught:
        export(cell, "engine", tmp_path / "out", variant="exact")
    assert f"on {PHONE} it takes" in str(caught.value)
    assert "DOES NOT FIT: 1000 B at most" in str(caught.value)
    done = export(cell, "engine", tmp_path / "out", variant="exact", force=True)
    (judged,) = done.record.judged
    assert judged.there_seconds > 0
    assert f"| {PHONE}, ×2 |" in (tmp_path / "out/README.md").read_text()
    near = {"bytes": 10**9, "latency": 1.5 * judged.there_seconds}
    cell.save_lock(cell.lock.model_copy(update={"budgets": {PHONE: Budget(**near)}}))
    done = export(cell, "engine", tmp_path / "near", variant="exact")
    assert done.record.judged[0].there.startswith("may fit")
    assert "passes, may fit" in (tmp_path / "near/README.md").read_text()


def test_a_size_that_rows_do_not_fit_is_refused(classifier, engine, tmp_path):
    engine.shape = Shape(rows=2, length=6)
    with pytest.raises(RunError) as caught:
        export(classifier, "engine", tmp_path / "out", variant="exact")
    assert "a row is longer than the file takes" in str(caught.value)
    engine.shape = Shape(rows=3, length=64)
    assert export(classifier, "engine", tmp_path / "out", variant="exact").record.judged[0].agreement == 1.0


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gate(classifier):
    return Gate(classifier, ExportLimits(), torch.device("cpu"))


def shifted(gate, change):
    """A runtime that gives the reference's logits, changed."""
    model = load_adapted(gate.cell.folder).model

    def run(arrays):
        with torch.inference_mode():
            logits = model(**{k: torch.from_numpy(v) for k, v in arrays.items()}).logits
        return {"logits": change(logits).numpy()}

    return Runner(run, {"input_ids": "int64", "attention_mask": "int64"}, model.config)


def judged(gate, change, tmp_path):
    return gate.judge(registry.format("merged"), Form("x", True, own="x"), tmp_path, shifted(gate, change), ())


def test_the_divergence_is_that_of_the_distributions(gate, tmp_path):
    found = judged(gate, lambda logits: 0.5 * logits, tmp_path)
    p = torch.cat(gate.reference.kept).double()
    expected = (p.softmax(-1) * (p.log_softmax(-1) - (0.5 * p).log_softmax(-1))).sum(-1)
    assert found.kl_nats == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.most_kl_nats == pytest.approx(float(expected.max()), rel=1e-4)
    assert found.agreement == 1.0
    assert any("nats per label" in why for why in found.refused)


def test_points_count_and_a_tie_does_not(gate, tmp_path):
    turned = judged(gate, lambda logits: -logits, tmp_path)
    scores = gate.reference.scores
    assert turned.points == pytest.approx(100 * (2 * float((scores.gold == scores.predictions).mean()) - 1))
    assert turned.points_low <= turned.points <= turned.points_high
    assert turned.decisive_agreement == 0.0
    assert len(turned.refused) == 3
    same = judged(gate, lambda logits: logits + 3.0, tmp_path)
    assert (same.points, same.refused) == (0.0, ())


def test_one_row_of_few_may_turn(gate):
    """24 rows: the smallest change there is, is 4.2 points."""
    values = dict.fromkeys(("points_low", "points_high", "kl_nats"), 0.0)
    few = SimpleNamespace(rows=24, metric="accuracy", decisive_agreement=None, decisive=0, alike="", **values)
    metric = SimpleNamespace(unit_range=True)
    for points, count in ((100 / 24, 0), (200 / 24, 1), (float("nan"), 1)):
        few.points = points
        assert len(list(gate._reasons(few, metric))) == count
    few.rows, few.points = 400, 0.75
    assert len(list(gate._reasons(few, metric))) == 1


def test_one_decided_answer_of_few_may_turn():
    """As one row may; of all that are asked for none may."""
    assert agreement_asked(0.99, 60) == 1 - 1 / 60
    assert agreement_asked(0.99, 200) == 0.99
    assert agreement_asked(1.0, 60) == 1.0
    assert agreement_asked(0.99, 0) == 0.99


def test_what_so_few_rows_may_show_by_chance_is_said_with_what_helps(gate):
    """2 of 197 answers are more than 1 %, and happen more often than not where 1 % turn; 12 do not."""
    assert at_least(2, 197, 0.01) == pytest.approx(0.588, abs=1e-3)
    assert at_least(12, 197, 0.01) < 1e-5
    # Words of many texts, whose binomial coefficients no float holds.
    assert at_least(500, 10_000, 0.01) < 1e-9
    assert at_least(0, 10_000, 0.01) == 1
    metric = SimpleNamespace(unit_range=True)
    found = SimpleNamespace(rows=200, kl_nats=0.0, points=1.5, points_low=-0.5, decisive=197)
    for turned, kl, low, few in (
        (2, 0.0, -0.5, True),
        (12, 0.0, -0.5, False),
        (2, 1.0, -0.5, False),
        (2, 0.0, 1, False),
    ):
        found.decisive_agreement, found.kl_nats, found.points_low = 1 - turned / 197, kl, low
        assert gate._few(found, metric) is few


def test_a_form_that_few_rows_refuse_names_more_rows_and_a_student(classifier, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "rounds", "rows")
    monkeypatch.setattr(Gate, "_few", lambda *_: True)
    with pytest.raises(RunError, match=r"data\.test: 400 in the place of \d+.*student\.int8: true"):
        export(classifier, "engine", tmp_path / "out", variant="coarse")


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_every_task_says_when_answers_are_alike(name):
    task = registry.task(name)
    torch.manual_seed(0)
    logits = torch.randn(40, 1 if task.outputs(("a", "b", "c")) == 1 else 3, dtype=torch.float64)
    unit = task.unit([logits[:20], logits[20:]])
    own = logits / unit
    alike, margin = task.alike(own, own)
    assert alike.all()
    assert alike.shape == margin.shape
    assert (margin >= 0).all()
    assert (margin <= 1).all()
    other, _ = task.alike(own, -own)
    assert float(other.double().mean()) < 0.2
    slightly, _ = task.alike(own, own * 1.0001)
    assert slightly.double().mean() > 0.97
    assert np.isfinite(float(task.divergence(own, own * 1.01).mean()))
    assert task.alike_means


def test_losses_that_depend_on_other_rows_are_compared_on_all_of_them_alone(classifier, monkeypatch):
    """Of some of the rows a search among all documents is another one."""
    rows = TestRows.of(classifier)
    scores = rows.scores(load_adapted(classifier.folder).model, torch.device("cpu"))
    assert from_evaluation(classifier, scores) < 1e-4
    fewer = replace(scores, losses=scores.losses[:10], tokens=scores.tokens[:10])
    assert from_evaluation(classifier, fewer) < 1e-4
    monkeypatch.setattr(type(registry.task(classifier.lock.task)), "joint", True)
    assert from_evaluation(classifier, scores) < 1e-4
    assert from_evaluation(classifier, fewer) is None
