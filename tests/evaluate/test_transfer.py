"""The cross-domain matrix: what it holds, what it leaves out, when it is made again, and gates on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import LABELS, NO_CHECKS, command, labelled, pairs, recipe_fields, write_recipe, write_rows

from hfadapt.core.progress import Silent
from hfadapt.evaluate import transfer
from hfadapt.evaluate.context import open_context
from hfadapt.evaluate.transfer import measure_transfer
from hfadapt.hardware.processes import World
from hfadapt.models.attach import internal_name, open_adapter, open_adapters, use_adapter
from hfadapt.models.load import load_base
from hfadapt.run_folder import Run

CPU = torch.device("cpu")
NAMES = ("layer", "encoder", "grades")
"""Two of them are words of the encoder's module names, with which peft loses tensors (peft #3584)."""


@pytest.fixture(scope="module")
def ready(models, tmp_path_factory):
    """Two domains with the same labels and one with others, evaluated."""
    folder = tmp_path_factory.mktemp("transfer")
    for seed, name in enumerate(NAMES):
        rows = labelled(120, seed=seed)
        if name == "grades":
            rows = [{"text": row["text"], "label": "a" if row["label"] == LABELS[0] else "b"} for row in rows]
        write_rows(folder / f"{name}.jsonl", rows)
    domains = {name: {"source": f"{name}.jsonl"} for name in NAMES}
    fields = recipe_fields(models / "encoder", domains=domains, data__dedupe={"across_domains": False})
    fields["evaluate"] |= NO_CHECKS
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", "train.learning_rate=0.01", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(ready, tmp_path):
    return Path(shutil.copytree(ready, tmp_path / "work"))


def again(folder, *settings):
    return command("evaluate", "tiny.yaml", "train.learning_rate=0.01", *settings, folder=folder)


def cells(folder, *names):
    return [Run(folder / "runs/tiny").cell(name, "this-machine") for name in names or NAMES]


def test_every_adapter_on_every_domain_with_the_same_labels(ready):
    (found,) = Run(ready / "runs/tiny").transfer.targets
    assert (found.target, found.metric, found.higher_is_better) == ("this-machine", "accuracy", True)
    pairs = [(cell.adapter, cell.data) for cell in found.cells]
    same = ("encoder", "layer")
    assert set(pairs) == {*((adapter, data) for adapter in same for data in same), ("grades", "grades")}
    assert len(pairs) == 5
    skipped = {(pair.adapter, pair.data): pair.reason for pair in found.skipped}
    assert skipped.keys() == {*((name, "grades") for name in same), *(("grades", name) for name in same)}
    assert skipped["layer", "grades"] == "other labels: a, b"
    for cell in found.cells:
        assert cell.rows == 24
        assert cell.delta == pytest.approx(cell.value - cell.base)
        assert cell.low <= cell.delta <= cell.high


def test_the_diagonal_is_the_cells_own_evaluation(ready):
    (found,) = Run(ready / "runs/tiny").transfer.targets
    own = {cell.adapter: cell for cell in found.cells if cell.adapter == cell.data}
    for cell in cells(ready):
        accuracy = cell.evaluation.metrics[0]
        assert own[cell.domain].value == pytest.approx(accuracy.adapter)
        assert own[cell.domain].base == pytest.approx(accuracy.base)
        assert own[cell.domain].low == pytest.approx(accuracy.low)


def test_off_the_diagonal_is_the_other_adapter_on_these_rows(ready):
    """The same number by another way: the other adapter alone on its base, its context given the other rows."""
    (found,) = Run(ready / "runs/tiny").transfer.targets
    one, other = cells(ready, "layer", "encoder")
    context = open_context(one, CPU, Silent())
    foreign = open_context(other, CPU, Silent())
    scores = context.score(foreign.test)
    expected = float((scores.predictions == scores.gold).mean())
    assert next(c.value for c in found.cells if (c.adapter, c.data) == ("layer", "encoder")) == pytest.approx(expected)


