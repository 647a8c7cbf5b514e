"""Chats under the templates of well-known models: what is learned is what the template writes, token for token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_tokenizer

from hfadapt.core.errors import DataError
from hfadapt.data.audit.findings import MARKER
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import token_ids
from hfadapt.schemas import Unusable
from hfadapt.schemas.messages import KIND as MESSAGES
from hfadapt.tasks.causal_lm.task import KIND as LM

TEMPLATES = Path(__file__).parent / "templates"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "find", "parameters": {"type": "object"}}}]


def tokenizer(template):
    made = make_tokenizer()
    made.chat_template = template if "{" in template else (TEMPLATES / f"{template}.jinja").read_text()
    return made


def test_the_mark_of_generation_does_not_make_it_another_models_template():
    """`<|{{ m.role }}|>` is filled in before there is a marker."""
    assert MARKER.findall(GENERATION.replace("{{ m['role'] }}", "{{m['role']}}")) == [
        "<|end|>",
        "<|end|>",
        "<|assistant|>",
    ]


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name="look", arguments='{"q": "room"}'):
    return {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}}


RESULT = {"role": "tool", "content": "the room", "tool_call_id": "abcdefghi"}
ONE = [user("the room"), said("warm light")]
TWO = [*ONE, user("a song"), said("cold water")]
SYSTEM = [system("be warm"), *TWO]
THINKING = [
    user("room"),
    said("<think>\nlong\n</think>\n\nlight"),
    user("song"),
    said("<think>\nwarm\n</think>\n\ncold"),
]
CALLS = [user("room"), said("", tool_calls=[call()]), RESULT, said("light"), user("song"), said("water")]


def made(messages, **columns):
    return {**MESSAGES.make({"messages": messages, **columns}, lambda value: None), "source": "d.jsonl", "row": 7}


def learned(row, tokenizer):
    """Of each example of a row its text, and the text of each run of labels in it."""
    found = []
    for each in LM.fitted(row, tokenizer):
        [example] = LM.encode([each], tokenizer, max_length=4096)
        runs, before = [], IGNORED
        for token, label in zip(token_ids(example), example.labels, strict=True):
            assert label in (IGNORED, token)
            if label != IGNORED:
                runs = [*runs, []] if before == IGNORED else runs
                runs[-1].append(token)
            before = label
        found.append((tokenizer.decode(token_ids(example)), [tokenizer.decode(run) for run in runs]))
    return found


def codes(row, tokenizer):
    return [(each.code, each.what) for one in LM.fitted(row, tokenizer) for each in LM.remarks(one, tokenizer)]


# --- what is learned is what the template writes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "tools", "examples"),
    [
        ("qwen3", ONE, None, 1),
        ("qwen3", TWO, None, 2),
        ("qwen3", SYSTEM, None, 2),
        ("qwen3", THINKING, None, 2),
        ("qwen3", CALLS, TOOLS, 3),
        ("llama3", SYSTEM, None, 1),
        ("llama3", [said("hi"), *ONE], None, 1),
        ("llama3", [user("a"), said("b"), said("c")], None, 1),
        ("gemma", TWO, None, 1),
        ("mistral", TWO, None, 1),
        ("mistral", SYSTEM, None, 2),
        ("mistral", CALLS, TOOLS, 2),
        (CHATML, SYSTEM, None, 1),
        (GENERATION, SYSTEM, None, 1),
    ],
)
def test_each_answer_is_learned_after_what_the_model_will_be_shown(template, messages, tools, examples):
    """Oracle: the tokenizer's own `apply_chat_template`, with the generation prompt and without."""
    tok = tokenizer(template)
    row = made(messages, tools=tools)
    as_object = {"tool_calls": [call(arguments={"q": "room"})]}
    turns = [{**each, **as_object} if "tool_calls" in each else each for each in messages]

    def write(count, ask):
        return tok.apply_chat_template(turns[:count], tools=tools, tokenize=False, add_generation_prompt=ask)

    found = learned(row, tok)
    assert len(found) == examples
    places = [at for at, each in enumerate(messages) if each["role"] == "assistant"]
    runs = [(text, run) for text, all_runs in found for run in all_runs]
    assert len(runs) == len(places)
    for at, (text, run) in zip(places, runs, strict=True):
        shown = write(at, True) if at else text[: text.index(run)]
        assert text.startswith(shown + run)
        # With the generation prompt before it, the answer is the last words of what the template makes of it.
        assert write(at + 1, False).rstrip("\n").endswith(shown[-12:] + run)


def test_a_tool_call_is_learned_in_the_words_of_the_template():
    tok = tokenizer("qwen3")
    texts = learned(made(CALLS, tools=json.dumps(TOOLS)), tok)
    assert texts[0][1] == [
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {"q": "room"}}\n</tool_call><|im_end|>'
    ]
    assert '"description": "find"' in texts[0][0]
    assert "<tool_response>\nthe room\n</tool_response>" in texts[1][0]


@pytest.mark.parametrize(
    "messages",
    [
        [user("room"), {"role": "assistant", "content": None, "tool_calls": [call(arguments={"q": "room"})]}],
        [user("room"), {"role": "assistant", "tool_calls": json.dumps([call()])}],
        [user("room"), {"role": "assistant", "function_call": {"name": "look", "arguments": '{"q": "room"}'}}],
        [
            {"from": "human", "value": "room"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"q": "room"}}'},
        ],
        [user("room"), said([{"type": "tool_use", "id": "1", "name": "look", "input": {"q": "room", "more": None}}])],
    ],
)
def test_calls_of_every_shape_are_the_same(messages):
    [(_, [text])] = learned(made(messages), tokenizer("qwen3"))
    assert '{"name": "look", "arguments": {"q": "room"}}' in text


