"""A chat, of which the assistant's turns are learned."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import Answers, Asked, Change, Columns, Layout, RowSchema, Unusable, random_words, read_list
from hfadapt.schemas._layouts import columns_of, each, listed, named
from hfadapt.schemas._turns import Turn, text_of, tools_of, turns_of

PROMPT_WORDS, ANSWER_WORDS = 3, 6
_THOUGHT = re.compile(r"<think>.*?</think>|^.*?</think>", re.DOTALL)
ASKING = ("user", "tool")
"""Roles whose turns are answered."""


class Messages(RowSchema):
    """Rows of `messages`: turns as in `_turns.py`; `tools` that an assistant may call, as JSON text."""

    name = "messages"
    rank = 0
    parts = ("messages",)
    optional = ("tools", "system", "media")
    names = {
        "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat"),
        "tools": ("tools", "functions"),
        "system": ("system", "system_prompt", "systeminstruction", "system_instruction"),
        "media": ("images", "image", "videos", "video", "audios", "audio"),
    }
    writes = True
    chat = True
    adopts = {"completion": lambda row: {"messages": asked_and_answered(row["prompt"], row["completion"])}}

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`messages` and `tools`, and `label` where the last turn stands for a class."""
        import pyarrow as pa

        text = pa.string()
        turn = pa.struct([("role", text), ("content", text), ("more", text), ("trained", pa.bool_())])
        return [("messages", pa.list_(turn)), ("tools", text), *([("label", text)] if labelled else [])]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The turns in OpenAI's shape. Raises Unusable where they cannot be read or nothing is answered."""
        if values.get("media"):
            raise Unusable("not-text", " has images, sound or film beside the chat, and only text is learned")
        turns = turns_of(values["messages"])
        if values.get("system") and all(each["role"] != "system" for each in turns):
            turns.insert(0, {"role": "system", "content": text_of(values["system"], "system")})
        answers = [each for each in turns if each["role"] == "assistant"]
        if not answers:
            raise Unusable("no-assistant-turn", " has no assistant turn")
        if not any(_written(each).strip() for each in answers):
            raise Unusable("empty-completion", " has empty assistant turns only")
        if not any(map(trained, answers)):
            raise Unusable("nothing-trained", " has no assistant turn that is to be trained (weight 0 in all)")
        tools = tools_of(values.get("tools"))
        return {"messages": turns, **({"tools": tools} if tools else {})}

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """Chats in the shape of Gemini, whose column is called as those of texts are, too."""
        columns = columns_of(head)
        chats, system = named(columns, ("contents",)), named(columns, self.names["system"])
        turns = [turn for row in head for turn in listed(row.get(chats or ""))]
        if (
            said
            or chats is None
            or not turns
            or not all(isinstance(turn, Mapping) and "parts" in turn for turn in turns)
        ):
            return None
        parts = {"messages": chats, **({"system": system} if system else {})}
        return Layout("chats in the shape of Gemini", parts, tuple(parts.values()), each(lambda values: [dict(values)]))

    def words(self, row: Columns) -> str:
        """All turns but the system's; where the answer is a class, what is asked."""
        if row.get("label"):
            return self.shown(row)
        return "\n".join(self._said(row, lambda role: role != "system"))

    def shown(self, row: Columns) -> str:
        """The user's first turn."""
        return next(iter(self._said(row, lambda role: role == "user")), "")

    def quoted(self, row: Columns) -> tuple[str, ...]:
        """The user's last turn."""
        last = max((n for n, each in enumerate(row["messages"]) if each["role"] == "user"), default=0)
        return ("messages", str(last), "content")

    def answers(self, row: Columns) -> list[str]:
        """What the trained turns of the assistant say and call."""
        return [_written(each) for each in row["messages"] if trained(each)]

    def spelled(self, row: Columns) -> list[str]:
        """The contents of these turns, less thoughts, which templates move and leave out."""
        return [_THOUGHT.sub("", str(each["content"] or "")) for each in row["messages"] if trained(each)]

    def asked(self, row: Columns) -> list[str]:
        """The contents of all other turns."""
        return self._said(row, lambda role: role != "assistant")

    def question(self, values: Columns) -> str:
        """The user's last turn, with those before it where there are any; a text as it is."""
        said = values["messages"]
        if isinstance(said, str) and read_list(said) is None:
            return said
        turns = turns_of(said)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns or turns[-1]["role"] not in ASKING:
            raise Unusable("no-question", f" has a chat without a turn of {' or '.join(ASKING)} to answer")
        last = str(turns[-1]["content"])
        return Asked(last, turns) if len(turns) > 1 else last

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The user's turns changed."""
        turns = [
            {**each, "content": change(each["content"], at)} if each["role"] == "user" else dict(each)
            for at, each in enumerate(row["messages"])
        ]
        return {**row, "messages": turns}

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """Every turn changed, and every text in its further keys."""

        def changed(each: Turn) -> Turn:
            more = (
                {"more": json.dumps(_deep(json.loads(each["more"]), change), ensure_ascii=False)}
                if each.get("more")
                else {}
            )
            return {**each, "content": change(each["content"]), **more}

        return {**row, "messages": [changed(each) for each in row["messages"]]}

    def reanswered(self, row: Columns, text: str) -> dict[str, Any] | None:
        """The chat up to its last learned turn, which says something else."""
        last = max((at for at, each in enumerate(row["messages"]) if trained(each)), default=None)
        if last is None or not text.strip():
            return None
        before = [{**each, "trained": False} for each in row["messages"][:last]]
        return {**row, "messages": [*before, {**row["messages"][last], "content": text, "more": None}]}

    def stated(self, row: Columns) -> list[str]:
        """What all turns say and call."""
        return [_written(each) for each in row["messages"]]

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A turn of random words, and one that answers it."""
        turns = (("user", PROMPT_WORDS), ("assistant", ANSWER_WORDS))
        return {"messages": [{"role": role, "content": random_words(chance, words)} for role, words in turns]}

    def _said(self, row: Columns, wanted: Callable[[str], bool]) -> list[str]:
        return [_written(each) for each in row["messages"] if wanted(each["role"])]


def trained(turn: Turn) -> bool:
    """Whether a turn is learned."""
    return bool(turn["role"] == "assistant" and turn.get("trained") is not False)


def _written(turn: Turn) -> str:
    """What a turn says, and the tools that it calls, with their arguments."""
    content = str(turn["content"] or "")
    calls = json.loads(turn["more"]).get("tool_calls", ()) if turn.get("more") else ()
    said = (
        f"{call['function']['name']} {json.dumps(call['function']['arguments'], ensure_ascii=False)}" for call in calls
    )
    return "\n".join(filter(None, (content, *said)))


def _deep(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _deep(each, change) for key, each in value.items()}
    return [_deep(each, change) for each in value] if isinstance(value, list) else value


def asked_and_answered(prompt: str, completion: str) -> list[dict[str, str]]:
    """A chat of two turns."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


KIND: RowSchema = Messages()
