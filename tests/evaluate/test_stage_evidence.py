"""evaluation.json of a classifier through the command line: evidence, metrics by path, gates, --fail-if-worse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import NO_CHECKS, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.core.hashing import json_sha256
from hfadapt.modalities.text import token_ids
from hfadapt.run_folder import Run

METRIC = """
import datasets
import evaluate

class Harsh(evaluate.Metric):
    higher_is_better = False

    def _info(self):
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Value("string")}))

    def _compute(self, predictions, references):
        return {"errors": sum(p != r for p, r in zip(predictions, references)) / len(references)}
"""


@pytest.fixture(scope="module")
def ready(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    write_rows(folder / "one.jsonl", labelled(160))
    fields = recipe_fields(models / "encoder", data={"validation": 16, "test": 64})
    fields["evaluate"] |= NO_CHECKS
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(ready, tmp_path):
    return Path(shutil.copytree(ready, tmp_path / "work"))


def cell(folder):
    return Run(folder / "runs/tiny").cell("one", "this-machine")


def test_everything_is_in_the_record(ready):
    found = cell(ready).evaluation
    assert [metric.name for metric in found.metrics] == ["accuracy", "macro_f1", "calibration_error", "loss"]
    assert {(part.by, part.rows) for part in found.slices if part.by == "class"} == {
        ("class", rows) for rows in (sum(row.values()) for row in found.confusion.values()) if rows >= 20
    }
    assert sum(part.rows for part in found.slices if part.by == "length") <= 64
    for part in found.slices:
        assert part.metric == "accuracy"
        assert part.low <= part.delta <= part.high
    assert sum(part.rows for part in found.calibration.base) == 64
    assert found.efficiency.adapter_bytes == cell(ready).train.adapter_bytes
    assert found.efficiency.generated_tokens_per_second is None
    assert found.general_text is None
    wrong = 64 - round(found.metrics[0].adapter * 64)
    assert len(found.failures) == min(20, wrong)
    mcnemar = found.paired_tests[0]
    delta = found.metrics[0].delta * 64
    assert mcnemar.better - mcnemar.worse == pytest.approx(delta)


def test_the_hash_is_of_what_both_models_saw(ready):
    from hfadapt.core import registry
    from hfadapt.data import read_split
    from hfadapt.models.load import load_processor, resolve_model

    own = cell(ready)
    tokenizer = load_processor(resolve_model(own.lock.model), "text")
    examples = registry.task(own.lock.task).encode(
        read_split(own.folder, "test"), tokenizer, max_length=own.lock.data.max_length, labels=own.data.labels
    )
    assert own.evaluation.prompts_sha256 == json_sha256([token_ids(example) for example in examples])


def test_the_failures_are_rows_of_the_test_split(ready):
    from pyarrow import parquet

    rows = parquet.read_table(cell(ready).folder / "predictions.parquet").to_pylist()
    for case in cell(ready).evaluation.failures:
        row = rows[case.split_row]
        assert (row["gold"], row["adapter"], row["base"]) == (case.gold, case.adapter, case.base)
        assert row["gold"] != row["adapter"]
        assert row["confidence"] == pytest.approx(case.confidence)


def test_a_metric_by_path_is_beside_ours_and_can_be_a_gate(folder):
    (folder / "harsh.py").write_text(METRIC)
    settings = ["evaluate.metrics=[accuracy, ./harsh.py]", "evaluate.gates={harsh: 0.9}"]
    done = command("evaluate", "tiny.yaml", *settings, folder=folder)
    assert done.code == 1
    found = cell(folder).evaluation
    accuracy, harsh = found.metrics
    assert harsh.name == "harsh"
    assert harsh.adapter == pytest.approx(1 - accuracy.adapter)
    assert harsh.delta == pytest.approx(-accuracy.delta)
    assert not harsh.higher_is_better
    assert harsh.low <= harsh.delta <= harsh.high
    assert found.gates_failed[0].startswith("harsh gained")


def test_a_gate_on_what_cannot_be_measured_is_refused(folder):
    done = command("evaluate", "tiny.yaml", "evaluate.gates={perplexity: 0.0}", folder=folder)
    assert done.code == 2
    assert "rows of text-classification have no such metric" in done.err
    assert "accuracy, calibration_error, loss, macro_f1" in done.err


def test_worse_than_the_baseline_is_an_exit_code(folder):
    """Four huge steps make a model that is surely wrong about half of the rows."""
    settings = ["tiny.yaml", "evaluate.metrics=[loss]", "train.learning_rate=0.9", "train.schedule=constant"]
    assert command("evaluate", *settings, folder=folder).code == 0
    assert cell(folder).evaluation.metrics[0].low > 0
    done = command("evaluate", *settings, "--fail-if-worse", folder=folder)
    assert done.code == 1
    assert "one on this-machine: the adapter is worse than the linear probe: loss +" in done.err
    assert cell(folder).state.status != "failed", "only the exit code says so"
