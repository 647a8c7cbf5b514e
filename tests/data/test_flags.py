"""Classes with a column of 0 and 1 each: which columns they are, and rows of which one is not known."""

from __future__ import annotations

import json

import pytest

from hfadapt import data
from hfadapt.core import registry
from hfadapt.core.errors import DataError, RequestError
from hfadapt.data.flags import find_flags
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Columns, Recipe

WAYS = pytest.mark.parametrize("streaming", [False, True])
MANY, ONE = "multi-label-classification", "text-classification"
ROWS = [{"text": f"w{n} of {n * 7919}", "one": n % 2, "two": n // 2 % 2, "four": n // 4 % 2} for n in range(120)]


def prepare(folder, rows, streaming=False, task=MANY, **domain):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"name": "r", "model": "none", "task": task, "data": {"streaming": streaming, "dedupe": {"near": False}}}
    recipe = Recipe(**asked, domains={"d": {"source": "rows.jsonl", **domain}})
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].record


def with_cells(cells, name="two", rows=ROWS):
    return [{**row, name: cells.get(number, row[name])} for number, row in enumerate(rows)]


@WAYS
@pytest.mark.parametrize("odd", ["-1", "", None, "yes", "?", float("nan")])
def test_a_class_that_is_not_known_of_a_few_rows_is_one(tmp_path, odd, streaming):
    """Before, the whole column was not read, and nothing said so."""
    record = prepare(tmp_path, with_cells({3: odd, 77: odd}), streaming)
    assert record.labels == ("four", "one", "two")
    assert (record.rows_kept, dict(record.dropped)) == (118, {"no-flag": 2})
    assert "rows-left-out" in [each.code for each in record.noticed]


@pytest.mark.parametrize("odd", [2, "7", 3.0])
def test_what_counts_something_is_no_class(tmp_path, odd):
    assert prepare(tmp_path, with_cells({3: odd, 77: odd})).labels == ("four", "one")


@WAYS
def test_a_class_that_is_not_known_of_many_rows_is_told_with_a_way_that_works(tmp_path, streaming):
    rows = with_cells({number: ("", "-1")[number % 2] for number in range(40)})
    record = prepare(tmp_path, rows, streaming)
    assert record.labels == ("four", "one")
    [told] = [each for each in record.noticed if each.code == "classes-left-out"]
    assert "'two' is not read: 'two' holds 0 or 1 in 60 of the first 100" in told.message
    assert "columns: {classes: [one, four, two]} and no_label: ['', '-1']" in told.fix
    named = {"columns": {"text": "text", "classes": ["one", "four", "two"]}, "no_label": ["", "-1"]}
    record = prepare(tmp_path, rows, streaming, **named)
    assert (record.labels, record.rows_kept, dict(record.dropped)) == (("four", "one", "two"), 80, {"no-label": 40})
    assert not record.noticed
    with pytest.raises(DataError, match="40 of 120 rows") as caught:
        prepare(tmp_path, rows, streaming, columns=named["columns"])
    assert "no_label: ['', '-1']" in str(caught.value)


def test_flags_that_are_known_of_all_rows_are_nothing_to_doubt(tmp_path):
    rows = [{**row, "label": "ab"[row["one"]], "two": row["two"] or None} for row in ROWS]
    assert not prepare(tmp_path, rows, task=ONE).noticed


@WAYS
def test_the_classes_are_those_that_are_named(tmp_path, streaming):
    record = prepare(tmp_path, ROWS, streaming, columns={"classes": ["one", "two"]})
    assert record.labels == ("one", "two")
    assert not record.noticed
    # Another column may be called as labels are.
    rows = [{**row, "Label": "w"} for row in ROWS]
    assert prepare(tmp_path, rows, streaming, columns={"classes": ["one", "two"]}).labels == ("one", "two")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, ROWS, streaming, columns={"classes": ["one", "tow"]})
    assert "'tow'" in str(caught.value)
    assert "two" in str(caught.value)


def test_one_class_of_named_columns(tmp_path):
    rows = [{**row, "two": 1 - row["one"]} for row in ROWS]
    assert prepare(tmp_path, rows, task=ONE, columns={"classes": ["one", "two"]}).labels == ("one", "two")
    with pytest.raises(DataError, match="several columns could be the label"):
        prepare(tmp_path, rows, task=ONE)


def test_what_says_groups_and_splits_is_no_class():
    for part in ("group", "split"):
        found = find_flags(ROWS, registry.task(MANY).schemas, Columns(**{part: "four"}), (), "rows.jsonl")
        assert found is not None
        assert found.names == ("one", "two")


@pytest.mark.parametrize(
    ("task", "columns", "said"),
    [
        (MANY, {"classes": ["one"]}, "two columns or more"),
        (MANY, {"classes": ["one", "one"]}, "twice"),
        (MANY, {"classes": ["one", "two"], "label": "four"}, "name one of them"),
        ("causal-lm", {"classes": ["one", "two"]}, "delete `classes`"),
        ("text-regression", {"classes": ["one", "two"]}, "delete `classes`"),
    ],
)
def test_classes_that_cannot_be_named(tmp_path, task, columns, said):
    (tmp_path / "rows.jsonl").write_text("{}")
    lines = ["name: r", "model: none", f"task: {task}"]
    lines.append(f"domains: {{d: {{source: rows.jsonl, columns: {json.dumps(columns)}}}}}")
    (tmp_path / "r.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(RequestError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert said in str(caught.value)


def test_signs_are_flags_where_a_column_has_nothing_else(tmp_path):
    """As the attributes of faces are published."""
    rows = [{**row, "one": (-1, 1)[row["one"]], "two": ("-1", "1")[row["two"]], "four": None} for row in ROWS]
    record = prepare(tmp_path, rows)
    assert record.labels == ("one", "two")
    assert sum(counts["one"] for counts in record.label_counts.values()) == 60
    assert not record.dropped
