"""Pairs of a better and a worse answer, in the shapes that people keep them in."""

from __future__ import annotations

import json

import pytest
from tiny import preferences, preferred_chats

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data import columns
from hfadapt.files.places import Place
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import token_ids
from hfadapt.models.load import load_base
from hfadapt.recipe.schema import Columns
from hfadapt.schemas import Unusable

FORMS = registry.task("preference").schemas
TEXTS, CHATS = registry.schema("preferences"), registry.schema("preference-chats")
ASKED = {"role": "user", "content": "What is red?"}
EARLIER = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def answer(text):
    return {"role": "assistant", "content": text}


def made(values):
    """The row of one source, and the name of its schema."""
    shape = columns.recognise(list(values), Columns(), FORMS, "d", False)
    row = columns.Formatter("d", shape, None, columns.Labels(None), (), tuple(values)).row(Place("d", 0), values)
    return row.form if hasattr(row, "form") else row.reason, getattr(row, "columns", row)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "Red is", "chosen": " a colour", "rejected": " a town"},
        {"question": "Red is", "preferred": " a colour", "dispreferred": " a town"},
        {"chosen": "Red is a colour", "rejected": "Red is a town", "score": 3},
    ],
)
def test_texts(values):
    form, row = made(values)
    assert form == "preferences"
    if "question" in values or "prompt" in values:
        assert row == {"prompt": "Red is", "chosen": " a colour", "rejected": " a town"}
    else:
        # What both begin with is the prompt, up to the last white space.
        assert row == {"prompt": "Red is a", "chosen": " colour", "rejected": " town"}


def test_a_prompt_is_what_both_answers_begin_with():
    values = {"chosen": "Human: hi\n\nAssistant: Hello", "rejected": "Human: hi\n\nAssistant: Hey"}
    assert made(values)[1] == {"prompt": "Human: hi\n\nAssistant:", "chosen": " Hello", "rejected": " Hey"}
    assert made({"chosen": "yes", "rejected": "no"})[0] == "no-prompt"


SHAPES = {
    "as in ultrafeedback": {"prompt": "What is red?", "chosen": [ASKED, answer("a colour")],
                            "rejected": [ASKED, answer("a town")], "messages": [ASKED, answer("a colour")]},
    "without a prompt": {"chosen": [ASKED, answer("a colour")], "rejected": [ASKED, answer("a town")]},
    "the prompt apart": {"prompt": [ASKED], "chosen": [answer("a colour")], "rejected": [answer("a town")]},
    "the prompt as text": {"prompt": "What is red?", "chosen": [answer("a colour")], "rejected": [answer("a town")]},
    "answers as text": {"prompt": [ASKED], "chosen": "a colour", "rejected": [answer("a town")]},
    "as JSON": {"chosen": json.dumps([ASKED, answer("a colour")]), "rejected": json.dumps([ASKED, answer("a town")])},
    "as of ShareGPT": {"chosen": [{"from": "human", "value": "What is red?"}, {"from": "gpt", "value": "a colour"}],
                       "rejected": [ASKED, answer("a town")]},
    "columns of LLaMA-Factory": {"chosen_messages": [ASKED, {**answer("a colour"), "loss_weight": 1.0}],
                                 "rejected_messages": [ASKED, {**answer("a town"), "loss_weight": 1.0}]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_chats(shape):
    form, row = made(SHAPES[shape])
    assert form == "preference-chats"
    assert row == {"messages": [ASKED], "chosen": [answer("a colour")], "rejected": [answer("a town")]}
    assert columns.form_of(row) == "preference-chats"


def test_a_chat_of_several_turns_is_asked_up_to_where_it_parts():
    before = [*EARLIER, ASKED]
    _, row = made(
        {"chosen": [*before, answer("a colour")], "rejected": [*before, answer("a town")], "system": "be kind"}
    )
    assert row["messages"] == [{"role": "system", "content": "be kind"}, *before]
    assert CHATS.answers(row) == ["a colour", "a town"]
    assert CHATS.asked(row) == ["be kind", "hi", "What is red?"]
    assert CHATS.shown(row) == "hi\nWhat is red?"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"chosen": [ASKED, answer("a")], "rejected": [ASKED, answer("a")]}, "same-answers"),
        ({"chosen": [ASKED, answer("a")], "rejected": [ASKED]}, "no-assistant-turn"),
        ({"chosen": [answer("a")], "rejected": [answer("b")]}, "no-prompt"),
        ({"chosen": [ASKED, answer("a")], "rejected": []}, "wrong-messages"),
    ],
)
def test_pairs_that_teach_nothing_are_named(values, reason):
    if reason == "wrong-messages":
        with pytest.raises(Unusable):
            CHATS.make(values, str)
        return
    assert made(values)[0] == reason


