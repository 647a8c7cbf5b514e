"""Chats in the shapes that people store them in."""

from __future__ import annotations

import json

import pytest

from hfadapt.schemas import Unusable
from hfadapt.schemas.completion import KIND as COMPLETION
from hfadapt.schemas.labelled import KIND as LABELLED
from hfadapt.schemas.messages import KIND as MESSAGES

IMAGE = {"type": "image_url", "image_url": {"url": "a"}}
USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}
PLAIN = [USER, ANSWER]


def turns(messages, **columns):
    return MESSAGES.make({"messages": messages, **columns}, lambda value: None)["messages"]


def part(text):
    return {"type": "text", "text": text, "image_url": None}


@pytest.mark.parametrize(
    "messages",
    [
        PLAIN,
        json.dumps(PLAIN),
        str(PLAIN),
        {"messages": PLAIN, "id": 3},
        json.dumps({"conversations": PLAIN}),
        [json.dumps(each) for each in PLAIN],
        [{"from": "human", "value": "why"}, {"from": "gpt", "value": "so"}],
        [{"role": "User", "content": "why"}, {"role": "model", "content": "so"}],
        [{"role": "user", "content": [part("why")]}, {"role": "assistant", "content": [part("so")]}],
        [{"role": "user", "parts": [{"text": "why"}]}, {"role": "model", "parts": [{"text": "so"}]}],
        {"contents": [{"role": "user", "parts": [{"text": "why"}]}, {"role": "model", "parts": [{"text": "so"}]}]},
        [{"role": "user", "content": part("why")}, {"role": "assistant", "content": ["so"]}],
        [{**USER, "tool_calls": None, "name": ""}, {**ANSWER, "tool_calls": [], "function_call": None}],
        [USER, {**ANSWER, "weight": 1}],
        [
            {"role": "user", "content": [{"type": "text", "value": "why"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "so"}], "loss_weight": 1.0},
        ],
        [{**USER, "weight": 0}, {**ANSWER, "weight": 1.0}],
        [USER, {"role": "assistant", "content": [{"type": "output_text", "text": "so", "annotations": []}]}],
    ],
)
def test_one_chat_in_many_shapes(messages):
    assert turns(messages) == PLAIN


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([part("a"), part("b")], "a\nb"),
        (5, "5"),
        (2.0, "2"),
        ([], ""),
        ({"answer": "é", "sure": None}, '{"answer": "é", "sure": null}'),
    ],
)
def test_contents_become_text_and_never_the_words_of_python(content, text):
    assert turns([USER, {"role": "assistant", "content": content}, USER, ANSWER])[1]["content"] == text


