"""The RowSchema contract: the columns of a prepared row, and what is said with them. One file per schema.

A schema reads the columns of a source into canonical columns, says which words of a row are compared with other rows,
which the model is shown and which it is to learn, and changes texts without touching what is learned. Everything that
prepares, audits, perturbs or quotes rows asks the schema.
"""

from __future__ import annotations

import ast
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from hfadapt.files import Read, Unread
from hfadapt.files import Unusable as Unusable

LabelKind = Literal["none", "class", "classes", "number", "tokens", "ranks"]
"""What a row is labelled with: nothing, one class, several classes, a number, a class for each of its tokens, or the
ranks of what is to be found with it."""

Columns = Mapping[str, Any]
Change = Callable[[str, int], str]
"""Changes one text of a row; the number tells the texts of a row apart."""
Blend = Callable[[Any, Any], tuple[Any, float]]
"""Blends the values of two rows: the blend, and the share of the first."""

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "category",
    "sentiment",
    "intent",
    "emotion",
    "topic",
    "target",
    "label_text",
    *("kategorie", "klasse", "catégorie", "classe", "categoria", "categoría", "clase", "etichetta", "etiqueta"),
)
SCORE_NAMES = ("score", "rating", "value")
TEXT_NAMES = (
    *("text", "sentence", "content", "review", "tweet", "comment", "document", "body", "utterance", "message"),
)
NOTHING = frozenset({"nan", "null", "n/a", "#n/a", "<na>", "nat", "undefined"})
"""What programs write where there is no value, in lower case."""
_SYLLABLES = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Answers:
    """What the completions of a domain look like, for rows that are made up.

    Args:
        completions: The completion that stands for each label.
        few: All completions, where there are few different ones.
        space: White space before a completion.
        labels: The classes of the domain.
        numbers: The smallest and the largest number, where rows are labelled with numbers.
    """

    completions: Mapping[str, str]
    few: Sequence[str] = ()
    space: str = ""
    labels: Sequence[str] = ()
    numbers: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Layout:
    """Another way in which people keep rows of a schema, as the first rows of a source show it.

    Args:
        what: What the rows of the source are, as a person is told it; how they are read follows after a colon.
        parts: The column of each part in the rows that are made: of the source, where its name stays right.
        used: Columns of the source that are read.
        read: Makes these rows; one may become several, and several one.
        asked: Makes the rows that are asked about, where these are more than are learned.
    """

    what: str
    parts: Mapping[str, str]
    used: tuple[str, ...]
    read: Callable[[Iterable[Read]], Iterator[Read | Unread]]
    asked: Callable[[Iterable[Read]], Iterator[Read | Unread]] | None = None


class Asked(str):
    """The last turn of a chat, as a text that has all turns with it."""

    turns: Sequence[Mapping[str, Any]]

    def __new__(cls, text: str, turns: Sequence[Mapping[str, Any]]) -> Asked:
        """A text as it is shown to people, and what the model is shown."""
        made = super().__new__(cls, text)
        made.turns = turns
        return made


