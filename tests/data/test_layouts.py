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


def test_words_that_are_asked_about_in_sentences_are_no_tokens(tmp_path):
    def row(number):
        words = text(number // 3).split()
        return {"sentence": text(number // 3), "word": words[number % 3] + str(number), "label": "xy"[number % 2]}

    found = prepared(tmp_path, "text-classification", row, 90, columns={"text": "word", "label": "label"})
    assert noticed(found, "layout-not-read") == []


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


def two(number, **winner):
    return {"prompt": text(number), "response_a": text(number, "one"), "response_b": text(number, "two"), **winner}


SAID = {
    "the column": ("winner", ["response_a", "response_b"]),
    "its letter": ("winner", ["A", "b"]),
    "the model": ("winner", ["model_a", "model_b"]),
    "in words": ("preference", ["Response A", "Response B"]),
}


@pytest.mark.parametrize("said", SAID)
def test_the_winner_of_two_answers_is_the_chosen_one(tmp_path, said):
    column, values = SAID[said]

    def row(number):
        return two(number, **{column: "tie (both bad)" if number % 5 == 4 else values[number % 2]})

    found = prepared(tmp_path, "preference", row, 50)
    assert found.record.dropped == {"no-preference": 10}
    first, second, *_ = every(found)
    assert first == {
        "prompt": "a red thing red 0",
        "chosen": "one a red thing red 0",
        "rejected": "two a red thing red 0",
    }
    assert second["chosen"].startswith("two")


def test_flags_of_winners_and_conversations_of_both_sides(tmp_path):
    def flagged(number):
        return two(number, winner_model_a=number % 2, winner_model_b=1 - number % 2, winner_tie=0)

    assert every(prepared(tmp_path, "preference", flagged))[0]["chosen"].startswith("two")

    def turns(number):
        own = two(number, winner_model_a=1, winner_model_b=0)
        lists = {name: json.dumps([own[name], f"{own[name]} again"]) for name in ("prompt", "response_a", "response_b")}
        return {**own, **lists}

    found = prepared(tmp_path, "preference", turns)
    assert found.record.form == "preference-chats"
    assert [turn["role"] for turn in every(found)[0]["chosen"]] == ["assistant", "user", "assistant"]

    def chats(number):
        own = two(number)
        sides = {
            f"conversation_{side}": [
                {"role": "user", "content": own["prompt"]},
                {"role": "assistant", "content": own[f"response_{side}"]},
            ]
            for side in "ab"
        }
        return {**sides, "winner": "model_b"}

    assert every(prepared(tmp_path, "preference", chats))[0]["chosen"][0]["content"].startswith("two")


def test_of_three_answers_two_are_no_pair_and_numbers_may_have_decimals(tmp_path):
    def row(number):
        return {
            "prompt": text(number),
            "answer_1": text(number, "one"),
            "answer_2": text(number, "two"),
            "winner": "2.0",
        }

    assert every(prepared(tmp_path, "preference", row))[0]["chosen"].startswith("two")
    with pytest.raises(DataError, match="do not fit the task"):
        prepared(tmp_path, "preference", lambda number: {**row(number), "answer_3": text(number, "three")})
    with pytest.raises(DataError, match="do not fit the task"):
        prepared(tmp_path, "preference", lambda number: {**row(number), "answer_0": text(number, "none")})


def test_numbers_that_may_count_from_the_first_or_praise_it_are_refused(tmp_path):
    def row(number):
        return {**two(number), "winner": number % 2}

    with pytest.raises(DataError, match="is not clear") as caught:
        prepared(tmp_path, "preference", row)
    assert str(caught.value).startswith("a.jsonl: which answer")
    assert "write response_a or response_b into the column winner" in str(caught.value)


@pytest.mark.parametrize("winner", ["left", 0, 1])
def test_a_winner_that_says_neither_is_no_winner(tmp_path, winner):
    with pytest.raises(DataError, match="do not fit the task"):
        prepared(tmp_path, "preference", lambda number: two(number, winner=winner))


def test_of_answers_with_scores_the_best_is_chosen_and_the_worst_rejected(tmp_path):
    def scored(number):
        own = [
            {"response": text(number, name), "overall_score": score}
            for name, score in zip("xyz", (4, 9.5, 1), strict=True)
        ]
        return {"instruction": text(number), "completions": own}

    assert every(prepared(tmp_path, "preference", scored))[0] == {
        "prompt": "a red thing red 0",
        "chosen": "y a red thing red 0",
        "rejected": "z a red thing red 0",
    }

    def ranked(number):
        ranks = [2, 1, 3] if number % 4 else [1, 1, 1]
        return {"prompt": text(number), "responses": [text(number, name) for name in "xyz"], "ranks": ranks}

    found = prepared(tmp_path, "preference", ranked)
    assert found.record.dropped == {"no-preference": 10}
    assert (every(found)[0]["chosen"][0], every(found)[0]["rejected"][0]) == ("y", "z")
    causal = prepared(tmp_path, "causal-lm", lambda n: {**scored(n), "text": text(n)}, columns={"text": "text"})
    assert noticed(causal, "layout-not-read") == []


def test_both_sides_of_a_dialogue_in_one_text_part_after_whose_turn_it_is(tmp_path):
    def row(number):
        before = f"\n\nHuman: {text(number)}\n\nAssistant:"
        return {"chosen": f"{before} The one {number} is red.", "rejected": f"{before} The two {number} are blue."}

    first = every(prepared(tmp_path, "preference", row))[0]
    assert first["prompt"].endswith("\n\nAssistant:")
    assert first["chosen"] == " The one 0 is red."


def test_answers_without_what_was_asked_are_refused_with_its_column(tmp_path):
    def row(number):
        return {"ask": text(number), "chosen": f"{number} yes", "rejected": f"{number + 1} no"}

    with pytest.raises(DataError) as caught:
        prepared(tmp_path, "preference", row)
    assert "columns: {prompt: NAME}" in str(caught.value)
    assert every(prepared(tmp_path, "preference", row, columns={"prompt": "ask"}))[0]["prompt"] == "a red thing red 0"


@pytest.mark.parametrize(
    "answers",
    [
        lambda one, two: {"text": [one, two], "answer_start": [0, 4]},
        lambda one, two: [{"text": one, "answer_start": 0}, {"text": two, "answer_start": 4}],
        lambda one, two: [one, two],
        lambda one, two: json.dumps({"text": [one, two], "answer_start": [0, 4]}),
    ],
)
def test_of_several_answers_the_first_is_learned_and_it_is_said(tmp_path, answers):
    def row(number):
        own = answers(text(number, "one"), text(number, "two"))
        return {"question": text(number, "what is"), "context": text(number), "answers": own}

    found = prepared(tmp_path, "causal-lm", row)
    first = every(found)[0]
    assert first == {"prompt": "what is a red thing red 0\n\na red thing red 0", "completion": "one a red thing red 0"}
    assert "rows have several answers: the first is learned (40 of 40)" in noticed(found, "rows-changed")[0]


def test_questions_of_squad_are_rows_and_one_without_an_answer_is_left_out(tmp_path):
    def article(number):
        asked = [
            {"question": text(number, f"what {each}"), "answers": [{"text": text(number)}] * each} for each in (0, 1)
        ]
        return {"title": "t", "paragraphs": [{"context": text(number, "about"), "qas": asked}]}

    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "data": [article(number) for number in range(40)]}))
    recipe = Recipe(name="r", model="none", task="causal-lm", domains={"d": {"source": "a.json"}},
                    data={"dedupe": {"near": False}})  # fmt: skip
    found = data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]
    assert found.record.dropped == {"empty-completion": 40}
    assert every(found)[0]["prompt"] == "what 1 a red thing red 0\n\nabout a red thing red 0"


