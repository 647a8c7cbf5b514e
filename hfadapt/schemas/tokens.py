"""Words, each with a tag: named entities, parts of speech."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from hfadapt.schemas import Answers, Change, Columns, RowSchema, Unusable, plain, random_words, read_list

WORDS = 8
_COMMENT = re.compile(r"#\s.*=")


def _items(value: Any, part: str) -> list[Any]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)):
        raise Unusable("wrong-type", f": {part} is no list but {str(value)[:40]!r}")
    return list(value)


MASKED = "-100"
"""What libraries write for a piece of a word that has no tag of its own."""


def read_conll(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Sentences of CoNLL-2003 and its like: the word first, its tag last, an empty line between sentences.

    `-DOCSTART-` lines and comments such as `# id = 5` before a sentence are passed over.
    """
    words: list[str] = []
    tags: list[str] = []
    for line in chain(lines, ("",)):
        # Not on other white space, which may stand inside a word.
        fields = [field for field in line.split("\t" if "\t" in line.strip(" \t") else " ") if field.strip(" \t")]
        if not fields or fields[0] == "-DOCSTART-":
            if words:
                yield {"tokens": words, "tags": tags}
                words, tags = [], []
        elif words or not _COMMENT.match(line):
            words.append(fields[0])
            # A word that stands alone lacks its tag, which makes the lists unequal.
            tags += fields[-1:] if len(fields) > 1 else []


def read_conllu(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Sentences of CoNLL-U as FORM and UPOS; ranges such as `1-2` and empty nodes such as `1.1` are passed over."""
    words: list[str] = []
    tags: list[str | None] = []
    for line in chain(lines, ("",)):
        if not line.strip():
            if words:
                yield {"tokens": words, "tags": tags}
                words, tags = [], []
            continue
        number, *fields = line.split("\t")
        if line.startswith("#") or "-" in number or "." in number:
            continue
        words.append(fields[0] if fields else "")
        tags.append(fields[2] if len(fields) > 2 and fields[2] != "_" else None)


class Tokens(RowSchema):
    """Rows of `tokens`, the words, and `tags`, one for each word."""

    name = "tokens"
    rank = 25
    parts = ("tokens", "tags")
    names = {
        "tokens": ("tokens", "words", "forms"),
        "tags": ("tags", "ner_tags", "pos_tags", "upos", "labels"),
    }
    label_kind = "tokens"
    files = {".conll": read_conll, ".iob": read_conll, ".bio": read_conll, ".conllu": read_conllu}

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """Two lists of equal length."""
        import pyarrow as pa

        return [("tokens", pa.list_(pa.string())), ("tags", pa.list_(pa.string()))]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Words and the names of their tags; text stands for its words. Raises Unusable for other lengths."""
        words, raw = (_items(values[part], part) for part in self.parts)
        if len(words) != len(raw):
            raise Unusable("unequal-lengths", f" has {len(words):,} words and {len(raw):,} tags")
        if (at := next((at for at, tag in enumerate(raw) if str(tag).strip() == MASKED), None)) is not None:
            raise Unusable("masked-tag", f" has the tag {MASKED} for word {at + 1}, {plain(words[at])!r}")
        tags = [name_of(tag) for tag in raw]
        if None in tags:
            at = tags.index(None)
            raise Unusable("missing-field", f" has no tag for word {at + 1}, {plain(words[at])!r}")
        return {"tokens": [plain(word) for word in words], "tags": tags}

    def shown(self, row: Columns) -> str:
        """The words with spaces between them."""
        return " ".join(row.get("tokens") or ())

    def label(self, row: Columns) -> str | None:
        """All tags, in which rows of the same words must agree."""
        return " ".join(row["tags"]) if row.get("tags") is not None else None

    def classes(self, row: Columns) -> tuple[str, ...]:
        """The tags that occur."""
        return tuple(sorted(set(row.get("tags") or ())))

    def question(self, values: Columns) -> str:
        """The words with a blank between them; a text as it is."""
        words = read_list(values["tokens"])
        return " ".join(map(plain, words)) if isinstance(words, list) else plain(values["tokens"])

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """Each word changed by itself, so that every tag still stands at its word; no word goes away."""
        words = [change(word, place) for place, word in enumerate(row["tokens"])]
        return {**row, "tokens": [new if new.strip() else old for new, old in zip(words, row["tokens"], strict=True)]}

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """Each word changed."""
        return {**row, "tokens": [change(word) for word in row["tokens"]]}

    def stated(self, row: Columns) -> list[str]:
        """The text."""
        return [self.shown(row)]

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words, each with a random tag."""
        return {"tokens": random_words(chance, WORDS).split(), "tags": chance.choices(answers.labels, k=WORDS)}


KIND: RowSchema = Tokens()
