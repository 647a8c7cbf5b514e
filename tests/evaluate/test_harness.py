"""lm-evaluation-harness on the loaded base and adapter, with a local task; and what is said where it is missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import NO_CHECKS, command, pairs, recipe_fields, write_recipe, write_rows

from hfadapt.core.errors import RequestError
from hfadapt.evaluate.harness import _metrics, run_harness
from hfadapt.run_folder import Run

TASK = """
task: own_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: [" bad", " good"]
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: brier_score
    aggregation: brier_score
    higher_is_better: false
"""


def prepared(models, folder, tasks="./tasks"):
    rows = pairs(100, seed=3)
    write_rows(folder / "one.jsonl", pairs(120))
    (folder / "tasks").mkdir()
    data = folder / "choices.jsonl"
    write_rows(data, [{"prompt": row["prompt"], "target": int("good" in row["completion"])} for row in rows[:40]])
    (folder / "tasks/own.yaml").write_text(TASK.format(data=data))
    fields = recipe_fields(
        models / "lm",
        "causal-lm",
        evaluate={
            **NO_CHECKS,
            **{"resamples": 200, "general_text": False, "harness": [tasks], "gates": {"own_choice_acc": -1.0}},
        },
        train={"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01},
    )
    write_recipe(folder / "tiny.yaml", fields)


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness, of hfadapt[dev], is not installed")
    folder = tmp_path_factory.mktemp("harness")
    prepared(models, folder)
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("tasks", ["./tasks", "tasks/own.yaml"])
def test_a_local_task_is_scored_for_base_and_adapter(trained, tasks):
    done = command("evaluate", "tiny.yaml", f"evaluate.harness=[{tasks}]", folder=trained)
    assert done.code == 0, done.err
    assert "step 1/" not in done.err
    evaluation = Run(trained / "runs/tiny").cell("one", "this-machine").evaluation
    found = {metric.name: metric for metric in evaluation.harness}
    accuracy = found["own_choice_acc"]
    assert accuracy.rows == 40
    assert accuracy.adapter > accuracy.base, "the words say the answer, as in the data it was trained on"
    assert accuracy.low <= accuracy.delta <= accuracy.high
    brier = found["own_choice_brier_score"]
    assert not brier.higher_is_better
    assert (brier.low, brier.rows) == (None, 40), "no mean over documents, so no interval"


def test_without_the_extra_the_recipe_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr("hfadapt.recipe.source_rules.importlib.util.find_spec", lambda name: None)
    prepared(models, tmp_path)
    done = command("plan", "tiny.yaml", folder=tmp_path)
    assert done.code == 2
    assert "lm-evaluation-harness is not installed" in done.err
    assert "pip install 'hfadapt[harness]'" in done.err
    assert not (tmp_path / "runs").exists()


def test_it_says_what_to_install_when_it_is_needed_later(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    context = SimpleNamespace(lock=SimpleNamespace(evaluate=SimpleNamespace(harness=("arc_easy",))))
    with pytest.raises(RequestError, match="not installed") as caught:
        run_harness(context, None)
    assert "hfadapt[harness]" in str(caught.value)


def test_a_value_that_is_no_number_costs_only_itself():
    """The perplexity of an answer that the base finds impossible is infinite."""
    evaluate = SimpleNamespace(resamples=10, confidence=0.95)
    context = SimpleNamespace(lock=SimpleNamespace(evaluate=evaluate, data=SimpleNamespace(seed=1)))
    base, adapter = (
        {"results": {"task": {"perplexity,none": own, "nats,none": 1.0, "acc,none": other}}}
        for own, other in ((float("inf"), 0.5), (7.0, float("nan")))
    )
    found = {metric.name: (metric.base, metric.adapter, metric.delta) for metric in _metrics(base, adapter, context)}
    assert found == {"task_perplexity": (None, 7.0, None), "task_nats": (1.0, 1.0, 0.0)}


def test_a_task_file_that_is_not_there_is_refused(models, tmp_path):
    prepared(models, tmp_path, "./taks")
    done = command("plan", "tiny.yaml", "--json", folder=tmp_path)
    assert done.code == 2
    assert "there is no such file" in done.err
    assert "did you mean 'tasks'?" in done.err
