"""`hfadapt new` on the shapes in which chats, pairs and preferences are kept elsewhere: what it takes, and what not."""

from __future__ import annotations

import json

import pytest
from tiny import command

from hfadapt import check_recipe
from hfadapt.cli.asking import preview
from hfadapt.cli.new_recipe import guesses, write_recipe
from hfadapt.recipe.reading import load_recipe

WORDS = ("red", "blue", "small", "large", "old", "new", "round", "flat")


def write(path, row, rows=40):
    """Rows made of a number and a word."""
    each = [row(number, f"a {WORDS[number % 8]} thing {WORDS[number // 8 % 8]} {number}") for number in range(rows)]
    path.write_text("".join(json.dumps(one) + "\n" for one in each))
    return str(path)


def turn(text):
    return {"from": "gpt", "value": text}


@pytest.mark.parametrize(
    ("row", "task", "parts"),
    [
        (
            lambda n, text: {"instruction": "Name it.", "input": text, "output": f"it {n}"},
            "causal-lm",
            {"prompt": "instruction", "instruction_input": "input", "completion": "output"},
        ),
        (
            lambda n, text: {"question": "What is it?", "context": text, "answer": f"it {n}"},
            "causal-lm",
            {"prompt": "question", "instruction_input": "context", "completion": "answer"},
        ),
        (
            lambda n, text: {"Frage": text, "Antwort": f"it {n}", "id": n},
            "causal-lm",
            {"prompt": "Frage", "completion": "Antwort"},
        ),
        (
            lambda n, text: {"instruction": "Name it.", "input": text, "chosen": f"it {n}", "rejected": f"no {n}"},
            "preference",
            {"prompt": "instruction", "instruction_input": "input"},
        ),
        (
            lambda n, text: {
                "conversations": [{"from": "human", "value": text}],
                "chosen": turn(f"it {n}"),
                "rejected": turn(f"no {n}"),
            },
            "preference",
            {"prompt": "conversations"},
        ),
    ],
)
def test_instructions_with_an_input_and_preferences_of_single_turns(models, tmp_path, row, task, parts):
    path = write_recipe(str(models / "lm"), write(tmp_path / "d.jsonl", row), tmp_path / "d.yaml")
    recipe = load_recipe(path)
    assert (recipe.task, recipe.domains["d"].columns.parts) == (task, parts)
    assert "a red thing" in str(preview(path))
    assert "Guessed" not in path.read_text()


def test_a_further_input_can_be_named(models, tmp_path):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"ask": "Name it.", "about": text, "say": f"it {n}"})
    said = "prompt=ask,instruction_input=about,completion=say"
    done = command("new", data, "--model", models / "lm", "--columns", said, folder=tmp_path)
    assert done.code == 0, done.err
    assert "Name it. a red thing" in done.out


@pytest.mark.parametrize(
    "row",
    [
        lambda n, text: {"query": f"what is {n}", "document": text, "label": n % 2},
        lambda n, text: {"query": f"what is {n}", "document": text, "score": n % 7 / 7},
        lambda n, text: {"question1": f"what is {n}", "question2": text, "is_duplicate": n % 2, "id": n},
        lambda n, text: {"sent_1": f"what is {n}", "sent_2": text, "rating": n % 5},
    ],
)
def test_a_query_is_not_left_out_for_the_label_of_its_document(models, tmp_path, row):
    path = write_recipe(str(models / "encoder"), write(tmp_path / "d.jsonl", row), tmp_path / "d.yaml")
    assert load_recipe(path).task == "embedding"
    assert "form 'scored-pairs'" in path.read_text()


def test_a_text_with_a_class_is_not_taken_for_a_pair_because_of_what_it_is_about(models, tmp_path):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"text": text, "context": f"page {n}", "label": n % 2})
    assert load_recipe(write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml")).task == "text-classification"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (lambda n, text: {"query": [f"one {n}", f"two {n}"], "pos": text}, "write a row for each of these texts"),
        (lambda n, text: {"premise": text, "hypothesis": f"it {n}", "label": "no"}, "'no' where a number is needed"),
        (lambda n, text: {"premise": text, "hypothesis": f"it {n}", "label": "no"}, "set task: text-classification"),
    ],
)
def test_rows_of_which_none_is_left_are_said_at_once(models, tmp_path, row, said):
    path = write_recipe(str(models / "encoder"), write(tmp_path / "d.jsonl", row), tmp_path / "d.yaml")
    assert said in " ".join(str(preview(path)).split())


def test_rows_without_a_text_are_told_at_once(models, tmp_path):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"text": text if n % 3 else None, "label": "ab"[n % 2]}, 60)
    path = write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml")
    said = " ".join(str(preview(path)).split())
    assert "rows lack columns" in said
    assert "line 1 of d.jsonl has no text" in said


@pytest.mark.parametrize("column", ["label", "entities", "spans"])
def test_spans_are_no_classes(models, tmp_path, column):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"text": text, column: [[2, 5, "KIND"]] * (n % 3 > 0)})
    path = write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml")
    assert load_recipe(path).task == "token-classification"
    assert "O B-KIND O" in str(preview(path))


def test_numbers_are_told_though_some_cells_say_that_there_is_none(models, tmp_path):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"text": text, "price": "N/A" if n % 15 == 0 else f"{n}.25"}, 60)
    path = write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml")
    assert load_recipe(path).task == "text-regression"
    assert check_recipe(path).records[0].dropped == {"missing-field": 4}


