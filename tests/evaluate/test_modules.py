"""Our metrics as classes of `evaluate`, and a user's own module in the comparison."""

from __future__ import annotations

import numpy as np
import pytest

from hfadapt.core.errors import RequestError
from hfadapt.evaluate.metrics.modules import RowMetricModule, compare_module, load_module
from hfadapt.evaluate.metrics.rows import METRICS
from hfadapt.evaluate.metrics.text import Texts
from hfadapt.tasks import Scores

MODULE = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=datasets.Features(
            {{"predictions": datasets.Value("{kind}"), "references": datasets.Value("{kind}")}}))

    def _compute(self, predictions, references):
        {body}
"""
HITS = 'return {"hits": sum(p == r for p, r in zip(predictions, references)) / len(references)}'


def module(folder, name="own", kind="int64", body=HITS):
    path = folder / f"{name}.py"
    path.write_text(MODULE.format(kind=kind, body=body))
    return path


def scores(predictions, gold):
    none = np.zeros(len(gold))
    return Scores(np.array(gold), np.array(predictions), None, none, none)


def compared(path, base, adapter, gold, texts=None, **more):
    options = {"resamples": 300, "confidence": 0.95, "seed": 1, **more}
    return compare_module(path, scores(base, gold), scores(adapter, gold), texts, ("no", "yes"), **options)


def test_every_metric_is_a_module():
    assert all(RowMetricModule(name).description for name in METRICS)
    assert RowMetricModule("accuracy").compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {
        "accuracy": pytest.approx(2 / 3)
    }
    assert RowMetricModule("rouge_l").compute(predictions=["a b"], references=["a c"]) == {
        "rouge_l": pytest.approx(0.5)
    }
    found = RowMetricModule("calibration_error").compute(predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 0])
    assert found == {"calibration_error": pytest.approx((abs(0.9 - 1) + 0.8) / 2)}
    losses = RowMetricModule("perplexity").compute(predictions=[2.0, 4.0], references=[1, 2])
    assert losses == {"perplexity": pytest.approx(np.exp(2.0))}


def test_a_module_takes_batches():
    metric = RowMetricModule("macro_f1")
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"macro_f1": pytest.approx(2 / 3)}


def test_a_module_of_ones_own_is_compared(tmp_path):
    gold = [0, 1] * 30
    (found,) = compared(module(tmp_path), [0] * 60, gold, gold)
    assert (found.name, found.rows) == ("own", 60)
    assert (found.base, found.adapter, found.delta) == (0.5, 1.0, 0.5)
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    assert compared(module(tmp_path), [0] * 60, gold, gold)[0] == found


def test_a_folder_is_a_module_too(tmp_path):
    (tmp_path / "own").mkdir()
    module(tmp_path / "own")
    assert load_module(tmp_path / "own").name == "own"


def test_strings_get_names_or_generated_texts(tmp_path):
    path = module(
        tmp_path, kind="string", body='return {"yes": float(predictions.count("yes")), "n": len(predictions)}'
    )
    found = {metric.name: metric for metric in compared(path, [1, 1], [0, 1], [0, 1])}
    assert (found["own_yes"].base, found["own_yes"].adapter, found["own_n"].adapter) == (2.0, 1.0, 2.0)
    texts = (Texts([0], ["no"], ["yes"]), Texts([0], ["yes"], ["yes"]))
    found = {metric.name: metric for metric in compared(path, [1, 1], [0, 1], [0, 1], texts)}
    assert (found["own_yes"].base, found["own_yes"].adapter, found["own_yes"].rows) == (0.0, 1.0, 1)


def test_a_slow_module_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setattr("hfadapt.evaluate.metrics.modules.SLOW_SECONDS", -1.0)
    (found,) = compared(module(tmp_path), [0, 0], [0, 1], [0, 1])
    assert (found.delta, found.low, found.high) == (0.5, None, None)


@pytest.mark.parametrize("nothing", ['float("nan")', "1 / 0"])
def test_rows_without_a_value_cost_the_interval_not_the_evaluation(tmp_path, nothing):
    """A correlation has no value where one class is chosen throughout: by the baseline, or in a drawn sample."""
    body = f'return {{"own": {nothing} if len(set(predictions)) < 2 else {HITS.removeprefix("return ")}["hits"]}}'
    (found,) = compared(module(tmp_path, body=body), [0, 0, 0], [0, 1, 1], [0, 1, 1])
    assert (found.base, found.adapter, found.delta, found.low) == (None, 1.0, None, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('raise KeyError("oh")', "the metric failed"),
        ('return {"x": float("nan")}', "gives no number"),
        ("return None", "gives no number"),
    ],
)
def test_a_broken_module_is_said_to_be(tmp_path, body, says):
    with pytest.raises(RequestError, match=says) as caught:
        compared(module(tmp_path, body=body), [0, 0], [0, 1], [0, 1])
    assert "own.py" in str(caught.value)


def test_what_is_no_module_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("x = 1 /")
    with pytest.raises(RequestError, match="cannot be loaded"):
        load_module(tmp_path / "own.py")
    with pytest.raises(RequestError, match="no such metric"):
        load_module(tmp_path / "other.py")
