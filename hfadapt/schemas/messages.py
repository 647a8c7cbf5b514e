"""A chat, of which the assistant's turns are learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, RowSchema, Unusable, plain, random_words

PROMPT_WORDS, ANSWER_WORDS = 3, 6
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
ROLES.update({role: role for role in ("system", "user", "assistant", "tool")})


class Messages(RowSchema):
    """Rows of `messages`: turns of `role` and `content`."""

    name = "messages"
    rank = 0
    parts = ("messages",)
    names = {"messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")}
    writes = True
    chat = True
    adopts = {"completion": lambda row: {"messages": asked_and_answered(row["prompt"], row["completion"])}}

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`messages`, and `label` where the last turn stands for a class."""
        import pyarrow as pa

        turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        return [("messages", turns), *([("label", pa.string())] if labelled else [])]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The turns in OpenAI's shape. Raises Unusable where they cannot be read or nothing is answered."""
        try:
            turns = [turn(each) for each in values["messages"]]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Unusable("wrong-messages", f": {error}") from None
        if not any(each["role"] == "assistant" for each in turns):
            raise Unusable("no-assistant-turn", " has no assistant turn")
        if not any(each["role"] == "assistant" and each["content"].strip() for each in turns):
            raise Unusable("empty-completion", " has empty assistant turns only")
        return {"messages": turns}

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
        """The contents of the assistant's turns."""
        return self._said(row, lambda role: role == "assistant")

    def asked(self, row: Columns) -> list[str]:
        """The contents of all other turns."""
        return self._said(row, lambda role: role != "assistant")

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The user's turns changed."""
        turns = [
            {**each, "content": change(each["content"], at)} if each["role"] == "user" else dict(each)
            for at, each in enumerate(row["messages"])
        ]
        return {**row, "messages": turns}

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """Every turn changed."""
        return {**row, "messages": [{**each, "content": change(each["content"])} for each in row["messages"]]}

    def stated(self, row: Columns) -> list[str]:
        """The contents of all turns."""
        return self._said(row, lambda role: True)

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A turn of random words, and one that answers it."""
        turns = (("user", PROMPT_WORDS), ("assistant", ANSWER_WORDS))
        return {"messages": [{"role": role, "content": random_words(chance, words)} for role, words in turns]}

    def _said(self, row: Columns, wanted: Callable[[str], bool]) -> list[str]:
        return [str(each["content"] or "") for each in row["messages"] if wanted(each["role"])]


def asked_and_answered(prompt: str, completion: str) -> list[dict[str, str]]:
    """A chat of two turns."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def turn(value: Mapping[str, Any]) -> dict[str, str]:
    """One turn as role and content, from the OpenAI or the ShareGPT shape. Raises ValueError for another one."""
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if role is None or content is None:
        raise ValueError(f"a turn needs role and content, has {', '.join(value)}")
    if str(role).lower() not in ROLES:
        raise ValueError(f"unknown role {role!r}; allowed: {', '.join(ROLES)}")
    return {"role": ROLES[str(role).lower()], "content": plain(content)}


KIND: RowSchema = Messages()
