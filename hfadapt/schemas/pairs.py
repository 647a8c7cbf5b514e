"""A text and the text that is to be found with it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, Layout, RowSchema, Unusable, plain, random_words, read_list
from hfadapt.schemas._layouts import columns_of, each, filled, listed, named, texts, without
from hfadapt.schemas._multiple_choice import MultipleChoice

ANCHOR_WORDS, POSITIVE_WORDS = 6, 8
_CANDIDATES = ("documents", "docs", "passages", "candidates", "texts", "passage_text", "responses", "answers")
"""What lists are called of which labels say which texts belong to the query."""
_NUMBERED = re.compile(r"(?:hard_?)?neg(?:ative)?s?_?\d+", re.IGNORECASE)
_BITS = (0, 1)


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
        if negatives := _all(values.get("negatives")):
            row["negatives"] = negatives
        return row

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """A query with lists of texts and of 0 and 1; a question with answers to choose from; several positives in a
        row; a column for each negative."""
        if (judged := Judged.of(head, self, said)) is not None and judged.bits:
            return judged.layout(judged.pairs, "each that is marked makes a pair, the others are its negatives")
        if (choice := MultipleChoice.of(head, said)) is not None and choice.right is not None:
            how = "the right one makes a pair, the others are its negatives"
            learned = choice.layout(_chosen(choice), how, **{part: part for part in _PARTS})
            return replace(learned, asked=each(_all_options(choice)))
        columns = columns_of(head)
        anchor, positive, negatives = (named(columns, self.names[part], said.get(part)) for part in _PARTS)
        if anchor is None or positive is None or not said.keys() <= {*_PARTS}:
            return None
        found = [texts(value) for value in filled(head, positive)]
        several = any(len(own) > 1 for own in found) and all(found)
        numbered = [] if "negatives" in said else [column for column in columns if _NUMBERED.fullmatch(column)]
        if not several and len(numbered) < 2:
            return None
        every = [*numbered, *([negatives] if negatives is not None and negatives not in numbered else [])]
        kept = "negatives" if numbered else str(negatives)

        def made(values: Columns) -> Iterator[dict[str, Any]]:
            more = [text for name in every for text in _all(values.get(name))]
            for text in texts(values.get(positive)) if several else [values.get(positive)]:
                yield {**without(values, *every), positive: text, **({kept: more} if every else {})}

        what = [
            *(["a query with several texts that belong to it: each makes a pair"] if several else []),
            *([f"pairs with {len(numbered)} columns of negatives: all of them are read"] if numbered else []),
        ]
        parts = {"anchor": anchor, "positive": positive, **({"negatives": kept} if every else {})}
        return Layout("; and ".join(what), parts, (anchor, positive, *every), each(made))

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


_PARTS = ("anchor", "positive", "negatives")


@dataclass(frozen=True)
class Judged:
    """A query, a list of texts, and a list that says of each whether, or how well, it belongs to the query.

    Args:
        anchor, candidates, labels: The columns.
        bits: Whether the labels are 0 and 1 alone.
    """

    anchor: str
    candidates: str
    labels: str
    bits: bool

    @classmethod
    def of(cls, head: Sequence[Columns], schema: RowSchema, said: Mapping[str, str]) -> Judged | None:
        """The columns, where the lists of every row are equally long; None for other rows."""
        columns = columns_of(head)
        anchor = named(columns, schema.names["anchor"], said.get("anchor"))
        names = (*_CANDIDATES, *schema.names["positive"])
        candidates = named([each for each in columns if _lists(head, each)], names, said.get("positive"))
        if None in (anchor, candidates) or anchor == candidates or not said.keys() <= {*_PARTS, "label"}:
            return None
        assert anchor is not None
        assert candidates is not None
        sizes = [len(texts(row.get(candidates))) for row in head]
        for labels in [said["label"]] if "label" in said else columns:
            found = [listed(row.get(labels)) for row in head]
            numbers = [label for own in found for label in own]
            if (
                [*map(len, found)] == sizes
                and max(sizes, default=0) > 1
                and len({*numbers}) > 1
                and all(isinstance(label, (int, float)) for label in numbers)
            ):
                return cls(anchor, candidates, labels, all(label in _BITS for label in numbers))
        return None

    def layout(self, made: Callable[[Columns], Iterator[dict[str, Any]]], how: str, **more: str) -> Layout:
        """Rows as somebody makes them of these.

        Args:
            how: Ends what a person is told.
            more: Further parts that these rows have.
        """
        what = f"a query with several texts in {self.candidates!r}, and in {self.labels!r} which belong to it: {how}"
        parts = {"anchor": self.anchor, "positive": self.candidates, **(more or {"negatives": "negatives"})}
        used = (self.anchor, self.candidates, self.labels)
        return Layout(what, parts, used, each(made), each(self.every))

    def every(self, values: Columns) -> Iterator[dict[str, Any]]:
        """A row for each text, whatever is said of it."""
        for text in texts(values.get(self.candidates)):
            yield {**without(values, self.labels), self.candidates: text}

    def pairs(self, values: Columns) -> Iterator[dict[str, Any]]:
        """A pair for each text that belongs to the query. Raises Unusable where none does."""
        judged = [*zip(texts(values.get(self.candidates)), listed(values.get(self.labels)), strict=False)]
        if not any(label for _, label in judged):
            raise Unusable("no-positive", f" has no text in {self.candidates} that {self.labels} marks")
        others = [text for text, label in judged if not label]
        for text in (text for text, label in judged if label):
            yield {**without(values, self.labels), self.candidates: text, "negatives": others}

    def scored(self, values: Columns) -> Iterator[dict[str, Any]]:
        """A row for each text with its number."""
        for text, label in zip(texts(values.get(self.candidates)), listed(values.get(self.labels)), strict=False):
            yield {**values, self.candidates: text, self.labels: label}


def _chosen(choice: MultipleChoice) -> Callable[[Columns], Iterator[dict[str, Any]]]:
    def made(values: Columns) -> Iterator[dict[str, Any]]:
        question, options, right = choice.read(values)
        others = [option for place, option in enumerate(options) if place != right]
        positive = None if right is None else options[right]
        yield {**choice.rest(values), "anchor": question, "positive": positive, "negatives": others}

    return made


def _all_options(choice: MultipleChoice) -> Callable[[Columns], Iterator[dict[str, Any]]]:
    def made(values: Columns) -> Iterator[dict[str, Any]]:
        question, options, _ = choice.read(values)
        yield from ({**choice.rest(values), "anchor": question, "positive": option} for option in options)

    return made


def _lists(head: Sequence[Columns], column: str) -> bool:
    """Whether a column holds lists of texts."""
    found = filled(head, column)
    return bool(found) and all(map(texts, found))


def _all(value: Any) -> list[str]:
    """The texts of a cell that may hold several, also as JSON."""
    found = read_list(value)
    return _texts(value if found is None else list(found))


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
