"""A chat that goes on in a better and in a worse way."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, Layout, RowSchema, Unusable, random_words, read_list
from hfadapt.schemas._turns import Turn, tools_of, turns_of
from hfadapt.schemas.completion import asked
from hfadapt.schemas.messages import ANSWER_WORDS, PROMPT_WORDS, asked_and_answered
from hfadapt.schemas.messages import KIND as MESSAGES
from hfadapt.schemas.preferences import SIDES, Preferences, _fault


class PreferenceChats(Preferences):
    """Rows of `messages`, which both chats begin with, and the turns of `chosen` and `rejected` that follow."""

    name = "preference-chats"
    rank = 61
    chat = True
    verbatim = ()
    adopts = {
        "preferences": lambda row: {
            "messages": asked_and_answered(row["prompt"], "")[:1],
            **{side: asked_and_answered("", row[side])[1:] for side in SIDES},
        }
    }

    @property
    def columns(self) -> tuple[str, ...]:
        """The turns before, and those of both sides."""
        return ("messages", *SIDES)

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """Three lists of turns, and `tools`."""
        (_, turns), tools = MESSAGES.fields(False)
        return [*((name, turns) for name in self.columns), tools]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The turns in OpenAI's shape. Raises Unusable where they cannot be read, or nothing is asked or answered."""
        sides = [_chat(values[side], "assistant") for side in SIDES]
        given = values.get("prompt")
        # A text may have a further input; turns say all themselves.
        before = [] if given is None else _chat(asked(values) if _is_text(given) else given, "user")
        if not all(_begins(side, before) for side in sides):
            # What a chat begins with stands in it, however the prompt is put; else it goes before it.
            before = [] if any(side[0]["role"] != "assistant" for side in sides) else before
            sides = [[*before, *side] for side in sides]
        if sides[0] == sides[1]:
            raise Unusable("same-answers", " has the same turns twice, so that neither is the better one")
        count = next(
            (at for at, pair in enumerate(zip(*sides, strict=False)) if pair[0] != pair[1]), min(map(len, sides))
        )
        before, sides = sides[0][:count], [side[count:] for side in sides]
        if values.get("system") and all(each["role"] != "system" for each in before):
            before = [{"role": "system", "content": str(values["system"])}, *before]
        if not any(each["role"] == "user" for each in before):
            raise Unusable("no-prompt", " has no turn of the user before its answers")
        for side, turns in zip(SIDES, sides, strict=True):
            if not any(each["role"] == "assistant" for each in turns):
                raise Unusable("no-assistant-turn", f" has no assistant turn in {side} that the other lacks")
        tools = tools_of(values.get("tools"))
        return {"messages": before, **dict(zip(SIDES, sides, strict=True)), **({"tools": tools} if tools else {})}

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """None: rows that become preferences may become chats."""
        return None

    def reread(self, values: Columns) -> tuple[str, dict[str, Any]] | None:
        """They are chats."""
        return None

    def words(self, row: Columns) -> str:
        """All turns but the system's, of both sides in the same order whichever is the better one."""
        return "\n".join([MESSAGES.words(row), *sorted(map("\n".join, self._said(row)))])

    def shown(self, row: Columns) -> str:
        """The user's turns before the answers."""
        return "\n".join(str(each["content"]) for each in row.get("messages") or () if each["role"] == "user")

    def quoted(self, row: Columns) -> tuple[str, ...]:
        """The user's last turn."""
        return MESSAGES.quoted(row)

    def answers(self, row: Columns) -> list[str]:
        """What the assistant says and calls, the better side first."""
        return [each for side in SIDES for each in MESSAGES.answers({"messages": row[side]})]

    def spelled(self, row: Columns) -> list[str]:
        """The contents of these turns, less thoughts."""
        return [each for side in SIDES for each in MESSAGES.spelled({"messages": row[side]})]

    def asked(self, row: Columns) -> list[str]:
        """The contents of all other turns."""
        return [each for name in self.columns for each in MESSAGES.asked({"messages": row[name]})]

    def question(self, values: Columns) -> str:
        """As of `messages`; a text as it is."""
        given = values.get("prompt") or ""
        return MESSAGES.question({"messages": asked(values) if _is_text(given) else given})

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The user's turns before the answers changed."""
        return MESSAGES.changed(row, change)

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """Every turn changed."""
        return {
            **row,
            **{name: MESSAGES.rewritten({"messages": row[name]}, change)["messages"] for name in self.columns},
        }

    def fault(self, row: Columns) -> str | None:
        """Both answers must say something, and not the same."""
        return _fault(["\n".join(each) for each in self._said(row)])

    def stated(self, row: Columns) -> list[str]:
        """What all turns say and call."""
        return [each for name in self.columns for each in MESSAGES.stated({"messages": row[name]})]

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A turn of random words, and two that answer it."""
        said = [random_words(chance, words) for words in (PROMPT_WORDS, ANSWER_WORDS, ANSWER_WORDS)]
        asked, chosen = asked_and_answered(said[0], said[1])
        return {"messages": [asked], "chosen": [chosen], "rejected": [{**chosen, "content": said[2]}]}

    def _said(self, row: Columns) -> list[list[str]]:
        return [MESSAGES.stated({"messages": row[side]}) for side in SIDES]


def _chat(value: Any, role: str) -> list[Turn]:
    """The turns of a value; a text is one of that role."""
    if _is_text(value):
        return [{"role": role, "content": value}]
    turns = turns_of(value)
    if not turns:
        raise Unusable("empty-completion", " has a chat without turns")
    return turns


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and read_list(value) is None


def _begins(turns: list[Turn], before: list[Turn]) -> bool:
    return turns[: len(before)] == before


KIND: RowSchema = PreferenceChats()
