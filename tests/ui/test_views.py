"""The pages show what the records say."""

from __future__ import annotations

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.core.show import Heading, Table, Text
from hfadapt.records.report import show_gain
from hfadapt.run_folder import read_rows
from hfadapt.ui import views


@pytest.fixture
def cell(run):
    return run.cell("one", "this-machine")


def test_the_matrix_has_metrics_with_their_intervals(run, cell):
    line = next(each for each in views.matrix(run) if each["domain"] == "one")
    metric = cell.evaluation.metrics[0]
    assert line["metrics"][0]["gain"] == show_gain(metric)
    assert "[" in line["metrics"][0]["gain"]
    assert [each["domain"] for each in views.matrix(run)] == ["one", "two"]


def test_the_surest_errors_are_shown_with_their_rows(cell):
    record, shown = cell.evaluation, views.worst_errors(cell)
    assert [each["row"] for each in shown] == [each.split_row for each in record.failures]
    rows = cell.read_split("test")
    assert all(each["text"] == " ".join(str(rows[each["row"]]["text"]).split()) for each in shown)


def test_test_rows_have_their_label_and_what_was_said(cell):
    said = read_rows(cell.folder / "predictions.parquet")
    wrong = {number for number, row in enumerate(said) if row["gold"] != row["adapter"]}
    found = views.listed_rows(cell)
    assert [view.label for view in found] == [row["label"] for row in cell.read_split("test")]
    assert {view.number for view in found if view.wrong} == wrong
    assert wrong >= {each.split_row for each in cell.evaluation.failures}
    with pytest.raises(RequestError, match="no such test row"):
        views.listed_rows(cell, [10_000])


def test_a_plan_for_another_target_asks_again_what_the_plan_had_answered(cell):
    recipe = views.asked_recipe(cell)
    assert (recipe.adapter.rank, recipe.quant, recipe.data.max_length) == ("auto", "auto", "auto")
    # What the recipe said stays.
    assert (recipe.dtype, recipe.train.max_steps, recipe.model) == ("float32", 6, cell.lock.model)
    same = views.plan_for(cell, "this-machine").cells[0]
    assert same.value("adapter.rank") == cell.plan.cells[0].value("adapter.rank")
    other = views.plan_for(cell, "rtx-3060").cells[0]
    assert other.target == "rtx-3060"
    assert other.budget_bytes != same.budget_bytes
    assert str(cell.lock.train.batch_rows) in str(other.value("train.batch_rows"))
    with pytest.raises(RequestError, match="no target of that name"):
        views.plan_for(cell, "a-toaster")


def test_formats_say_why_not(cell):
    found = dict(views.formats_of(cell))
    assert found["merged"] == ""
    assert "language models" in found["gguf"]


def test_names_lead_nowhere_else(run):
    for name in ("..", "../ui", ".", ""):
        with pytest.raises(views.Missing):
            views.found_run(run.folder.parent, name)
    with pytest.raises(views.Missing):
        views.found_cell(run.folder.parent, "tiny", "one", "..")


def test_blocks_are_escaped_and_scroll_with_the_keyboard():
    shown = views.framed([Heading("<b>"), Text("<i>", code=True), Table(["a<b", ""], [["<u>", "x"]])])
    assert not any(tag in shown for tag in ("<b>", "<i>", "<u>"))
    assert shown.count('tabindex="0"') == 2
    assert "<th></th>" not in shown