def test_chats_of_gemini_are_read_and_a_text_that_is_called_contents_is_none(tmp_path):
    def row(number):
        said = [{"role": role, "parts": [{"text": text(number, role)}]} for role in ("user", "model")]
        return {"systemInstruction": {"role": "system", "parts": [{"text": "Be short."}]}, "contents": said}

    found = prepared(tmp_path, "causal-lm", row)
    assert [turn["role"] for turn in every(found)[0]["messages"]] == ["system", "user", "assistant"]
    with pytest.raises(DataError, match="do not fit the task"):
        prepared(tmp_path, "causal-lm", lambda number: {"contents": text(number)})


def exported(number, *results, cancelled=False, **more):
    own = {"id": 1, "result": [{"value": each, "from_name": "a", "to_name": "text"} for each in results]}
    skipped = [{"id": 0, "result": [], "was_cancelled": True}] if cancelled else []
    return {"id": number, "data": {"text": text(number)}, "annotations": [*skipped, own], **more}


def test_exports_of_label_studio_with_spans(tmp_path):
    def row(number):
        span = {"start": 2, "end": 5, "text": "red", "labels": ["COLOUR"]}
        return exported(number, *[span] * (number % 4 > 0), cancelled=number % 2 == 0)

    first, second, *_ = every(prepared(tmp_path, "token-classification", row))
    assert first["tags"] == ["O"] * 5
    assert second["tags"] == ["O", "B-COLOUR", "O", "O", "O", "O"]


