"""Groups that the recipe names, such as speakers: no group stands in two splits."""

import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfadapt.core.errors import DataError, RecipeError
from hfadapt.data import prepare
from hfadapt.data.rows import SPLITS
from hfadapt.recipe.reading import load_recipe


def prepared(tmp_path, speakers, columns, **data):
    rows = [
        {
            "text": f"{'lovely' if i % 2 else 'dreadful'} thing number {i}, of another kind {i * i}",
            "label": "up" if i % 2 else "down",
            "file": f"{i % 2}_{speaker}_{i}.wav",
            "speaker": speaker,
        }
        for i, speaker in enumerate(speakers)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {"source": "rows.jsonl", "columns": columns}
    recipe = {"name": "r", "model": "m", "task": "text-classification", "domains": {"d": domain}, "data": data}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return prepare(load_recipe(tmp_path / "recipe.yaml"), recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]


def splits_of(domain):
    where = defaultdict(set)
    for split in SPLITS:
        for row in domain.rows(split):
            where[row["group"]].add(split)
    return where


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "columns", [{"group": "speaker"}, {"group": "file", "group_pattern": r"^\d_([a-z]+)_"}], ids=["column", "pattern"]
)
def test_no_group_stands_in_two_splits(tmp_path, columns, streaming):
    domain = prepared(
        tmp_path,
        [name for name in "abcdefghij" for _ in range(30)],
        columns,
        streaming=streaming,
        test=0.3,
        validation=0.3,
    )
    where = splits_of(domain)
    assert set(where) == set("abcdefghij")
    assert all(len(splits) == 1 for splits in where.values())
    assert {split for splits in where.values() for split in splits} == set(SPLITS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=3, max_size=8))
def test_whatever_the_sizes(tmp_path_factory, sizes):
    speakers = [f"s{number}" for number, size in enumerate(sizes) for _ in range(size)]
    domain = prepared(tmp_path_factory.mktemp("rows"), speakers, {"group": "speaker"}, dedupe={"near": False})
    where = splits_of(domain)
    assert all(len(splits) == 1 for splits in where.values())
    assert set.union(*where.values()) == set(SPLITS)


def test_too_few_groups(tmp_path):
    with pytest.raises(DataError, match="too few groups"):
        prepared(tmp_path, ["a"] * 40 + ["b"] * 40, {"group": "speaker"})


def test_rows_without_a_group_are_named(tmp_path):
    speakers = [*"abcd" * 10, "X1", "X2"]
    domain = prepared(tmp_path, speakers, {"group": "file", "group_pattern": r"_([a-z])_"})
    (noticed,) = [each for each in domain.record.noticed if each.code == "rows-without-group"]
    assert "2 of 42 rows" in noticed.message
    with pytest.raises(DataError, match="no row has a group"):
        prepared(tmp_path, speakers, {"group": "file", "group_pattern": "(nothing like it)"})


@pytest.mark.parametrize("columns", [{"group_pattern": "(a)"}, {"group": "file", "group_pattern": "no bracket"}])
def test_what_makes_no_group_is_refused(tmp_path, columns):
    with pytest.raises(RecipeError, match="group_pattern"):
        prepared(tmp_path, ["a"] * 10, columns)


def test_a_group_that_is_no_column(tmp_path):
    with pytest.raises(RecipeError, match="there is no column for group"):
        prepared(tmp_path, ["a"] * 10, {"group": "speakers"})


@pytest.mark.parametrize("streaming", [False, True])
def test_class_and_group_are_found_in_the_same_column(tmp_path, streaming):
    columns = {"label": "file", "label_pattern": r"^(\d)_", "group": "file", "group_pattern": r"^\d_([a-z]+)_"}
    speakers = [name for name in "abcdefghij" for _ in range(30)]
    domain = prepared(tmp_path, speakers, columns, streaming=streaming, test=0.3, validation=0.3)
    assert domain.record.labels == ("0", "1")
    assert set(splits_of(domain)) == set("abcdefghij")
    rows = [row for split in SPLITS for row in domain.rows(split)]
    assert all(("dreadful", "lovely")[int(row["label"])] in row["text"] for row in rows)


def test_rows_in_which_the_pattern_finds_no_class_are_named(tmp_path):
    speakers = [*"abcdefghijkl" * 10, "X"]
    columns = {"label": "file", "label_pattern": "^([01])_[a-z]"}
    domain = prepared(tmp_path, speakers, columns)
    assert domain.record.dropped["no-match"] == 1
    (said,) = [each.message for each in domain.record.noticed if each.code == "rows-left-out"]
    assert "line 121 of rows.jsonl has file '0_X_120.wav', in which label_pattern finds nothing" in said
    with pytest.raises(DataError, match="have nothing that label_pattern finds") as caught:
        prepared(tmp_path, speakers, {"label": "file", "label_pattern": "(nothing like it)"})
    assert "correct columns.label_pattern" in str(caught.value)
    with pytest.raises(RecipeError, match="label_pattern"):
        prepared(tmp_path, speakers, {"label_pattern": "(a)"})
