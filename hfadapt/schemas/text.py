"""Plain text: every token is learned."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hfadapt.schemas import TEXT_NAMES, Answers, Columns, RowSchema, plain, random_words

WORDS = 8


class Text(RowSchema):
    """Rows of `text`. Changing it would teach the change, so it stays as it is."""

    name = "text"
    rank = 30
    parts: tuple[str, ...] = ("text",)
    names = {"text": TEXT_NAMES}

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`text`, and `label` where there is one."""
        import pyarrow as pa

        return [("text", pa.string()), *([("label", pa.string())] if labelled else [])]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The text."""
        return {"text": plain(values["text"])}

    def shown(self, row: Columns) -> str:
        """The text."""
        return str(row.get("text", ""))

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words."""
        return {"text": random_words(chance, WORDS)}


KIND: RowSchema = Text()
