"""Rows that are kept in another way than a row schema has them are read all the same, and it is said."""

import json

import pytest

from hfadapt import data
from hfadapt.core.errors import DataError
from hfadapt.recipe.schema import Recipe

WORDS = ("red", "blue", "small", "large", "old", "new", "round", "flat")


def text(number, kind=""):
    return f"{kind} a {WORDS[number % 8]} thing {WORDS[number // 8 % 8]} {number * 7919}".strip()


def prepared(folder, task, row, rows=40, streaming=False, name="a.jsonl", **domain):
    (folder / name).write_text("".join(json.dumps(row(number)) + "\n" for number in range(rows)))
    asked = {"streaming": streaming, "dedupe": {"near": False}}
    recipe = Recipe(name="r", model="none", task=task, domains={"d": {"source": name, **domain}}, data=asked)
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"]


def every(found):
    """All rows of all splits in the order of the source, without what says where they are from."""
    rows = [row for name in ("train", "validation", "test") for row in found.rows(name)]
    rows.sort(key=lambda row: row["row"])
    apart = {"source", "row", "line", "in_file"}
    return [{key: value for key, value in row.items() if key not in apart and value is not None} for row in rows]


def noticed(found, code="layout"):
    return [f"{each.message}; {each.fix}" for each in found.record.noticed if each.code == code]


def judged(number, labels=(0, 1, 0)):
    documents = [text(number, kind) for kind in ("one", "two", "three")]
    return {"query": text(number, "what is"), "documents": documents, "labels": list(labels)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("task", ["embedding", "reranking"])
def test_a_query_with_documents_and_their_labels_makes_pairs(tmp_path, task, streaming):
    found = prepared(tmp_path, task, judged, streaming=streaming)
    row = {"anchor": "what is a red thing red 0", "positive": "two a red thing red 0"}
    assert every(found)[0] == {**row, "negatives": ["one a red thing red 0", "three a red thing red 0"]}
    assert found.record.columns == {"anchor": "query", "positive": "documents", "negatives": "negatives"}
    (said,) = noticed(found)
    assert "'documents'" in said
    assert "'labels'" in said


def test_each_document_that_is_marked_makes_a_pair_and_a_query_without_one_is_left_out(tmp_path):
    def row(number):
        return judged(number, [(1, 1, 0), (True, False, False), (0, 0, 0)][number % 3])

    found = prepared(tmp_path, "embedding", row, 30)
    assert len(every(found)) == 30
    assert found.record.dropped == {"no-positive": 10}


def test_labels_of_more_than_two_values_are_scores(tmp_path):
    found = prepared(tmp_path, "embedding", lambda number: judged(number, (2, 0, 1)))
    assert [row["label"] for row in every(found)[:3]] == [2.0, 0.0, 1.0]
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, "reranking", lambda number: judged(number, (2, 0, 1)))
    assert "set task: embedding" in str(caught.value)


def test_fields_of_an_object_are_such_lists_too_and_columns_of_other_names_can_be_said(tmp_path):
    def row(number):
        own = judged(number)
        return {"query": own["query"], "passages": {"passage_text": own["documents"], "is_selected": own["labels"]}}

    assert every(prepared(tmp_path, "embedding", row))[0]["positive"] == "two a red thing red 0"

    def other(number):
        own = judged(number)
        return {"ask": own["query"], "found": own["documents"], "right": own["labels"]}

    columns = {"anchor": "ask", "positive": "found"}
    assert every(prepared(tmp_path, "reranking", other, columns=columns))[0]["positive"] == "two a red thing red 0"


def test_several_positives_and_numbered_negatives_are_all_read(tmp_path):
    def row(number):
        return {
            "query": text(number, "what is"),
            "pos": [text(number, "one"), text(number, "two")],
            **{f"negative_{each}": text(number, f"no {each}") for each in (1, 2, 3)},
        }

    first, second, *_ = every(prepared(tmp_path, "embedding", row))
    assert [first["positive"], second["positive"]] == ["one a red thing red 0", "two a red thing red 0"]
    assert first["negatives"] == [f"no {each} a red thing red 0" for each in (1, 2, 3)]


def test_columns_that_are_named_are_read_as_they_are(tmp_path):
    def row(number):
        negatives = {f"negative_{each}": text(number, f"no {each}") for each in (1, 2)}
        return {"anchor": text(number), "positive": text(number, "one"), **negatives}

    columns = {"anchor": "anchor", "positive": "positive", "negatives": "negative_2"}
    found = prepared(tmp_path, "embedding", row, columns=columns)
    assert every(found)[0]["negatives"] == ["no 2 a red thing red 0"]
    assert noticed(found) == []


def test_a_task_that_reads_less_of_such_rows_says_so(tmp_path):
    found = prepared(tmp_path, "multi-label-classification", judged, columns={"text": "query"})
    (said,) = noticed(found, "layout-not-read")
    assert "only 'query', 'labels' are read" in said
    assert "set task: embedding or reranking" in said


def by_word(number):
    """The first row of each sentence of four words names it."""
    of = number // 4
    words, tags = (
        [WORDS[of % 8] + WORDS[of // 8 % 8], "in", f"{WORDS[of % 7]}land{of}", "."],
        ("B-geo", "O", "B-per", "O"),
    )
    at = number % 4
    return {"Sentence #": f"Sentence: {of}" if at == 0 else "", "Word": words[at], "POS": "X", "Tag": tags[at]}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("every_row", [False, True])
def test_words_in_rows_of_their_own_make_sentences(tmp_path, every_row, streaming):
    def row(number):
        return {**by_word(number), "Sentence #": f"Sentence: {number // 4}"} if every_row else by_word(number)

    found = prepared(tmp_path, "token-classification", row, 480, streaming)
    assert found.record.rows_in == 120
    assert every(found)[1] == {"tokens": ["bluered", "in", "blueland1", "."], "tags": ["B-geo", "O", "B-per", "O"]}
    assert {row["line"] for name in ("train", "test") for row in found.rows(name)} <= {*range(1, 481, 4)}


def test_a_classifier_of_single_words_says_that_they_are_parts_of_sentences(tmp_path):
    found = prepared(tmp_path, "text-classification", by_word, 480, columns={"text": "Word", "label": "Tag"})
    assert "set task: token-classification" in noticed(found, "layout-not-read")[0]


def test_words_that_are_written_with_their_tags_are_taken_apart(tmp_path):
    def row(number):
        return {"text": f"the/DT {WORDS[number % 8]}/JJ {WORDS[number // 8]}_thing/NN and/or/CC ./."}

    found = prepared(tmp_path, "token-classification", row)
    assert every(found)[0] == {
        "tokens": ["the", "red", "red_thing", "and/or", "."],
        "tags": ["DT", "JJ", "NN", "CC", "."],
    }
    assert "token-classification" in noticed(prepared(tmp_path, "causal-lm", row), "layout-not-read")[0]


@pytest.mark.parametrize(
    "row",
    [
        lambda number: {"text": f"one of two and/or {text(number)}"},
        lambda number: {"text": " ".join(f"/usr/share/{word}{number}" for word in WORDS[:5])},
        lambda number: {"text": f"{WORDS[number % 8]} {number}"},
    ],
)
def test_other_texts_with_strokes_have_no_tags(tmp_path, row):
    assert noticed(prepared(tmp_path, "causal-lm", row), "layout-not-read") == []
