"""Metrics that the rows of a task cannot have are refused before anything is done."""

from __future__ import annotations

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.records.evidence import DriftRecord, SecurityRecord
from hfadapt.stages import check_recipe


def asked(task, **evaluate):
    return Recipe(name="r", model="none", task=task, domains={"d": {"source": "a.jsonl"}}, evaluate=evaluate)


@pytest.mark.parametrize(
    ("task", "evaluate", "at"),
    [
        ("text-classification", {"metrics": ["accuracy", "pearson"]}, "evaluate.metrics[1]"),
        ("causal-lm", {"metrics": ["reward_accuracy"]}, "evaluate.metrics[0]"),
        ("embedding", {"metrics": ["accuracy"]}, "evaluate.metrics[0]"),
        ("text-regression", {"gates": {"macro_f1": 0.1}}, "evaluate.gates.macro_f1"),
    ],
)
def test_they_are_refused_with_those_there_are(task, evaluate, at):
    with pytest.raises(RequestError, match="have no such metric") as raised:
        check_recipe(asked(task, **evaluate))
    (problem,) = raised.value.problems
    assert problem.place == at
    assert registry.task(task).metrics[0] in problem.allowed


@pytest.mark.parametrize("task", registry.names("tasks"))
def test_those_of_the_task_are_not(task):
    check_recipe(asked(task, metrics=registry.task(task).metrics, gates={"loss": 0.0}))


def test_what_writes_may_write_classes():
    check_recipe(asked("causal-lm", metrics=["accuracy", "bleu", "perplexity"]))


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("text-classification", "perplexity"),
        ("text-classification", "label_accuracy"),
        ("image-classification", "label_accuracy"),
        ("token-classification", "perplexity"),
        ("embedding", "rmse"),
        ("preference", "accuracy"),
    ],
)
def test_what_says_nothing_of_a_task_is_not_among_its_metrics(task, metric):
    with pytest.raises(RequestError, match="have no such metric") as raised:
        check_recipe(asked(task, metrics=[metric]))
    assert metric not in raised.value.problems[0].allowed.split(", ")


def test_they_are_refused_with_their_line(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: sample:minilm-l6\ntask: text-classification\ndomains: {d: {source: a.csv}}\n"
        "targets: [this-machine]\nevaluate:\n  metrics:\n    - loss\n    - perplexity\n"
    )
    for overrides, line in ([], f"{path}:9"), (["evaluate.metrics=[perplexity]"], "command line"):
        with pytest.raises(RequestError) as raised:
            check_recipe(load_recipe(path, overrides))
        assert raised.value.problems[0].place.startswith(line)
        assert "evaluate.metrics[" in raised.value.problems[0].place


def test_the_same_adapter_on_the_same_rows_is_evaluated_once(models, tmp_path):
    """Before, targets that only serve were each evaluated for as long as the machine that trained for them."""
    write_rows(tmp_path / "one.jsonl", labelled(160))
    targets = ["this-machine", "browser-4gb", "raspberry-pi-4-4gb"]
    fields = recipe_fields(models / "encoder", train={"batch_rows": 8, "max_steps": 12}, targets=targets)
    fields["evaluate"] |= {"security": True, "drift": True}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("the evaluation of this-machine is taken") == 2
    first, *others = (Run(tmp_path / "runs/tiny").cell("one", target) for target in targets)
    predictions = (first.folder / "predictions.parquet").read_bytes()
    for cell in others:
        of_target = {"target": cell.target}
        assert cell.evaluation == first.evaluation.model_copy(update=of_target)
        assert cell.read(SecurityRecord) == first.read(SecurityRecord).model_copy(update=of_target)
        assert (cell.folder / "predictions.parquet").read_bytes() == predictions
        drift, whole = cell.read(DriftRecord), first.read(DriftRecord)
        assert {each.name for each in drift.variants} < {each.name for each in whole.variants}
        assert all(f"the target {cell.target} does not hold" in why for why in drift.skipped.values())
        assert {*drift.skipped} == {each.name for each in whole.variants} - {each.name for each in drift.variants}
        assert "done already" in command("evaluate", "tiny.yaml", folder=tmp_path).err
    # Alone it would have been found so.
    alone = {**fields, "targets": ["browser-4gb"]}
    write_recipe(tmp_path / "tiny.yaml", alone)
    assert command("evaluate", "tiny.yaml", "--runs", "alone", folder=tmp_path).code == 0
    cell = Run(tmp_path / "alone/tiny").cell("one", "browser-4gb")
    assert cell.evaluation.metrics == first.evaluation.metrics
    assert cell.read(DriftRecord).model_copy(update={"seconds": 0}) == others[0].read(DriftRecord).model_copy(
        update={"seconds": 0}
    )


def test_an_evaluation_with_other_settings_is_not_taken(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", train={"batch_rows": 8, "max_steps": 6}, targets=["this-machine"])
    write_recipe(tmp_path / "tiny.yaml", fields)
    assert command("evaluate", "tiny.yaml", folder=tmp_path).code == 0
    fields["targets"] += ["browser-4gb"]
    fields["evaluate"] |= {"resamples": 120}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert done.err.count("scoring the linear probe") == 1
    run = Run(tmp_path / "runs/tiny")
    assert [run.cell("one", target).evaluation.resamples for target in fields["targets"]] == [120, 120]
