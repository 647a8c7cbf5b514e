"""Numbers for texts: metrics as scipy has them, heads that begin where the labels are, and a whole run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import check_recipe
from hfadapt.core.errors import DataError
from hfadapt.core.progress import Silent
from hfadapt.evaluate.context import open_context
from hfadapt.evaluate.drift import Reference
from hfadapt.evaluate.metrics.rows import compare
from hfadapt.run_folder import Cell
from hfadapt.schemas import Unusable
from hfadapt.schemas.scored import KIND as SCHEMA
from hfadapt.tasks import Scores
from hfadapt.tasks.text_regression.task import KIND

HOW = {"resamples": 50, "confidence": 0.95, "seed": 1}


def scores(gold, predictions):
    gold, predictions = np.array(gold, dtype=float), np.array(predictions, dtype=float)
    return Scores(gold, predictions, None, (gold - predictions) ** 2, np.ones(len(gold)), "number")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_metrics_are_scipys(pairs):
    gold, predictions = (np.array(part, dtype=float) for part in zip(*pairs, strict=True))
    found = {name: compare(name, None, scores(gold, predictions), **HOW).adapter for name in KIND.metrics}
    assert found["mae"] == pytest.approx(np.abs(gold - predictions).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(((gold - predictions) ** 2).mean()))
    if gold.std() and predictions.std():
        assert found["pearson"] == pytest.approx(stats.pearsonr(gold, predictions).statistic, abs=1e-6)
        assert found["spearman"] == pytest.approx(stats.spearmanr(gold, predictions).statistic, abs=1e-6)


def test_a_fresh_head_begins_at_the_mean_of_the_labels():
    head, targets = torch.nn.Sequential(torch.nn.Linear(64, 1)), [80.0, 90.0, 100.0, 70.0]
    before = head[0].weight.detach().clone()
    KIND.start_head(head, targets)
    assert float(head[0].bias.detach()) == pytest.approx(np.mean(targets))
    assert torch.allclose(head[0].weight, before * float(np.std(targets, ddof=1)))


@pytest.mark.parametrize("value", ["1,234", "good", None, float("nan"), "inf", True])
def test_what_is_no_number_is_not_used(value):
    with pytest.raises(Unusable) as caught:
        SCHEMA.make({"text": "so", "label": value}, str)
    assert caught.value.reason == "not-a-number"


def test_numbers_are_read_from_text():
    assert SCHEMA.make({"text": "so", "label": " -1.5 "}, str) == {"text": "so", "label": -1.5}
    assert SCHEMA.make({"text": "so", "label": "3,5"}, str)["label"] == 3.5
    assert SCHEMA.likely([1.5, 2.0, 3.25])
    assert not SCHEMA.likely(["1", "2", "3"])


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    rows = [{"text": row["text"], "label": 80.5 + 20 * (row["label"] == "good") + n % 7} for n, row in
            enumerate(labelled(160))]  # fmt: skip
    write_rows(folder / "one.jsonl", rows)
    fields = recipe_fields(models / "encoder", "text-regression", dtype="float32")
    fields["train"] |= {"max_steps": 60, "learning_rate": 0.01}
    fields["evaluate"] = {"resamples": 200, "security": True, "drift": True,
                          "drift_limits": {"kl_nats": 1e3, "points": 1e3}}  # fmt: skip
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/tiny/one/this-machine")


def test_a_run_learns_and_proves_it(cell):
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert list(metrics) == list(KIND.metrics)
    assert metrics["rmse"].adapter < 12
    assert not cell.evaluation.confusion
    assert cell.evaluation.calibration is None
    assert cell.data.labels == ()
    assert {change.metric for change in cell.security.robustness} == {"rmse"}
    card = (cell.folder / "README.md").read_text()
    assert "rmse" in card
    drift = cell.drift
    assert all(each.kl_nats is None and each.spreads >= 0 for each in drift.variants)
    assert drift.limit == pytest.approx(2000**0.5)
    merging = card.partition("## Merging and storage")[2].partition("\n## ")[0]
    assert "| difference, spreads |" in merging
    assert "in spreads (standard deviations) of its answers" in (cell.folder.parents[1] / "report.html").read_text()
    for text in (merging, (cell.folder.parents[1] / "report.html").read_text().partition('id="drift"')[2][:20_000]):
        assert "nats" not in text.partition("</section>")[0]


def test_it_answers_in_the_users_unit(cell, tmp_path):
    from hfadapt import load_adapted

    (answer,) = load_adapted(cell.folder).predict("a lovely bright film")
    assert 70 < answer.number < 120
    assert str(answer) == f"{answer.number:.4g}"
    done = command("export", cell.folder, "--format", "merged", "--to", tmp_path / "out", folder=tmp_path)
    assert done.code == 0, done.err
    (again,) = load_adapted(tmp_path / "out").predict("a lovely bright film")
    assert again.number == pytest.approx(answer.number, rel=1e-3)


def test_numbers_drift_in_units_of_their_spread(models, tmp_path):
    """The same adapter, asked in euros and in cents: what rounding changes is as much of the spread."""
    write_rows(tmp_path / "one.jsonl", [{**row, "label": 1000.0 + 700 * (n % 3)} for n, row in enumerate(labelled(80))])
    train = {"batch_rows": 8, "max_steps": 8, "learning_rate": 0.01}
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", "text-regression", train=train))
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    context = open_context(Cell(tmp_path / "runs/tiny/one/this-machine"), torch.device("cpu"), Silent())
    reference = Reference(context, context.test)
    spread = float(torch.cat(reference.kept).std(correction=0))
    assert reference.unit == pytest.approx(spread)
    moved = [each + 0.1 * spread for each in reference.kept]
    reference.kept = moved
    assert reference.compared(context.model, torch.device("cpu"))[1] == pytest.approx(0.5 * 0.1**2, rel=1e-3)


def test_numbers_of_which_only_small_ones_can_be_read_are_refused(models, tmp_path):
    numbers = (f"{n * 97:,}".replace(",", ".") for n in range(40))
    lines = "\n".join(f"a text of {n} words;{number},5" for n, number in enumerate(numbers))
    (tmp_path / "d.csv").write_text(f"text;label\n{lines}\n")
    recipe = {"name": "r", "model": str(models / "encoder"), "task": "text-regression"}
    with pytest.raises(DataError, match="have no number where one is needed") as raised:
        check_recipe({**recipe, "domains": {"d": str(tmp_path / "d.csv")}})
    assert "'1.067,5' where a number is needed" in str(raised.value)
    assert "marks between thousands" in str(raised.value)
