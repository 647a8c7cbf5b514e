"""Metrics that the rows of a task cannot have are refused before anything is done."""

from __future__ import annotations

import pytest

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe
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
