"""Pairs of texts as people store them, how alike two pairs are, and which of them stay in one split."""

from __future__ import annotations

import pytest

from hfadapt.data import duplicates, joins
from hfadapt.data.columns import recognise
from hfadapt.data.rows import as_row, tokens
from hfadapt.recipe.schema import Columns, Data
from hfadapt.schemas import Unusable
from hfadapt.schemas.pairs import KIND as PAIRS
from hfadapt.schemas.scored_pairs import KIND as SCORED

FORMS = frozenset({"pairs", "scored-pairs"})
ANSWER = "open the settings, choose the account, press delete and say yes twice to the questions that follow then wait"


@pytest.mark.parametrize(
    ("columns", "form", "parts"),
    [
        (["anchor", "positive"], "pairs", {"anchor": "anchor", "positive": "positive"}),
        (["query", "pos", "neg"], "pairs", {"anchor": "query", "positive": "pos", "negatives": "neg"}),
        (["id", "Question", "Answer"], "pairs", {"anchor": "Question", "positive": "Answer"}),
        (["question", "context", "answer"], "pairs", {"anchor": "question", "positive": "context"}),
        (["sentence1", "sentence2"], "pairs", {"anchor": "sentence1", "positive": "sentence2"}),
        (["sentence1", "sentence2", "score"], "scored-pairs",
         {"anchor": "sentence1", "positive": "sentence2", "label": "score"}),
        (["text", "document"], "pairs", {"anchor": "text", "positive": "document"}),
    ],
)  # fmt: skip
def test_columns_are_recognised_by_their_names(columns, form, parts):
    shape = recognise(columns, Columns(), FORMS, "x", templated=False)
    assert (shape.form, shape.parts) == (form, parts)


def test_other_tasks_read_what_they_read_before():
    assert recognise(["text", "label", "document"], Columns(), {"labelled"}, "x", False).form == "labelled"
    assert (
        recognise(["question", "answer"], Columns(), {"completion", "messages", "text"}, "x", False).form
        == "completion"
    )


@pytest.mark.parametrize(
    ("value", "negatives"),
    [
        (None, None),
        ("no", ["no"]),
        (["no", "", None, "nor"], ["no", "nor"]),
        ('["no", "nor"]', ["no", "nor"]),
        ([], None),
    ],
)
def test_negatives_are_one_or_several(value, negatives):
    row = PAIRS.make({"anchor": "a", "positive": ["b"], "negatives": value}, str)
    assert row == {"anchor": "a", "positive": "b", **({"negatives": negatives} if negatives else {})}


def test_several_positives_in_a_row_are_named():
    with pytest.raises(Unusable) as caught:
        PAIRS.make({"anchor": "a", "positive": ["b", "c"]}, str)
    assert (caught.value.reason, "a row of its own" in caught.value.detail) == ("several-texts", True)


def test_a_score_is_a_number():
    assert SCORED.make({"anchor": "a", "positive": "b", "label": "4,5"}, str)["label"] == 4.5
    with pytest.raises(Unusable):
        SCORED.make({"anchor": "a", "positive": "b", "label": "alike"}, str)


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (("how do I delete my account here", ANSWER), ("where can all my data be removed", ANSWER), False),
        (("how do I delete my account here", ANSWER), ("how do I delete my account here please", ANSWER), True),
        (("what is the capital of France", "Paris"), ("what is the capital of Spain", "Madrid"), False),
        (("the same long question as before", ANSWER), ("the same long question as before", "no"), False),
    ],
)
def test_pairs_are_alike_where_both_texts_are(one, other, near):
    """Many questions may have one long answer, and one question several."""
    rows = [as_row({"anchor": anchor, "positive": positive}, "pairs") for anchor, positive in (one, other)]
    join = joins.Join([tokens(row.text) for row in rows], 0.8)
    assert (join.measure(0, 1) > 0) is near


def test_rows_with_one_anchor_or_one_positive_stay_together():
    pairs = [("a one", "x"), ("a one", "y"), ("b two", "y"), ("c three", "z"), ("x", "q")]
    pairs += [(f"word{n}", f"other{n}") for n in range(30)]
    rows = [as_row({"anchor": anchor, "positive": positive}, "pairs") for anchor, positive in pairs]
    groups = duplicates.groups(rows, Data())
    assert groups[0] == groups[1] == groups[2]
    assert len({*groups[2:5]}) == 3  # a text that is asked in one row and found in another


def test_a_positive_of_a_tenth_of_the_rows_is_rather_a_class():
    rows = [as_row({"anchor": f"word{n}", "positive": ["yes", "no"][n % 2]}, "pairs") for n in range(40)]
    assert len(set(duplicates.groups(rows, Data()))) == 40


def test_rows_of_one_group_stay_together():
    rows = [as_row({"anchor": f"word{n}", "positive": f"other{n}"}, "pairs") for n in range(12)]
    for number, row in enumerate(rows):
        row.group = str(number % 3)
    groups = duplicates.groups(rows, Data())
    assert len(set(groups)) == 3
    assert [groups[n] == groups[n + 3] for n in range(9)] == [True] * 9


def test_only_the_anchor_is_written_otherwise():
    row = {"anchor": "abc", "positive": "abc", "negatives": ["abc"]}
    assert PAIRS.changed(row, lambda text, _: text.upper()) == {**row, "anchor": "ABC"}
    assert PAIRS.rewritten(row, str.upper) == {"anchor": "ABC", "positive": "ABC", "negatives": ["ABC"]}