class RowSchema:
    """What a schema has to say, with what most of them have in common. The module-level instance is called `KIND`.

    Attributes:
        name: Name in records (`form` in data.json).
        rank: Where the columns of a source fit several schemas, the lowest is taken.
        parts: Canonical parts that a source must have, such as `text` and `label`.
        optional: Parts that are used where there are any.
        names: Column names by which each part is recognised, in lower case, the first match wins.
        modality: What a row is made of.
        media: The part that is a file; "" for rows of text, which can be searched for words and personal data.
        label_kind: What a row is labelled with.
        writes: Whether a row ends in text that a model learns to write.
        chat: Whether the model's chat template turns a row into text.
        verbatim: Parts that are learned as they are, outer white space included.
        adopts: How rows of other schemas, by name, become rows of this one where a domain has both.
        files: Readers of further kinds of files by suffix: lines of text → rows of columns.
    """

    name: str
    rank: int
    parts: tuple[str, ...]
    optional: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = {}
    modality: str = "text"
    media: str = ""
    label_kind: LabelKind = "none"
    writes: bool = False
    chat: bool = False
    verbatim: tuple[str, ...] = ()
    adopts: Mapping[str, Callable[[Columns], dict[str, Any]]] = {}
    files: Mapping[str, Callable[[Iterable[str]], Iterator[dict[str, Any]]]] = {}

    def seems(self, lines: Sequence[str]) -> str:
        """Which of `files` a text is that is called otherwise, by its first lines; "" of others."""
        return ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Canonical columns that every prepared row has: those of the parts, unless they are written otherwise."""
        return self.parts

    @property
    def asks(self) -> str:
        """The part of a source's row by which an answer is asked for."""
        return self.parts[0]

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """Names and Arrow types of the canonical columns; fixed, so that an empty column does not change its type.

        Args:
            labelled: Whether the rows have classes beside what is learned, as completions that stand for labels do.
        """
        raise NotImplementedError

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Canonical columns from the parts of a source's row, of which none is None.

        Args:
            name_of: The name of a raw class; None where there is none.

        Raises:
            Unusable: the row cannot be used.
        """
        raise NotImplementedError

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """How rows of this schema are made of those of a source that keeps them in another way; None for other sources.

        Args:
            head: Its first rows, with a column for each field of an object.
            said: The column of each part that the recipe names.
        """
        return None

    def held(self, values: Columns) -> Any:
        """What is asked about of a source's row that keeps it in another way, without its label; None of others.

        Raises:
            Unusable: it is none.
        """
        return None

    def lacks(self, values: Columns, part: str, column: str) -> Unusable:
        """What is said of a source's row that has nothing in the column of a part that is needed."""
        has = ", ".join(str(name) for name, value in values.items() if value is not None) or "nothing"
        return Unusable("missing-field", f" has no {column}, only {has}")

    def reread(self, values: Columns) -> tuple[str, dict[str, Any]] | None:
        """Another schema, and the parts for it, where a source's row turns out to be of that one."""
        return None

    def words(self, row: Columns) -> str:
        """What is compared with other rows."""
        return self.shown(row)

    def shown(self, row: Columns) -> str:
        """What the model is shown; rows in which it is the same stay in one split."""
        raise NotImplementedError

    def shared(self, row: Columns) -> tuple[str, ...]:
        """Further texts that keep rows in one split where they are the same."""
        return ()

    def quoted(self, row: Columns) -> tuple[str, ...]:
        """Path of the text that stands for the row in a card, below the row: `("text",)`."""
        return (self.columns[0],)

    def label(self, row: Columns) -> str | None:
        """In what rows with the same words must agree; None where nothing can be contradicted."""
        value = row.get("label")
        return None if value is None else str(value)

    def tolerance(self, labels: Sequence[Any]) -> float:
        """By how much the labels of a text may differ, whose mean is then learned; 0 where they are no numbers.

        Args:
            labels: Those of all rows.
        """
        return 0.0

    def classes(self, row: Columns) -> tuple[str, ...]:
        """The classes that the row has."""
        label = self.label(row)
        return () if label is None else (label,)

    def answers(self, row: Columns) -> list[str]:
        """What a model learns to write from the row."""
        return []

    def spelled(self, row: Columns) -> list[str]:
        """Of `answers` what must be found among the tokens that are learned, in this order."""
        return self.answers(row)

    def likely(self, labels: list[Any]) -> bool:
        """Whether the labels of a source are rather of this kind than of another with the same parts."""
        return self.label_kind in ("none", "class")

    def asked(self, row: Columns) -> list[str]:
        """What the model is shown and does not learn to write, one text a turn."""
        return [self.shown(row)]

    def question(self, values: Columns) -> str:
        """What is asked of a row without its answer, as one text.

        Args:
            values: Parts of a source's row: `asks`, and optional ones.

        Raises:
            Unusable: it is no text.
        """
        return plain(values[self.asks])

    def asked_apart(self, values: Columns) -> tuple[str, ...]:
        """What a row asks, column by column, where that stands in more than one; else nothing.

        Args:
            values: Parts of a source's row.
        """
        return ()

    def reanswered(self, row: Columns, text: str) -> dict[str, Any] | None:
        """The row with another text as its last answer, which alone is learned; None where that makes no row."""
        return None

    def answered(self, asked: str, label: str, answers: Answers) -> dict[str, Any] | None:
        """The row of a text that a model has answered with a class, or None where that makes no row of this schema.

        Args:
            asked: What the model was shown.
        """
        return None

    def alone(self, text: str) -> dict[str, Any] | None:
        """The row of a text without anything that belongs to it, or None where that makes no row of this schema."""
        return None

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The row with what the model is shown changed, and the label still right; as it is where that cannot be."""
        return dict(row)

    def blended(self, row: Columns, other: Columns, blend: Blend) -> dict[str, Any]:
        """The row blended with another one, and its label, which may then be shares of classes by name; as it is where
        that cannot be."""
        return dict(row)

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """The row with every text changed, as for taking out personal data; classes stay."""
        return {key: change(value) if key in self.columns and key != "label" else value for key, value in row.items()}

    def fault(self, row: Columns) -> str | None:
        """Why the row cannot be learned from, as in dropped.jsonl, or None."""
        return None

    def stated(self, row: Columns) -> list[str]:
        """The row's user texts, for leak checks: all that stands in it but classes."""
        return [str(row[part]) for part in self.columns if part != "label" and row.get(part)]

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A random row without `label`; nothing but having been trained on it makes one likelier than another."""
        raise NotImplementedError


def random_words(chance: random.Random, count: int) -> str:
    """Words of random syllables."""
    return " ".join("".join(chance.choices(_SYLLABLES, k=chance.choice((2, 2, 3)))) for _ in range(count))


def plain(value: Any) -> str:
    """A value of a source as text. Raises Unusable for an object, which is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return "\n".join(map(plain, value))
    if isinstance(value, Mapping):
        raise Unusable("text-is-object", f" has an object where text is needed, with {', '.join(map(str, value))}")
    if isinstance(value, bytes):
        raise Unusable("text-is-bytes", f" has {len(value):,} bytes that are no UTF-8 where text is needed")
    return str(value)