def test_the_same_answer_twice_is_no_pair():
    assert TEXTS.fault({"prompt": "p", "chosen": " a  b", "rejected": "a b "}) == "same-answers"
    assert TEXTS.fault({"prompt": "p", "chosen": " a", "rejected": " "}) == "empty-completion"
    assert TEXTS.fault({"prompt": "p", "chosen": " a", "rejected": " b"}) is None
    row = {"messages": [ASKED], "chosen": [answer("a ")], "rejected": [answer("a")]}
    assert CHATS.fault(row) == "same-answers"


def test_a_pair_that_is_turned_round_has_the_same_words():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert TEXTS.words(row) == TEXTS.words({"prompt": "p", "chosen": "b", "rejected": "a"})
    chat = {"messages": [ASKED], "chosen": [answer("a")], "rejected": [answer("b")]}
    assert CHATS.words(chat) == CHATS.words({**chat, "chosen": chat["rejected"], "rejected": chat["chosen"]})


def test_texts_beside_chats_become_chats():
    rows = [made(SHAPES["without a prompt"])[1], {"prompt": "What is red?", "chosen": "a colour", "rejected": "a town"}]
    assert CHATS.adopts["preferences"](rows[1]) == rows[0]


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_canary_is_a_row(form):
    import random

    from hfadapt.schemas import Answers

    schema = registry.schema(form)
    row = schema.canary(random.Random(1), None, Answers({}))
    assert set(row) == set(schema.columns)
    assert schema.fault(row) is None
    assert len(schema.answers(row)) == 2
    assert schema.rewritten(row, str.upper) != row
    assert schema.changed(row, lambda text, place: text.upper())["chosen"] == row["chosen"]


def test_a_language_model_says_where_pairs_are_learned():
    with pytest.raises(DataError, match="set task: preference, which learns from both"):
        columns.recognise(
            ["prompt", "chosen", "rejected"], Columns(), frozenset({"completion", "messages"}), "d", False
        )


@pytest.mark.parametrize("make", [preferences, preferred_chats])
def test_both_answers_follow_the_same_prompt(models, make):
    import torch
    from tiny import make_lock

    task = registry.task("preference")
    base = load_base(make_lock(models / "lm", "preference"), (), torch.device("cpu"))
    rows = [made(row)[1] for row in make(6)]
    rows[0] = {**rows[0], "prompt": "room " * 60 + ":"} if "prompt" in rows[0] else rows[0]
    for example in task.encode(rows, base.tokenizer, max_length=40):
        better, worse = example.parts
        first, second = (next(at for at, label in enumerate(part.labels) if label != IGNORED) for part in example.parts)
        assert first == second > 0
        assert token_ids(better)[:first] == token_ids(worse)[:first]
        assert better.size <= 40 >= worse.size
        ends = {part.labels[-1] for part in example.parts} | {part.labels[-2] for part in example.parts}
        assert base.tokenizer.eos_token_id in ends
        assert example.labels == (*better.labels, *worse.labels)


@pytest.mark.parametrize("make", [preferences, preferred_chats])
def test_a_pair_of_which_one_answer_would_be_cut_is_left_out(models, make):
    import torch
    from tiny import make_lock

    task = registry.task("preference")
    tokenizer = load_base(make_lock(models / "lm", "preference"), (), torch.device("cpu")).tokenizer
    row = made(make(1)[0])[1]
    long = "film " * 50
    cut = {**row, "rejected": [{**row["rejected"][0], "content": long}] if "messages" in row else long}
    assert task.fitted(row, tokenizer, 40) == [row]
    with pytest.raises(Unusable, match="answer-too-long") as fault:
        task.fitted(cut, tokenizer, 40)
    assert "its rejected answer needs" in fault.value.detail
    assert task.fitted(cut, tokenizer) == [cut]


def test_where_length_alone_tells_is_said(models):
    import torch
    from tiny import make_lock

    task = registry.task("preference")
    tokenizer = load_base(make_lock(models / "lm", "preference"), (), torch.device("cpu")).tokenizer
    rows = [{"prompt": f"film {n} :", "chosen": " good and warm", "rejected": " bad"} for n in range(30)]
    examples = task.encode(rows, tokenizer, max_length=40)
    (remark,) = task.noticed(examples)
    assert remark.code == "length-tells"
    assert "the longer answer is the better one in 100%" in remark.what
    assert "of which the longer one is the better in 100%" in task.setting(examples)
    mixed = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} if n % 2 else row
             for n, row in enumerate(rows)]  # fmt: skip
    assert task.noticed(task.encode(mixed, tokenizer, max_length=40)) == []
