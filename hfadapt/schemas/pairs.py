"""A text and the text that is to be found with it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, RowSchema, Unusable, plain, random_words, read_list

ANCHOR_WORDS, POSITIVE_WORDS = 6, 8


class Pairs(RowSchema):
    """Rows of `anchor` and `positive`, and texts that look like the positive and are none (`negatives`), if given."""

    name = "pairs"
    rank = 41
    parts: tuple[str, ...] = ("anchor", "positive")
    optional: tuple[str, ...] = ("negatives",)
    names = {
        "anchor": (
            *("anchor", "query", "question", "sentence1", "sentence_1", "sentence_a", "text1", "text_1", "text_a"),
            *("question1", "sent1", "sent_1", "premise", "source_sentence", "text"),
        ),
        "positive": (
            *("positive", "pos", "positives", "passage", "document", "context", "answer", "sentence2", "sentence_2"),
            *("sentence_b", "text2", "text_2", "text_b", "question2", "sent2", "sent_2", "hypothesis"),
        ),
        "negatives": ("negatives", "negative", "neg", "hard_negatives", "hard_negative", "negative_1"),
    }

    @property
    def columns(self) -> tuple[str, ...]:
        """Negatives are not in every row."""
        return self.parts

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`anchor`, `positive`, and a list of `negatives`."""
        import pyarrow as pa

        return [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The texts. Raises Unusable where one is empty, or several positives are in one row."""
        row: dict[str, Any] = {part: _one(values[part], part) for part in ("anchor", "positive")}
        found = values.get("negatives")
        listed = read_list(found)
        negatives = [text for each in (found if listed is None else list(listed),) for text in _texts(each)]
        if negatives:
            row["negatives"] = negatives
        return row

    def words(self, row: Columns) -> str:
        """Both texts with the same weight: the shorter one again and again, until it is as long as the other.

        A long answer that many questions have would else make near-duplicates of the questions.
        """
        texts = [str(row.get(part, "")) for part in ("anchor", "positive")]
        longest = max(map(len, texts))
        return "\n".join(
            f"{text} " * (longest // (len(text) + 1)) + text[: longest % (len(text) + 1)] for text in texts
        )

    def shown(self, row: Columns) -> str:
        """The anchor."""
        return str(row.get("anchor", ""))

    def shared(self, row: Columns) -> tuple[str, ...]:
        """The positive."""
        return (str(row.get("positive", "")),)

    def alone(self, text: str) -> dict[str, Any] | None:
        """The text, with no positive."""
        return {"anchor": text, "positive": ""}

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The anchor changed: what it is to find stays."""
        return {**row, "anchor": change(row["anchor"], 0)}

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """All texts changed."""
        found = super().rewritten(row, change)
        return {**found, "negatives": list(map(change, row["negatives"]))} if row.get("negatives") else found

    def fault(self, row: Columns) -> str | None:
        """A positive that is the anchor teaches nothing."""
        anchor, positive = (" ".join(str(row[part]).casefold().split()) for part in ("anchor", "positive"))
        return "empty" if not positive else "same-texts" if anchor == positive and row.get("label") is None else None

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words for both."""
        return {
            "anchor": random_words(chance, ANCHOR_WORDS),
            "positive": random_words(chance, POSITIVE_WORDS),
        }


def _one(value: Any, part: str) -> str:
    listed = read_list(value)
    if isinstance(listed, list):
        if len(listed) > 1:
            raise Unusable("several-texts", f" has {len(listed)} texts as its {part}; give each a row of its own")
        value = listed[0] if listed else ""
    return plain(value)


def _texts(value: Any) -> list[str]:
    """The texts of a cell that may hold one or several; empty ones are none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    found = [plain(each) for each in values if each is not None and not (isinstance(each, float) and math.isnan(each))]
    return [text for text in found if text.strip()]


KIND: RowSchema = Pairs()
