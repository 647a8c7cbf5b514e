"""Any number of classes for texts: metrics as scikit-learn has them, rows in every spelling, and a whole run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.evaluate.metrics.rows import compare
from hfadapt.files.reading import HEAD_ROWS
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.schemas.several import KIND as SCHEMA
from hfadapt.tasks import Scores
from hfadapt.tasks._several import _average_precision
from hfadapt.tasks.multi_label_classification.task import KIND

HOW = {"resamples": 50, "confidence": 0.95, "seed": 1}
TABLES = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=n, max_size=n),
    )
)


def scores(gold, tenths):
    gold, sure = np.array(gold), np.array(tenths) / 10
    return Scores(gold, (sure >= 0.5).astype(int), sure, np.ones(len(gold)), np.full(len(gold), 3), "classes")


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_metrics_are_scikit_learns(tables):
    found = scores(*tables)
    own = {name: compare(name, None, found, **HOW).adapter for name in ("micro_f1", "subset_accuracy")}
    assert own["micro_f1"] == pytest.approx(
        sk.f1_score(found.gold, found.predictions, average="micro", zero_division=0)
    )
    assert own["subset_accuracy"] == pytest.approx(sk.accuracy_score(found.gold, found.predictions))
    there = found.gold.any(0)
    if there.any():
        expected = [
            sk.average_precision_score(found.gold[:, i], found.probabilities[:, i]) for i in np.flatnonzero(there)
        ]
        ap = compare("average_precision", None, found, **HOW)
        assert ap.adapter == pytest.approx(np.mean(expected))
        assert ap.adapter_low <= ap.adapter_high


@settings(max_examples=30, deadline=None)
@given(TABLES, st.randoms())
def test_rows_drawn_twice_count_twice(tables, chance):
    found = scores(*tables)
    draws = np.array([chance.randint(0, 2) for _ in range(len(found.gold))], dtype=float)
    rows = np.repeat(np.arange(len(draws)), draws.astype(int))
    if len(rows):
        drawn = scores(np.array(tables[0])[rows], np.array(tables[1])[rows])
        once = _average_precision(drawn, np.ones((1, len(rows))))
        assert _average_precision(found, draws[None])[0] == pytest.approx(once[0])


@pytest.mark.parametrize(
    "value", [["b", "a"], '["b", "a"]', "b; a", "a|b", "a,b", {"a": 1, "b": True, "c": 0}, ["a", "b", "a"]]
)
def test_every_spelling_of_two_classes(value):
    assert SCHEMA.make({"text": "so", "label": value}, str) == {"text": "so", "label": ["a", "b"]}


@pytest.mark.parametrize(
    ("labels", "likely"),
    [
        (["a;b", "a", "b;c", "c"] * 9, True),
        (["red, green", "green", "blue, red"] * 9, True),
        (["Injury, poisoning", "Pregnancy, childbirth", "Neoplasms"] * 9, False),
        (["Injury, poisoning", "Injury", "Pregnancy, birth", "Mind, mood", "Blood, marrow"] * 9, False),
        (["a", "b"] * 9, False),
        (["one of a kind", "and, of another"], False),
    ],
)
def test_names_with_commas_are_no_several_classes(labels, likely):
    assert SCHEMA.likely(labels) == likely


def test_no_class_is_an_answer():
    row = SCHEMA.make({"text": "so", "label": []}, str)
    assert row["label"] == []
    assert SCHEMA.classes(row) == ()
    assert KIND.target(row, ("a", "b"), 0) == (0, 0)


def test_an_empty_cell_is_no_class_and_a_missing_one_has_to_say_what_it_means(models, tmp_path):
    """Nobody may have looked at a row whose list is missing."""
    tags = ["a", "b", "a;b", ""]
    rows = [{"text": row["text"], "labels": tags[number % 4]} for number, row in enumerate(labelled(80))]
    lines = ["text,labels", *(",".join(row.values()) for row in rows)]
    (tmp_path / "cells.csv").write_text("\n".join(lines) + "\n")
    write_rows(tmp_path / "missing.jsonl", [{**row, "labels": row["labels"].split(";")[0] or None} for row in rows])
    found = {}
    for name in ("cells.csv", "missing.jsonl"):
        fields = recipe_fields(models / "encoder", "multi-label-classification", {"one": {"source": name}})
        write_recipe(tmp_path / "r.yaml", fields)
        found[name] = command("check", "r.yaml", folder=tmp_path)
    assert found["cells.csv"].code == 0, found["cells.csv"].err
    assert found["missing.jsonl"].code == 2
    assert "20 of 80 rows have nothing where their classes stand" in found["missing.jsonl"].err
    assert "write [] in rows" in found["missing.jsonl"].err


def test_what_is_neither_0_nor_1_is_no_answer(models, tmp_path):
    """In a row after those by which the columns are known: not looked at, not sure, or yes in another word."""
    rows = [[f"w{number} of {number * 7919}", str(number % 2), str(number // 2 % 2)] for number in range(HEAD_ROWS + 9)]
    for number, odd in ((-1, "-1"), (-3, ""), (-5, "yes")):
        rows[number][2] = odd
    (tmp_path / "t.csv").write_text("\n".join(["text,one,two", *map(",".join, rows)]) + "\n")
    fields = recipe_fields(models / "encoder", "multi-label-classification", {"d": {"source": "t.csv"}}, name="t")
    fields["data"] = {"dedupe": {"near": False, "similarity": 1.0}}
    write_recipe(tmp_path / "r.yaml", fields)
    done = command("prepare", "r.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    dropped = [json.loads(line) for line in next(tmp_path.rglob("dropped.jsonl")).read_text().splitlines()]
    assert len([each for each in dropped if each["reason"] == "no-flag"]) == 3


def test_the_divergence_of_the_same_answers_is_zero():
    logits = torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(KIND.divergence(logits, logits), torch.zeros(4, dtype=torch.float64))
    assert (KIND.divergence(logits, logits + 1) > 0).all()


def test_a_run_learns_and_proves_it(models, tmp_path):
    rows = [
        {
            "text": row["text"] + " film" * (n % 3 == 0),
            "label": [row["label"]] * (n % 5 > 0) + ["movie"] * (n % 3 == 0),
        }
        for n, row in enumerate(labelled(160))
    ]
    write_rows(tmp_path / "one.jsonl", rows)
    fields = recipe_fields(models / "encoder", "multi-label-classification", dtype="float32")
    fields["train"] |= {"max_steps": 40, "learning_rate": 0.01}
    fields["evaluate"] = {"resamples": 200, "security": True}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Cell(tmp_path / "runs/tiny/one/this-machine")
    assert set(cell.data.labels) == {"bad", "good", "movie"}
    assert cell.read(TrainRecord).head_start == "linear probe"
    assert [metric.name for metric in cell.evaluation.metrics] == list(KIND.metrics)
    assert set(cell.evaluation.per_class) == set(cell.data.labels)
    assert cell.evaluation.calibration is not None
    assert "micro_f1" in (cell.folder / "README.md").read_text()
    told = command("predict", cell.folder, "a lovely bright film", folder=tmp_path)
    assert told.code == 0, told.err
