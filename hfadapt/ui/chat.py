"""A conversation with base and adapter: both are told the same, and each goes on from its own answers.

The page keeps it and sends it with every message, so that nothing of it stays here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.spec import Spec
from hfadapt.run_folder import Cell

Side = Literal["base", "adapter"]


class Turn(Spec):
    """One turn: `content` where both sides have the same, else what each has answered.

    Args:
        more: As in prepared rows: a JSON object of further keys that a chat template may show.
    """

    role: str
    content: str = ""
    more: str | None = None
    base: str | None = None
    adapter: str | None = None

    @property
    def own(self) -> bool:
        """Whether each side has answered for itself."""
        return self.base is not None

    def of(self, side: Side) -> dict[str, str]:
        """The turn as one side is shown it."""
        said = getattr(self, side) if self.own else self.content
        return {"role": self.role, "content": said or "", **({"more": self.more} if self.more else {})}


_TURNS = TypeAdapter(tuple[Turn, ...])


@dataclass(frozen=True)
class Conversation:
    """What was said so far.

    Args:
        turns: In order.
    """

    turns: tuple[Turn, ...] = ()

    @classmethod
    def sent(cls, text: str) -> Self:
        """The conversation of a page. Raises RequestError where it is none."""
        try:
            return cls(_TURNS.validate_json(text or "[]"))
        except ValidationError:
            raise RequestError("the conversation was changed on its way", fix="begin a new chat") from None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """What comes before the last answer of a prepared row."""
        turns = list(row["messages"])
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return cls(tuple(Turn(role=x["role"], content=x["content"] or "", more=x.get("more")) for x in turns))

    def told(self, text: str, system: str = "") -> Self:
        """With the next message of the user; `system` comes before the first one."""
        begun = (Turn(role="system", content=system),) if system and not self.turns else ()
        return type(self)((*self.turns, *begun, Turn(role="user", content=text)))

    def answered(self, base: str, adapter: str) -> Self:
        """With what both sides have answered."""
        return type(self)((*self.turns, Turn(role="assistant", base=base, adapter=adapter)))

    def of(self, side: Side) -> list[dict[str, str]]:
        """The chat as one side has it."""
        return [each.of(side) for each in self.turns]

    @property
    def text(self) -> str:
        """For the page to send again."""
        turns = [each.model_dump(exclude_none=True, exclude_defaults=True) for each in self.turns]
        return json.dumps(turns, ensure_ascii=False)


def chats(cell: Cell) -> bool:
    """Whether the adapter of a cell was trained to go on with chats, with answers that are written freely."""
    schema, template = registry.schema(cell.data.form), cell.lock.template_of(cell.lock.domain)
    free = not cell.data.completions and not (template and template.prompt)
    return registry.task(cell.lock.task).writes and schema.chat and free


def system_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """With what chats of these rows are opened: the system message of the first; '' where it has none."""
    first = rows[0]["messages"][0] if rows and rows[0]["messages"] else {}
    return str(first["content"] or "") if first.get("role") == "system" else ""
