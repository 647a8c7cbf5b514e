"""A prompt, a better answer to it and a worse one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, Layout, RowSchema, Unusable, plain, random_words, read_list
from hfadapt.schemas._choices import of_several, of_two
from hfadapt.schemas.completion import ANSWER_WORDS, PROMPT_WORDS, asked, asked_apart

SIDES = ("chosen", "rejected")
_ANSWERS = re.compile(r"^[ \t]*(?:assistant|ai|bot|model|answer|response|gpt):", re.IGNORECASE | re.MULTILINE)
"""Before an answer in a dialogue that is written as one text."""


class Preferences(RowSchema):
    """Rows of `prompt`, `chosen` and `rejected`. Without a prompt it is what both answers begin with; where they are
    turns, the row is one of chats."""

    name = "preferences"
    rank = 60
    parts: tuple[str, ...] = SIDES
    optional: tuple[str, ...] = ("prompt", "instruction_input", "tools", "system")
    names: Mapping[str, tuple[str, ...]] = {
        "chosen": ("chosen", "preferred", "preferred_output", "chosen_messages", "chosen_response"),
        "rejected": ("rejected", "dispreferred", "non_preferred_output", "rejected_messages", "rejected_response"),
        "prompt": ("prompt", "question", "query", "instruction", "input", "user", "messages", "conversations"),
    }
    writes = True
    verbatim: tuple[str, ...] = ("prompt", *SIDES)

    @property
    def columns(self) -> tuple[str, ...]:
        """All three."""
        return ("prompt", *SIDES)

    @property
    def asks(self) -> str:
        """The prompt."""
        return "prompt"

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """Three texts."""
        import pyarrow as pa

        return [(name, pa.string()) for name in self.columns]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The texts as they are. Raises Unusable where nothing comes before the answers."""
        sides = [plain(values[side]) for side in SIDES]
        if values.get("prompt") is not None:
            return {"prompt": asked(values), **dict(zip(SIDES, sides, strict=True))}
        pairs = enumerate(zip(*sides, strict=False))
        shared = sides[0][: next((at for at, (one, other) in pairs if one != other), min(map(len, sides)))]
        # In a dialogue after whose turn it is; else an answer begins with the last white space that both share, as
        # tokenizers cut words.
        turns = [match.end() for match in _ANSWERS.finditer(shared)]
        end = turns[-1] if turns else max((at for at, sign in enumerate(shared) if sign.isspace()), default=0)
        if not shared[:end].strip():
            raise Unusable("no-prompt", " has no prompt, and its answers do not begin alike")
        return {"prompt": shared[:end], **{side: text[end:] for side, text in zip(SIDES, sides, strict=True)}}

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """Two answers and a winner, or several with scores."""
        if not said.keys() <= {"prompt", "system", "tools"}:
            return None
        return of_two(head, self.names["prompt"], said) or of_several(head, self.names["prompt"], said)

    def reread(self, values: Columns) -> tuple[str, dict[str, Any]] | None:
        """Chats, where the answers are turns."""
        return ("preference-chats", dict(values)) if any(_turns(values[side]) for side in SIDES) else None

    def words(self, row: Columns) -> str:
        """The prompt and both answers, in the same order whichever is the better one."""
        return "\n".join([self.shown(row), *sorted(str(row.get(side, "")) for side in SIDES)])

    def shown(self, row: Columns) -> str:
        """The prompt."""
        return str(row.get("prompt", ""))

    def answers(self, row: Columns) -> list[str]:
        """The better answer and the worse one."""
        return [str(row.get(side) or "") for side in SIDES]

    def question(self, values: Columns) -> str:
        """The prompt."""
        return asked({**values, "prompt": values.get("prompt") or ""})

    def asked_apart(self, values: Columns) -> tuple[str, ...]:
        """The prompt and its further input."""
        return asked_apart(values)

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The prompt changed."""
        return {**row, "prompt": change(row["prompt"], 0)}

    def fault(self, row: Columns) -> str | None:
        """Both answers must say something, and not the same."""
        return _fault([str(row[side]) for side in SIDES])

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words for all three."""
        made = {side: " " + random_words(chance, ANSWER_WORDS) for side in SIDES}
        return {"prompt": random_words(chance, PROMPT_WORDS), **made}


def _fault(answers: list[str]) -> str | None:
    first, second = (" ".join(each.split()) for each in answers)
    return "empty-completion" if not (first and second) else "same-answers" if first == second else None


def _turns(value: Any) -> bool:
    found = read_list(value)
    return isinstance(found, Mapping) or (bool(found) and all(isinstance(each, Mapping) for each in found or ()))


KIND: RowSchema = Preferences()
