"""Questions with answers to choose from, as tests keep them, and how each says which of them is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase as LETTERS
from typing import Any

from hfadapt.schemas import Columns, Layout, plain, whole_number
from hfadapt.schemas._layouts import columns_of, each, filled, listed, named, without

_QUESTIONS = ("question", "question_stem", "stem", "ctx", "query", "goal", "sentence", "prompt", "input")
_ABOUT = ("context", "passage", "article", "paragraph")
_OPTIONS = ("choices", "options", "endings", "answer_choices", "alternatives", "candidates")
_RIGHT = (
    *("answerkey", "answer_key", "answer", "label", "answer_idx", "answer_index", "correct", "correct_answer", "gold"),
    *("correct_option", "right_answer", "target", "cop"),
)
_COLUMN = re.compile(r"((?:op|opt|option|choice|sol|solution|ending)[_ ]?)?([a-h]|[0-9])", re.IGNORECASE)
"""What a column is called that has one answer: `A`, `opb`, `option_3`."""
MOST = len(LETTERS)

Options = tuple[list[str], list[str]]
"""The answers of a row, and what each is called there."""
Which = Callable[[Any, Options], int | None]
"""The place of the right answer, by what a row says of it."""


@dataclass(frozen=True)
class MultipleChoice:
    """Where question, answers and the right one stand.

    Args:
        question, about, right: Their columns; None where there is none.
        columns: Of the answers: one with a list, two with names and texts, or one for each.
        which: How the right one is named.
    """

    question: str
    about: str | None
    right: str | None
    columns: tuple[str, ...]
    which: Which

    @classmethod
    def of(cls, head: Sequence[Columns], said: Mapping[str, str]) -> MultipleChoice | None:
        """What the first rows of a source show; None for other rows.

        Args:
            said: The column of each part that the recipe names.
        """
        columns = columns_of(head)
        options = _options(head, columns)
        left = [column for column in columns if column not in (options or ())]
        texts = [column for column in left if all(isinstance(value, str) for value in filled(head, column))]
        question = named(texts, _QUESTIONS, said.get("prompt") or said.get("anchor"))
        if options is None or question is None or not said.keys() <= {"prompt", "anchor"}:
            return None
        right = named([column for column in left if column != question], _RIGHT)
        about = named([column for column in texts if column not in (question, right)], _ABOUT)
        told = [
            (row[right], own)
            for row in head
            if right is not None and row.get(right) not in (None, "") and (own := _read(row, options)) is not None
        ]
        which = next((way for way in _WAYS if all(way(value, own) is not None for value, own in told)), None)
        # Of rows that do not say which is right the name of the column tells enough.
        if which is None or not (_counted(told, which) if told else _says_so(options)):
            return None
        return cls(question, about, right if told else None, options, which)

    def layout(self, made: Callable[[Columns], Iterator[dict[str, Any]]], how: str, **parts: str) -> Layout:
        """Rows as somebody makes them of these.

        Args:
            how: Ends what a person is told.
            parts: Of the rows that are made.
        """
        told = f", and which is right in {self.right!r}" if self.right else ""
        what = f"questions with answers to choose from in {', '.join(map(repr, self.columns))}{told}: {how}"
        used = [self.question, *self.columns, *filter(None, (self.right, self.about))]
        return Layout(what, parts, tuple(used), each(made))

    def read(self, values: Columns) -> tuple[str, list[str], int | None]:
        """The question with what it is about, the answers, and the place of the right one where the row says it."""
        options = _read(values, self.columns) or ([], [])
        right = values.get(self.right) if self.right else None
        about = plain(values.get(self.about) or "") if self.about else ""
        question = plain(values.get(self.question) or "")
        place = None if right in (None, "") else self.which(right, options)
        return f"{about}\n\n{question}" if about else question, options[0], place

    def rest(self, values: Columns) -> dict[str, Any]:
        """What else a row has."""
        return without(values, *self.columns, self.question, *filter(None, (self.right, self.about)))


def written(question: str, options: Sequence[str]) -> str:
    """A question as it is put to a language model, with a letter before each answer."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer:"])


def _options(head: Sequence[Columns], columns: Sequence[str]) -> tuple[str, ...] | None:
    """The columns of the answers."""
    for name in _OPTIONS:
        fields = {
            column.lower().rpartition(".")[2]: column for column in columns if f".{name}." in f".{column.lower()}"
        }
        found: list[tuple[str, ...]] = [(fields["text"], fields["label"])] if {"text", "label"} <= fields.keys() else []
        found += [(column,) for column in columns if column.lower().rpartition(".")[2] == name]
        for each_of in found:
            read = [_read(row, each_of) for row in head]
            if all(read):
                return each_of
    stems: dict[str, list[str]] = {}
    for column in columns:
        if match := _COLUMN.fullmatch(column):
            stems.setdefault((match[1] or "").lower(), []).append(column)
    several = [own for own in stems.values() if len(own) > 1 and _consecutive(own) and _read(head[0], tuple(own))]
    return tuple(several[0]) if several else None


def _consecutive(columns: Sequence[str]) -> bool:
    ends = [column[-1].lower() for column in columns]
    return ends[0] in "a01" and all(ord(one) + 1 == ord(other) for one, other in pairwise(ends))


def _read(values: Columns, columns: Sequence[str]) -> Options | None:
    """The answers of a row; None where it has no two of them."""
    if len(columns) == 1:
        found = listed(values.get(columns[0]))
        if found and all(isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in found):
            keys = [str(one.get("label", one.get("key", letter))) for one, letter in zip(found, LETTERS, strict=False)]
            texts = [one["text"] for one in found]
        else:
            texts, keys = found, []
    elif len(columns) == 2 and listed(values.get(columns[0])):
        texts, keys = listed(values.get(columns[0])), [str(key) for key in listed(values.get(columns[1]))]
    else:
        texts, keys = [values.get(column) for column in columns], [column[-1].upper() for column in columns]
    if not 1 < len(texts) <= MOST or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return [str(text).strip() for text in texts], keys


def _by_name(value: Any, options: Options) -> int | None:
    key = str(value).strip().upper()
    names = [name.upper() for name in options[1]]
    return names.index(key) if key in names else None


def _by_text(value: Any, options: Options) -> int | None:
    text = str(value).strip()
    return options[0].index(text) if text in options[0] else None


def _by_letter(value: Any, options: Options) -> int | None:
    at = LETTERS.find(str(value).strip().upper() or " ")
    return at if 0 <= at < len(options[0]) and len(str(value).strip()) == 1 else None


def _from_nothing(value: Any, options: Options) -> int | None:
    at = _whole(value)
    return at if at is not None and 0 <= at < len(options[0]) else None


def _from_one(value: Any, options: Options) -> int | None:
    at = _whole(value)
    return at - 1 if at is not None and 0 < at <= len(options[0]) else None


def _whole(value: Any) -> int | None:
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdecimal() else whole_number(value)


_WAYS: tuple[Which, ...] = (_by_name, _by_text, _by_letter, _from_nothing, _from_one)


def _counted(told: Sequence[tuple[Any, Options]], which: Which) -> bool:
    """Whether numbers show where they begin: at 0, or at 1 with the last of the answers among them."""
    if which is _from_nothing:
        return any(_whole(value) == 0 for value, _ in told)
    return which is not _from_one or any(_whole(value) == len(options[0]) for value, options in told)


def _says_so(columns: Sequence[str]) -> bool:
    return any(name in columns[0].lower().split(".") for name in _OPTIONS[:4])
