"""Metrics that the rows of a task cannot have are refused before anything is done."""

from __future__ import annotations

import pytest

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
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
