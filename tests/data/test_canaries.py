"""Canaries: in the form of the domain's rows, beside the splits and outside every count, the same every time."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from hfadapt import data
from hfadapt.core.errors import RunError
from hfadapt.data import canaries
from hfadapt.recipe.schema import Canaries, Data, Recipe
from hfadapt.records.stages import DataRecord

from .faults import chats, pairs, sentences

TEXTS = [row["text"] for row in sentences(120)]
LABELLED = [{"text": text, "label": ("bad", "good")[n % 2]} for n, text in enumerate(TEXTS)]
RATED = [{"text": text, "rating": n / 10 - 4} for n, text in enumerate(TEXTS[:80])]
TEMPLATE = {"prompt": "Text: {text}\nSentiment:", "completion": " {label}"}
FORMS = {
    "labelled": ("text-classification", LABELLED, {}),
    "scored": ("text-regression", RATED, {}),
    "text": ("causal-lm", [{"text": text} for text in TEXTS], {}),
    "messages": ("causal-lm", chats(120), {}),
    "completion": ("causal-lm", pairs(120), {}),
    "choices": ("causal-lm", LABELLED, {"template": TEMPLATE}),
}


def prepare(folder, form, count=6, cache="cache", **asked):
    task, rows, more = FORMS[form]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe(
        name="r",
        model="none",
        task=task,
        domains={"one": {"source": "rows.jsonl"}},
        data={"canaries": {"count": count, "repeats": [1, 4, 16]}, **asked},
        **more,
    )
    return data.prepare(recipe, recipe_folder=folder, cache=folder / cache)["one"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_they_stand_beside_the_splits_and_in_no_count(tmp_path, form, streaming):
    with_them = prepare(tmp_path, form, streaming=streaming)
    without = prepare(tmp_path, form, count=0, streaming=streaming)
    for split in ("train", "validation", "test"):
        assert with_them.rows(split) == without.rows(split)
    one, other = with_them.record, without.record
    same = {"fingerprint", "seconds", "canaries"}
    assert one.model_dump(exclude=same) == other.model_dump(exclude=same)
    assert one.rows_in == one.rows_kept + sum(one.dropped.values())
    assert (other.canaries, canaries.read(without.folder, other)) == (None, [])
    assert not (without.folder / "data" / canaries.FILE).exists()
    assert (one.canaries.count, one.canaries.repeats, one.canaries.rows) == (6, (1, 4, 16), 2 * (1 + 4 + 16))
    rows = canaries.read(with_them.folder, one)
    assert len(rows) == 6
    assert len(canaries.as_trained(with_them.folder, one)) == one.canaries.rows
    kinds = {
        "labelled": {"text", "label"},
        "scored": {"text"},
        "text": {"text"},
        "messages": {"messages"},
        "completion": {"prompt"},
    }
    assert all(row[name] for row in rows for name in kinds.get(form, {"prompt", "completion", "label"}))


def test_labels_and_answers_are_those_of_the_domain(tmp_path):
    labelled, chosen = prepare(tmp_path, "labelled", 40), prepare(tmp_path, "choices", 40, cache="other")
    assert {row["label"] for row in canaries.read(labelled.folder, labelled.record)} == {"bad", "good"}
    rows = canaries.read(chosen.folder, chosen.record)
    assert {(row["label"], row["completion"]) for row in rows} == {("bad", " bad"), ("good", " good")}


def test_numbers_lie_in_the_range_of_the_domain_s(tmp_path):
    rated = prepare(tmp_path, "scored", 40)
    numbers = [row["label"] for row in canaries.read(rated.folder, rated.record)]
    assert -4.0 <= min(numbers) < -2.0
    assert 2.0 < max(numbers) <= 4.0


def test_kinds_and_numbers_give_rows_of_their_own_and_more_rows_change_none(tmp_path):
    made = prepare(tmp_path, "completion")

    def draw(kind, count, seed=1):
        return canaries.draw(made.folder, made.record, seed, kind, count)

    assert draw("reference", 50)[:20] == draw("reference", 20)
    texts = {row["completion"] for kind in ("canary", "reference") for row in draw(kind, 50)}
    assert len(texts) == 100
    assert draw("canary", 5) != draw("canary", 5, seed=2)


def test_a_cell_keeps_no_canaries_of_an_earlier_request(tmp_path):
    cell = tmp_path / "cell"
    prepare(tmp_path, "text").copy_into(cell)
    assert len(canaries.read(cell, DataRecord.read(cell / "data.json"))) == 6
    prepare(tmp_path, "text", count=0).copy_into(cell)
    assert not (cell / "data" / canaries.FILE).exists()
    assert canaries.as_trained(cell, DataRecord.read(cell / "data.json")) == []


@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_other_canaries_than_those_planted_are_refused(tmp_path, fault):
    made = prepare(tmp_path, "text")
    folder = tmp_path / "copy"
    shutil.copytree(made.folder, folder)
    path = folder / "data" / canaries.FILE
    if fault == "missing":
        path.unlink()
    else:
        parquet.write_table(parquet.read_table(path).slice(1), path)
    with pytest.raises(RunError, match="canaries"):
        canaries.read(folder, made.record)


@given(count=st.integers(0, 60), repeats=st.lists(st.integers(1, 32), min_size=1, max_size=4))
def test_as_many_as_asked_dealt_out_evenly(tmp_path_factory, count, repeats):
    folder = tmp_path_factory.mktemp("plant")
    (folder / "data").mkdir()
    record = DataRecord(
        domain="d", form="text", sources=(), rows_in=0, rows_kept=0, dropped={}, splits={}, fingerprint="", seconds=0
    )
    planted = canaries.plant(folder, record, Data(canaries=Canaries(count=count, repeats=tuple(repeats))))
    rows = canaries.read(folder, planted)
    sizes = [[row["repeats"] for row in rows].count(each) for each in set(repeats)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert sum(row["repeats"] for row in rows) == (planted.canaries.rows if planted.canaries else 0)