def test_adapters_on_one_base_are_what_they_are_alone(ready):
    """With names that are words of the module's names, and a head each."""
    own = cells(ready, "layer", "encoder")
    lock, labels = own[0].lock, own[0].data.labels
    together = open_adapters(load_base(lock, labels, CPU), {cell.domain: cell.adapter for cell in own}, CPU)
    ids = torch.arange(6, 14)[None]
    logits = []
    for cell in own:
        use_adapter(together, cell.domain)
        alone = open_adapter(load_base(lock, labels, CPU), cell.adapter, "lora", CPU)
        with torch.inference_mode():
            logits.append(together(input_ids=ids).logits)
            assert torch.allclose(logits[-1], alone(input_ids=ids).logits, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1])
    assert internal_name("layer") in together.peft_config
    assert not any(parameter.requires_grad for parameter in together.parameters())


def test_it_is_kept_until_something_changes(folder, monkeypatch):
    path = folder / "runs/tiny/transfer.json"
    before = path.stat().st_mtime_ns
    done = again(folder)
    assert done.code == 0, done.err
    assert path.stat().st_mtime_ns == before
    assert "every adapter on every domain" not in done.err
    assert again(folder, "evaluate.resamples=150").code == 0
    assert path.stat().st_mtime_ns != before


def test_the_report_shows_it(ready):
    shown = command("report", "runs/tiny", folder=ready).out
    assert "every adapter on every domain: accuracy, higher is better" in shown
    line = next(line for line in shown.splitlines() if line.startswith("layer") and "(" in line)
    assert line.split()[-1] == "-", "the domain with other labels"
    assert "layer on grades: other labels: a, b" in shown
    report = json.loads((ready / "runs/tiny/report.json").read_text())
    assert report["transfer"][0]["metric"] == "accuracy"
    assert "every adapter on every domain" in (ready / "runs/tiny/report.md").read_text()


def test_rows_are_capped_and_spread(folder, monkeypatch):
    monkeypatch.setattr(transfer, "MOST_ROWS", 8)
    (found,) = measure_transfer(cells(folder, "layer", "encoder"), World()).targets
    assert {cell.rows for cell in found.cells} == {8}
    context = open_context(cells(folder, "layer")[0], CPU, Silent())
    scores = context.score([context.test[i] for i in range(0, 24, 3)])
    own = next(cell for cell in found.cells if cell.adapter == cell.data == "layer")
    assert own.value == pytest.approx(float(np.mean(scores.predictions == scores.gold)))


def test_each_card_is_made_once_with_its_row_and_reports_leave_cards_alone(folder, monkeypatch):
    from hfadapt.card import build

    made, build_card = [], build.build_card
    monkeypatch.setattr(build, "build_card", lambda cell: made.append(cell.domain) or build_card(cell))

    def run(*settings):
        made.clear()
        done = command("run", "tiny.yaml", "train.learning_rate=0.01", *settings, folder=folder)
        assert done.code == 0, done.err

    run()
    assert sorted(made) == sorted(NAMES)
    assert "| `encoder` |" in (cells(folder, "layer")[0].folder / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for cell in cells(folder) for path in cell.folder.rglob("*.*")}
    assert command("report", "runs/tiny", folder=folder).code == 0
    run()
    assert made == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # The matrix is of another metric now, so the cards of the other domains are no longer what their records say.
    run("evaluate.metrics=[loss]", "--domain", "layer")
    assert sorted(made) == sorted(NAMES)


def test_one_domain_has_no_matrix(folder):
    assert measure_transfer(cells(folder, "layer"), World()) is None
    (folder / "runs/tiny/transfer.json").unlink()
    assert again(folder, "evaluate.transfer=false").code == 0
    assert Run(folder / "runs/tiny").transfer is None