def test_of_a_scored_pair_both_texts_are_shown(models, tmp_path):
    data = write(tmp_path / "d.jsonl", lambda n, text: {"sentence1": text, "sentence2": f"other {n}", "score": n / 7})
    shown = " ".join(str(preview(write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml"))).split())
    assert "a red thing red 0 | other 0" in shown


def test_what_better_and_worse_answers_were_asked_is_the_only_other_column_of_texts(models, tmp_path):
    data = write(
        tmp_path / "d.jsonl", lambda n, text: {"ask": text, "id": n, "chosen": f"it {n}", "rejected": f"no {n}"}
    )
    path = write_recipe(str(models / "lm"), data, tmp_path / "d.yaml")
    assert load_recipe(path).domains["d"].columns.parts == {"prompt": "ask"}
    assert "Guessed: prompt is the column 'ask', the only other one with texts" in path.read_text()


@pytest.mark.parametrize(
    ("model", "row", "task", "parts"),
    [
        (
            "encoder",
            lambda n, text: {"query": text, "documents": [f"it {n}", f"no {n}"], "labels": [n % 2, 1 - n % 2]},
            "embedding",
            {"anchor": "query", "positive": "documents"},
        ),
        (
            "lm",
            lambda n, text: {"question": text, "answer_1": f"it {n}", "answer_2": f"no {n}", "winner": 1 + n % 2},
            "preference",
            {"prompt": "question"},
        ),
        (
            "lm",
            lambda n, text: {"question": text, "answer": [f"it {n}", f"or {n}"]},
            "causal-lm",
            {"prompt": "question", "completion": "answer"},
        ),
        (
            "lm",
            lambda n, text: {"question": text, "answers": {"text": [f"it {n}"], "answer_start": [0]}},
            "causal-lm",
            {"prompt": "question", "completion": "answers"},
        ),
        (
            "encoder",
            lambda n, text: {
                "question": text,
                "context": f"of {n}",
                "answers": {"text": [f"{n}"], "answer_start": [0]},
            },
            "embedding",
            {"anchor": "question", "positive": "context"},
        ),
        (
            "encoder",
            lambda n, text: {"sentence_id": n // 3, "word": text.split()[n % 3], "tag": ["O", "B-x"][n % 2]},
            "token-classification",
            {"tokens": "word", "tags": "tag"},
        ),
        (
            "encoder",
            lambda n, text: {
                "data": {"text": text},
                "annotations": [{"result": [{"value": {"choices": ["ab"[n % 2]]}}]}],
            },
            "text-classification",
            {"text": "data.text"},
        ),
    ],
)
def test_rows_that_are_kept_in_another_way_are_for_the_task_that_learns_from_them(
    models, tmp_path, model, row, task, parts
):
    path = write_recipe(str(models / model), write(tmp_path / "d.jsonl", row), tmp_path / "d.yaml")
    recipe = load_recipe(path)
    assert (recipe.task, recipe.domains["d"].columns.parts) == (task, parts)
    assert "Guessed" not in path.read_text()
    assert "the model is shown" in str(preview(path))
    assert check_recipe(path, say=lambda text: None).records[0].rows_kept > 0


@pytest.mark.parametrize(
    "row",
    [
        lambda n, text: {"question": text, "choices": {"text": [f"it is {n}", f"no {n}"], "label": ["A", "B"]},
                         "answerKey": "AB"[n % 2]},
        lambda n, text: {"question": text, "choices": [f"it is {n}", f"no {n}"], "answer": n % 2},
        lambda n, text: {"query": text, "candidates": [f"it is {n}", f"no {n}"], "answer": f"it is {n}"},
    ],
)  # fmt: skip
def test_questions_with_answers_to_choose_from_are_for_what_the_model_can_do(models, tmp_path, row):
    data = write(tmp_path / "d.jsonl", row)
    for model, task, shown in (("lm", "causal-lm", "A. it is 0 B. no 0 Answer:"), ("encoder", "embedding", "it is 0")):
        path = write_recipe(str(models / model), data, tmp_path / f"{model}.yaml")
        assert load_recipe(path).task == task
        assert shown in " ".join(str(preview(path)).split())
        assert check_recipe(path, say=lambda text: None).records[0].rows_kept > 30


@pytest.mark.parametrize(
    ("labels", "none"),
    [
        (("a", "b", ""), [""]),
        (("a", "b", "???"), ["???"]),
        (("a", "b", "N/A"), ["N/A"]),
        (("a", "b", "", "-"), ["", "-"]),
        # Few empty cells need no word; signs can be classes; something has to be left.
        (("a", "b", *"abab" * 5, ""), None),
        (("+", "-"), None),
        (("yes", "?"), None),
    ],
)
def test_rows_that_are_not_labelled_are_told(models, tmp_path, labels, none):
    moods = [labels[n % len(labels)] for n in range(96)]
    data = write(tmp_path / "d.jsonl", lambda n, text: {"text": text, "mood": moods[n]}, len(moods))
    path = write_recipe(str(models / "encoder"), data, tmp_path / "d.yaml")
    assert [*load_recipe(path).domains["d"].no_label] == (none or [])
    told = [each for each in guesses(path) if "no_label" in each]
    assert bool(told) == bool(none)
    if none:
        count = sum(1 for mood in moods if mood in none)
        assert f"{count} rows without a label (no_label: " in told[0]
        assert check_recipe(path).records[0].dropped["no-label"] == count