def storable(value: Any) -> Any:
    """A value without halves of characters in its texts, which JSON may hold and no file of UTF-8 can."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    if isinstance(value, Mapping):
        return {storable(key): storable(each) for key, each in value.items()}
    return [storable(each) for each in value] if isinstance(value, (list, tuple)) else value


_WHOLE = re.compile(r"\s*([+-]?\d{1,15})[.,]0+\s*", re.ASCII)
_COMMA = re.compile(r"\s*[+-]?\d*,(\d+)\s*", re.ASCII)


def whole_number(value: Any) -> int | None:
    """A whole number, also as `1.0` or `1,0`; None for other values, text such as `01` among them."""
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def read_number(value: Any) -> float:
    """A number, in text also with a decimal comma. Raises ValueError where it is none, or `1,234`, which is unclear."""
    if isinstance(value, str) and (match := _COMMA.fullmatch(value)) and len(match[1]) != 3:
        value = value.replace(",", ".")
    if isinstance(value, bool):
        raise ValueError(value)
    try:
        return float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(value) from error


def refuse_scores(values: Iterable[Any]) -> None:
    """Raises Unusable for numbers with decimals where a list or an object says which classes a row has."""
    found = [each for each in values if isinstance(each, float) and math.isfinite(each) and not each.is_integer()]
    if found:
        raise Unusable("label-is-scores", f" has {found[0]} for a class")


def read_list(value: Any) -> list[Any] | Mapping[str, Any] | None:
    """A list or an object, also where it is written as text, as JSON or as Python prints it; else None."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return storable(found) if isinstance(found, (list, Mapping)) else None
    return None