def test_a_gate_on_transfer_fails_the_cell_and_lets_it_pass_again(folder):
    done = again(folder, "evaluate.gates={transfer: 0.99}")
    assert done.code == 1
    states = {cell.domain: cell.state for cell in cells(folder)}
    assert states["layer"].status == states["encoder"].status == "failed"
    assert "on encoder accuracy gained" in states["layer"].error
    assert states["grades"].status != "failed", "it was on no other domain"
    assert again(folder, "evaluate.gates={transfer: -1.0}").code == 0
    assert {cell.state.error for cell in cells(folder)} == {None}


def test_a_damaged_adapter_is_trained_again(folder):
    weights = cells(folder, "encoder")[0].adapter / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    (folder / "runs/tiny/transfer.json").unlink()
    done = again(folder)
    assert done.code == 0, done.err
    assert weights.read_bytes() == before
    assert Run(folder / "runs/tiny").transfer is not None


def test_an_adapter_that_is_damaged_meanwhile_costs_the_matrix_but_no_cell(folder):
    (cells(folder, "encoder")[0].adapter / "adapter_model.safetensors").write_bytes(b"broken")
    (folder / "runs/tiny/transfer.json").unlink()
    with mock.patch("hfadapt.stages.train.Train.intact", return_value=True):
        done = again(folder)
    assert done.code == 0, done.err
    assert "cross-domain evaluation failed" in done.err
    assert Run(folder / "runs/tiny").transfer is None
    assert {cell.state.status for cell in cells(folder)} == {"pending"}


@pytest.mark.parametrize("method", ["full", "head", "pissa"])
def test_other_methods_have_the_diagonal_of_their_own_evaluation(models, tmp_path, method):
    for seed, name in enumerate(("layer", "encoder")):
        write_rows(tmp_path / f"{name}.jsonl", labelled(120, seed=seed))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("layer", "encoder")}
    fields = recipe_fields(models / "encoder", domains=domains, adapter={"method": method}, dtype="float32")
    fields["evaluate"] |= NO_CHECKS
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    (found,) = Run(tmp_path / "runs/tiny").transfer.targets
    assert len(found.cells) == 4
    own = {cell.adapter: cell.value for cell in found.cells if cell.adapter == cell.data}
    for cell in cells(tmp_path, "layer", "encoder"):
        assert own[cell.domain] == pytest.approx(cell.evaluation.metrics[0].adapter)


def test_language_models_need_the_same_answers_where_they_choose(models, tmp_path):
    """Two domains answer good or bad, a third yes or no: the choice cannot be compared, the perplexity can."""
    for seed, name in enumerate(("one", "two", "three")):
        rows = pairs(80, seed)
        if name == "three":
            rows = [{**row, "completion": " music" if "good" in row["completion"] else " bread"} for row in rows]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two", "three")}
    fields = recipe_fields(models / "lm", "causal-lm", domains=domains)
    fields["evaluate"] |= {**NO_CHECKS, "general_text": False}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    (found,) = Run(tmp_path / "runs/tiny").transfer.targets
    assert found.metric == "label_accuracy"
    assert {(cell.adapter, cell.data) for cell in found.cells if cell.adapter != cell.data} == {
        ("one", "two"),
        ("two", "one"),
    }
    reasons = {pair.name: pair.reason for pair in found.skipped}
    assert reasons["one on three"].startswith("other answers: ")
    assert command("evaluate", "tiny.yaml", "evaluate.metrics=[perplexity]", folder=tmp_path).code == 0
    (found,) = Run(tmp_path / "runs/tiny").transfer.targets
    assert (found.metric, found.higher_is_better, len(found.cells), found.skipped) == ("perplexity", False, 9, ())
    by_pair = {(cell.adapter, cell.data): cell for cell in found.cells}
    evaluation = cells(tmp_path, "three")[0].evaluation
    assert by_pair["three", "three"].value == pytest.approx(evaluation.metrics[0].adapter, rel=1e-3)
    assert by_pair["one", "three"].base == pytest.approx(evaluation.metrics[0].base, rel=1e-6)