@pytest.mark.parametrize(
    ("messages", "columns", "reason", "words"),
    [
        ([{"role": "user", "content": [IMAGE]}, ANSWER], {}, "not-text", "turn 1 (user) has a part of type image_url"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}, ANSWER], {}, "not-text", "input_audio"),
        ([{"role": "user", "content": [{"type": "video"}]}, ANSWER], {}, "not-text", "video"),
        ([{"role": "user", "content": [{"type": "text", "words": "a"}]}], {}, "wrong-messages", "only type, words"),
        (PLAIN, {"media": ["a.png"]}, "not-text", "images"),
        ("so it goes", {}, "wrong-messages", "text that is no JSON: 'so it goes'"),
        (["why", "so"], {}, "wrong-messages", "turn 1 is text that is no JSON"),
        (7, {}, "wrong-messages", "a number, not a list of turns"),
        ([5], {}, "wrong-messages", "turn 1 is a number"),
        ([{"content": "a"}], {}, "wrong-messages", "turn 1 has no role, only content"),
        ([{"role": "boss", "content": "a"}], {}, "wrong-messages", "unknown role 'boss'; allowed: system"),
        ([USER, {"role": "assistant", "content": None}], {}, "wrong-messages", "turn 2 (assistant) has no content"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": 1}]}], {}, "wrong-messages", "no function with a name"),
        ([USER], {}, "no-assistant-turn", "no assistant turn"),
        ([USER, {"role": "assistant", "content": ""}], {}, "empty-completion", "empty assistant turns only"),
        ([USER, {**ANSWER, "weight": 0}], {}, "nothing-trained", "weight 0 in all"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_left_out_with_the_reason(messages, columns, reason, words):
    with pytest.raises(Unusable) as error:
        turns(messages, **columns)
    assert error.value.reason == reason
    assert words in error.value.detail


def test_keys_roles_tools_and_systems_are_kept():
    calls = [{"type": "function", "id": "1", "function": {"name": "look", "arguments": {"q": None}}}]
    messages = [
        {"role": "developer", "content": "be brief", "name": "me"},
        USER,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
            {"id": "1", "function": {"name": "look", "arguments": '{"q": null}'}}]},
        {"role": "function", "name": "look", "content": "found"},
        {**ANSWER, "weight": 0},
        {"role": "assistant", "content": "ok"},
    ]  # fmt: skip
    row = MESSAGES.make({"messages": messages, "tools": '[{"name": "look"}]', "system": "kind"}, lambda value: None)
    roles = [(each["role"], each["content"]) for each in row["messages"]]
    assert roles[:4] == [("system", "kind"), ("developer", "be brief"), ("user", "why"), ("assistant", "")]
    assert roles[4:] == [("tool", "found"), ("assistant", "so"), ("assistant", "ok")]
    more = [json.loads(each["more"]) if "more" in each else {} for each in row["messages"]]
    assert more == [{}, {"name": "me"}, {}, {"reasoning_content": "hm", "tool_calls": calls}, {"name": "look"}, {}, {}]
    assert [each.get("trained") for each in row["messages"]] == [None] * 5 + [False, None]
    assert json.loads(row["tools"]) == [{"type": "function", "function": {"name": "look"}}]
    assert MESSAGES.answers(row) == ['look {"q": null}', "ok"]
    assert MESSAGES.rewritten(row, str.upper)["messages"][3]["more"] == json.dumps(
        {"reasoning_content": "HM", "tool_calls": [
            {"type": "FUNCTION", "id": "1", "function": {"name": "LOOK", "arguments": {"q": None}}}]}
    )  # fmt: skip


def test_results_among_the_parts_of_a_turn_are_turns_of_tools():
    parts = [{"type": "tool_result", "tool_use_id": "1", "content": [part("found")]}, part("and")]
    made = turns([USER, {"role": "user", "content": parts}, ANSWER])
    assert [(each["role"], each["content"]) for each in made[1:3]] == [("tool", "found"), ("user", "and")]
    assert json.loads(made[1]["more"]) == {"tool_call_id": "1"}


def test_another_answer_takes_the_place_of_the_last_and_is_learned_alone():
    row = MESSAGES.make({"messages": [*PLAIN, *PLAIN, USER]}, lambda value: None)
    own = MESSAGES.reanswered(row, "because")
    assert MESSAGES.answers(own) == ["because"]
    assert [each["content"] for each in own["messages"]] == ["why", "so", "why", "because"]
    assert MESSAGES.answers(row) == ["so", "so"]
    assert MESSAGES.reanswered(row, " \n") is None
    assert COMPLETION.reanswered({"prompt": "why", "completion": "so"}, "because") == {
        "prompt": "why",
        "completion": "because",
    }
    assert LABELLED.reanswered({"text": "why", "label": "so"}, "because") is None


def test_calls_and_their_results_in_the_shape_of_gemini():
    call = {"functionCall": {"name": "find", "args": {"what": "a"}}}
    chat = [
        {"role": "user", "parts": [{"text": "find a"}]},
        {"role": "model", "parts": [call]},
        {"role": "user", "parts": [{"functionResponse": {"name": "find", "response": {"found": 1}}}]},
        {"role": "model", "parts": [{"text": "one"}]},
    ]
    found = turns(chat, system={"parts": [{"text": "be short"}]})
    assert [(each["role"], each["content"]) for each in found] == [
        ("system", "be short"),
        ("user", "find a"),
        ("assistant", ""),
        ("tool", '{"found": 1}'),
        ("assistant", "one"),
    ]
    assert json.loads(found[2]["more"])["tool_calls"][0]["function"] == {"name": "find", "arguments": {"what": "a"}}