def test_exports_of_label_studio_with_choices(tmp_path):
    def one(number):
        return exported(number, {"choices": [("good", "bad")[number % 2]]}) if number % 10 else {
            **exported(number), "annotations": []}  # fmt: skip

    found = prepared(tmp_path, "text-classification", one)
    assert every(found)[0] == {"text": text(1), "label": "bad"}
    assert found.record.dropped == {"no-annotation": 4}

    def several(number):
        return exported(number, {"choices": ["good", "bad"][: 1 + number % 2]})

    assert every(prepared(tmp_path, "multi-label-classification", several))[1]["label"] == ["bad", "good"]
    with pytest.raises(DataError, match="set task: multi-label-classification"):
        prepared(tmp_path, "text-classification", several)


ANNOTATED = [[f"{text(number)}.", {"entities": [[2, 5, "COLOUR"]] * (number % 2)}] for number in range(40)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ANNOTATED)),
        ("a.json", json.dumps({"classes": ["COLOUR"], "annotations": ANNOTATED})),
        ("a.jsonl", "".join(json.dumps(each) + "\n" for each in ANNOTATED)),
    ],
)
def test_texts_with_an_object_of_what_is_known_are_rows_as_spacy_has_them(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    recipe = Recipe(name="r", model="none", task="token-classification", domains={"d": {"source": name}},
                    data={"dedupe": {"near": False}})  # fmt: skip
    found = every(data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"])
    assert [row["tags"][1] for row in found[:2]] == ["O", "B-COLOUR"]


OPTIONS = ("one", "two", "three")


@pytest.mark.parametrize(
    "rows",
    [
        lambda n: {"choices": {"text": [*OPTIONS], "label": ["A", "B", "C"]}, "answerKey": "ABC"[n % 3]},
        lambda n: {"choices": {"text": [*OPTIONS], "label": ["1", "2", "3"]}, "answerKey": "123"[n % 3]},
        lambda n: {"choices": [{"text": each, "label": each[0]} for each in OPTIONS[1:]], "answerKey": "t"},
        lambda n: {"options": [*OPTIONS], "answer": OPTIONS[n % 3]},
        lambda n: {"options": json.dumps(OPTIONS), "answer": str(n % 3)},
        lambda n: {"endings": [*OPTIONS], "label": n % 3 if n % 13 else ""},
        lambda n: {"opa": "one", "opb": "two", "opc": "three", "cop": 1 + n % 3},
        lambda n: {"A": "one", "B": "two", "C": "three", "answer": "abc"[n % 3]},
        lambda n: {"option1": "one", "option2": "two", "option3": "three", "answer": str(1 + n % 3)},
        lambda n: {"sol0": "one", "sol1": "two", "sol2": "three", "label": n % 3},
    ],
)
def test_a_question_with_answers_to_choose_from_is_put_with_letters(tmp_path, rows):
    found = prepared(tmp_path, "causal-lm", lambda n: {"question": text(n, "what is"), **rows(n)}, 60)
    shown = {row["prompt"].partition("\n")[2]: row["completion"] for row in every(found)}
    if "t" in str(rows(0).get("answerKey")):
        assert shown == {"A. two\nB. three\nAnswer:": " A"}
        return
    assert {*shown} == {"A. one\nB. two\nC. three\nAnswer:"}
    completions = [row["completion"] for row in every(found)]
    assert {*completions} == {" A", " B", " C"}
    if found.record.dropped:
        assert found.record.dropped == {"missing-field": 5}
    else:
        assert completions[:3] == [" A", " B", " C"]


def test_of_answers_to_choose_from_the_right_one_is_the_positive(tmp_path):
    def row(number):
        return {"passage": text(number), "question": text(number, "what is"), "choices": OPTIONS, "answer": number % 3}

    first = every(prepared(tmp_path, "reranking", row))[0]
    assert first == {"anchor": f"{text(0)}\n\n{text(0, 'what is')}", "positive": "one", "negatives": ["two", "three"]}


def test_numbers_that_do_not_show_where_they_begin_are_no_choice(tmp_path):
    def row(number):
        return {"question": text(number), "choices": [*OPTIONS], "answer": 1 + number % 2}

    assert every(prepared(tmp_path, "causal-lm", row))[0]["completion"] == "1"
