"""Columns that are not read although a user may count on them are named, with what to do."""

import json

import pytest

from hfadapt import data
from hfadapt.core.errors import DataError
from hfadapt.recipe.schema import Recipe

from .faults import pairs, sentences

LM, CLASSES = "causal-lm", "text-classification"


def prepared(folder, task, rows, streaming=False, **domain):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"streaming": streaming, "dedupe": {"near": False}}
    recipe = Recipe(name="r", model="none", task=task, domains={"d": {"source": "a.jsonl", **domain}}, data=asked)
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].record


def said(record):
    return [(each.code, each.message, each.fix) for each in record.noticed if each.code.startswith("column")]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("task", "rows", "more", "code", "named", "fix"),
    [
        (CLASSES, sentences, {"text_pair": "and a second sentence"}, "columns-left-out", "'text_pair'", "one column"),
        (CLASSES, sentences, {"sentiment": "good"}, "column-choice", "'sentiment' may be it", "{label: sentiment}"),
        (LM, pairs, {"system": "Rhyme."}, "columns-left-out", "'system'", "'{system}\\n{prompt}'"),
        (LM, pairs, {"history": [["who is it", "a king"]]}, "columns-left-out", "'history'", "{history}"),
        (LM, pairs, {"answer": "another one"}, "column-choice", "'answer' may be it", "{completion: answer}"),
    ],
)
def test_they_are_named(tmp_path, streaming, task, rows, more, code, named, fix):
    (found,) = said(prepared(tmp_path, task, [{**row, **more} for row in rows(300)], streaming))
    assert found[0] == code
    assert named in found[1]
    assert fix in found[2]


def test_the_fix_for_text_alone_is_followed(tmp_path):
    rows = [{"document": row["prompt"], "summary": f"in short {row['completion']}"} for row in pairs(80)]
    ((code, _, fix),) = said(prepared(tmp_path, LM, rows))
    assert (code, "columns: {prompt: document, completion: summary}" in fix) == ("columns-left-out", True)
    record = prepared(tmp_path, LM, rows, columns={"prompt": "document", "completion": "summary"})
    assert (record.form, said(record)) == ("completion", [])
    rows = [{"opening": row["document"], "text": row["summary"]} for row in rows]
    ((_, _, fix),) = said(prepared(tmp_path, LM, rows))
    assert "columns: {prompt: opening, completion: text}" in fix, "what stands first asks"


@pytest.mark.parametrize(
    ("more", "domain"),
    [
        ({"id": "doc-7", "date": "2024-01-01", "tags": ["a", "b"]}, {}),
        ({"title": "a title of some words"}, {"columns": {"text": "text"}}),
        ({"title": None}, {}),
    ],
)
def test_what_nobody_counts_on_is_not_noticed(tmp_path, more, domain):
    rows = [{**row, **more} for row in sentences(80)]
    record = prepared(tmp_path, CLASSES, rows, **domain)
    assert said(record) == []
    assert record.steps["columns"]["unread"] == sorted(more)


def test_text_that_is_read_elsewhere_is_not_noticed(tmp_path):
    """Data sets keep the whole text beside its parts."""
    rows = [{**row, "whole": f"Q: {row['prompt']} A: {row['completion']}", "first": row["prompt"]} for row in pairs(80)]
    assert said(prepared(tmp_path, LM, rows)) == []


@pytest.mark.parametrize("domain", [{}, {"columns": {"anchor": "premise", "positive": "hypothesis"}}])
def test_pairs_are_not_learned_as_alike_without_a_word_of_their_label(tmp_path, domain):
    rows = [
        {"premise": each["prompt"], "hypothesis": each["completion"], "label": "contradiction"} for each in pairs(300)
    ]
    if domain:
        (found,) = [each for each in prepared(tmp_path, "reranking", rows, **domain).noticed if "label" in each.code]
        assert (found.code, "belonging together" in found.message) == ("label-not-read", True)
    else:
        with pytest.raises(DataError, match="do not fit the task") as raised:
            prepared(tmp_path, "reranking", rows)
        assert "set task: embedding" in str(raised.value)