def test_calls_that_the_template_does_not_write_are_left_out_by_name():
    with pytest.raises(Unusable) as error:
        LM.fitted(made(CALLS), tokenizer(CHATML))
    assert error.value.reason == "tool-calls-not-shown"
    assert "tool_calls (turn 2 calls look)" in error.value.detail
    with pytest.raises(DataError, match="does not write tool_calls"):
        LM.encode([made(CALLS)], tokenizer(CHATML), max_length=512)


def test_parted_chats_come_out_the_same_again():
    tok = tokenizer("qwen3")
    once = LM.fitted(made(TWO), tok)
    assert [LM.fitted(row, tok) for row in once] == [[row] for row in once]
    # Without parting, the last answer alone is learned, after what it will be shown.
    [example] = LM.encode([made(TWO)], tok, max_length=512)
    assert [example.labels] == [each.labels for each in LM.encode(once[-1:], tok, max_length=512)]


@pytest.mark.parametrize("switch", [{"weight": 0}, {"train": False}, {"loss": 0.0}, {"trainable": "false"}])
def test_an_answer_that_is_switched_off_is_shown_and_not_learned(switch):
    row = made([user("room"), said("warm", **switch), user("song"), said("cold", weight=1)])
    [(text, runs)] = learned(row, tokenizer(CHATML))
    assert runs == ["cold<|im_end|>"]
    assert "assistant\nwarm<|im_end|>" in text
    assert codes(row, tokenizer(CHATML)) == []


def test_a_developer_is_a_system_where_the_template_knows_none():
    messages = [{"role": "developer", "content": "be warm"}, *ONE]
    assert "<|im_start|>system\nbe warm" in learned(made(messages), tokenizer(CHATML))[0][0]
    knowing = CHATML.replace("{{ m['role'] }}", "{{ 'boss' if m['role'] == 'developer' else m['role'] }}")
    assert "<|im_start|>boss\nbe warm" in learned(made(messages), tokenizer(knowing))[0][0]


# --- what is not shown or learned is said -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "columns", "code", "words"),
    [
        (CHATML, ONE, {"tools": TOOLS}, "not-shown", "`tools` is not shown"),
        (CHATML, [user("a"), said("b", reasoning_content="c")], {}, "not-shown", "`reasoning_content` of a turn"),
        (CHATML, [{**user("a"), "name": "Ada"}, said("b")], {}, "not-shown", "`name` of a turn"),
        (CHATML, [user("a"), said("b", weight=0.5)], {}, "not-shown", "`weight` of a turn"),
        ("deepseek-r1", THINKING, {}, "not-shown", "the thinking in an answer"),
        ("deepseek-r1", ONE, {}, "other-prompt", "<think>"),
        ("qwen3", [user("a"), said("b"), system("be cold"), user("c"), said("d")], {}, None, ""),
        (
            "{% for m in messages if m.role != 'system' %}" + CHATML.partition("%}")[2],
            SYSTEM,
            {},
            "not-shown",
            "a turn of the system",
        ),
        (CHATML, [*ONE, user("what then")], {}, "not-trained", "follows the last answer"),
        (CHATML, [user("a"), said(""), user("b"), said("c")], {}, "empty-answer", "is empty"),
        (CHATML, [user("a"), said("", weight=0), user("b"), said("c")], {}, None, ""),
        (CHATML, SYSTEM, {}, None, ""),
        ("qwen3", SYSTEM, {}, None, ""),
        ("mistral", SYSTEM, {}, None, ""),
    ],
)
def test_what_is_not_shown_or_learned_is_said(template, messages, columns, code, words):
    found = codes(made(messages, **columns), tokenizer(template))
    assert {each for each, _ in found} == ({code} if code else set()) | (
        {"other-prompt"} if template == "deepseek-r1" else set()
    )
    if code:
        assert any(words in what for _, what in found)


# --- templates that refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("gemma", SYSTEM, "refuses the chat: System role not supported"),
        ("gemma", [user("a"), user("b"), said("c")], "refuses the chat: Conversation roles must alternate"),
        ("mistral", [said("a"), *ONE], "refuses the chat: After the optional system message"),
        ("{% for m in messages %}{{ m.content }", ONE, "is broken: "),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", ONE, "refuses the chat: "),
        ("{{ nothing.here }}", ONE, "refuses the chat: 'nothing' is undefined"),
        (None, ONE, "no chat template"),
    ],
)
def test_a_template_that_refuses_is_quoted(template, messages, words):
    tok = make_tokenizer()
    tok.chat_template = tokenizer(template).chat_template if template else None
    with pytest.raises(DataError) as error:
        LM.encode([made(messages)], tok, max_length=64)
    assert words in str(error.value)
    assert "fix:" in str(error.value)
    if template:
        assert "row 8 of d.jsonl" in str(error.value)


def test_turns_that_a_template_changes_beyond_recognition_are_refused():
    hiding = "{% for m in messages %}{{ m.content | length + messages | length }}{% endfor %}"
    with pytest.raises(DataError, match="changes earlier turns"):
        LM.encode([made(TWO)], tokenizer(hiding), max_length=64)
