"""A conversation with base and adapter: each goes on from its own answers, as it would alone."""

from __future__ import annotations

import html
import json
import re

import pytest
from tiny import INSTRUCTIONS
from ui_client import MARKUP, Client, serving

from hfadapt import load_adapted
from hfadapt.core.errors import RequestError
from hfadapt.ui.beside import Beside
from hfadapt.ui.chat import Conversation

TOKENS = 12
ASK = "/run/chats/one/this-machine/ask"


@pytest.fixture(scope="module")
def cell(chat_run):
    return chat_run.cell("one", "this-machine")


@pytest.fixture(scope="module")
def talk(chat_run):
    with serving(chat_run) as port:
        yield Client(port)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """So that a conversation has room in a model of 256 positions."""
    monkeypatch.setattr("hfadapt.ui.beside.ANSWER_TOKENS", TOKENS)


def sent(page):
    """The conversation that a page would send with the next message."""
    return html.unescape(re.search(r'name="conversation" value="([^"]*)"', page)[1])


def test_each_side_is_shown_its_own_answers(cell):
    beside, adapted = Beside(), load_adapted(cell.folder)
    first = beside.answer(cell, Conversation().told("the light morning", INSTRUCTIONS))
    second = beside.answer(cell, first.told("a friend in town"))
    beside.close()
    for said in (first, second):
        assert said.turns[-1].adapter == adapted.reply(said.of("adapter")[:-1], TOKENS)
        with adapted.model.disable_adapter():
            assert said.turns[-1].base == adapted.reply(said.of("base")[:-1], TOKENS)
    assert first.turns[-1].base != first.turns[-1].adapter
    base, own = (second.of(side) for side in ("base", "adapter"))
    assert [turn["role"] for turn in own] == ["system", "user", "assistant", "user", "assistant"]
    assert (base[2]["content"], own[2]["content"]) == (first.turns[-1].base, first.turns[-1].adapter)
    assert base[:2] == own[:2]


def test_a_chat_goes_on_over_several_messages(talk):
    status, page, _ = talk.ask(ASK)
    assert status == 200
    # What the rows begin with is what the adapter expects.
    assert f">{INSTRUCTIONS}</textarea>" in page
    status, page, _ = talk.ask(ASK, {"system": INSTRUCTIONS, "text": f"a warm {MARKUP}"})
    assert status == 200, page
    assert MARKUP not in page
    status, page, _ = talk.ask(ASK, {"conversation": sent(page), "text": "and the bread"})
    assert status == 200, page
    turns = json.loads(sent(page))
    assert [each["role"] for each in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[1]["content"] == f"a warm {MARKUP}"
    assert page.count(">Answers</h2>") == 2
    assert page.count("data-focus>Answers") == 1


def test_a_test_row_begins_a_chat(talk, cell):
    row = cell.read_split("test")[1]
    status, page, _ = talk.ask(ASK, {"row": "1"})
    assert status == 200, page
    turns = json.loads(sent(page))
    before = [turn["content"] for turn in row["messages"][:-1]]
    assert [each["content"] for each in turns[:-1]] == before
    assert f"Right would be: <strong>{row['messages'][-1]['content']}</strong>" in page
    status, page, _ = talk.ask(ASK, {"conversation": sent(page), "text": "go on"})
    assert (status, len(json.loads(sent(page)))) == (200, len(turns) + 2)


def test_what_cannot_be_a_chat_is_told(talk):
    for form, said in (
        ({"text": " "}, "no text"),
        ({"conversation": '{"role": 1}', "text": "a"}, "conversation was changed"),
        ({"text": "word " * 5000}, "longer than what the model reads"),
        ({"row": "900"}, "no such test row"),
    ):
        status, page, _ = talk.ask(ASK, form)
        assert (status, said in page) == (400, True), page


def test_a_conversation_comes_back_as_it_was_sent():
    said = Conversation().told("ü <b>", "be kind").answered("a", "").told("b")
    assert Conversation.sent(said.text) == said
    with pytest.raises(RequestError, match="begin a new chat"):
        Conversation.sent("[")
