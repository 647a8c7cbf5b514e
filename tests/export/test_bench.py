"""How fast an exported folder answers: one process for each case, a table and JSON, and requests that make no sense."""

from __future__ import annotations

import json

import pytest
from tiny import command

from hfadapt.core.errors import RequestError, RunError
from hfadapt.export.bench import Bench, bench
from hfadapt.export.write import export


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "merged"
    export(classifier, "merged", place)
    return place


def test_each_case_is_measured(folder):
    cases = ("--threads", 1, "--batch", 1, "--batch", 4, "--length", 8, "--seconds", 0.05)
    said = command("bench", folder, *cases, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["format"], found["variant"]) == ("merged", "merged-float32")
    assert found["runtime"].startswith("transformers ")
    assert [(case["threads"], case["rows"]) for case in found["cases"]] == [(1, 1), (1, 4)]
    for case in found["cases"]:
        assert 0 < case["p50_seconds"] <= case["p95_seconds"]
        assert case["calls"] >= 10
        assert case["rows_per_second"] > 0
        assert case["peak_bytes"] > (folder / "model.safetensors").stat().st_size
    shown = str(Bench.model_validate(found))
    assert "rows/s" in shown
    assert "rows of 8 positions" in shown


def test_a_row_that_is_too_long_fails_with_the_librarys_words(folder):
    with pytest.raises(RunError, match="could not be measured") as caught:
        bench(folder, threads=(1,), rows=(3,), length=5000, seconds=0.01)
    assert "batches of 3, 1 threads" in str(caught.value)
    assert "Error" in str(caught.value)


def test_what_has_no_speed_of_its_own(classifier, tmp_path):
    with pytest.raises(RequestError, match="no exported folder"):
        bench(classifier.folder)
    export(classifier, "adapter", tmp_path / "adapter")
    with pytest.raises(RequestError, match="without its base"):
        bench(tmp_path / "adapter")
