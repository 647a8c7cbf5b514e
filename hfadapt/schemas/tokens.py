"""Words, each with a tag: named entities, parts of speech."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from hfadapt.files import Read, Unread
from hfadapt.schemas import (
    TEXT_NAMES,
    Answers,
    Change,
    Columns,
    Layout,
    RowSchema,
    Unusable,
    plain,
    random_words,
    read_list,
)
from hfadapt.schemas._layouts import columns_of, each, filled, named
from hfadapt.schemas._words import Words

WORDS = 8
_WORD = ("word", "token", "form")
_TAG = ("tag", "ner", "ner_tag", "entity", "label", "upos", "pos_tag", "pos")
_SENTENCE = ("sentence #", "sentence_id", "sentence_idx", "sentence_number", "sentence_no", "sent_id", "sentence")
"""What columns are called where each word has a row: of words, of their tags, and of what tells sentences apart."""
_TAGGED = re.compile(r"(\S+)[/_]([^/_\s]{1,12})")
MOST_WORDS = 3
MOST_TAGS, ALMOST_ALL = 150, 0.95
"""So many tags there are at most where words are written with theirs, as in `house/NN`, and so many words are."""
_COMMENT = re.compile(r"#\s.*=")
_SPAN_TAG = re.compile(r"O|[BIESLUM]-\S+")
LEAST_LINES = 8
"""Of words with tags of spans, by which a text is told to be CoNLL."""


def _items(value: Any, part: str) -> list[Any]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)):
        raise Unusable("wrong-type", f": {part} is no list but {str(value)[:40]!r}")
    return list(value)


MASKED = "-100"
"""What libraries write for a piece of a word that has no tag of its own."""


_BEGINS = "-DOCSTART-"
"""Of a document, before its first sentence."""


def read_conll(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Sentences of CoNLL-2003 and its like: the word first, its tag last, an empty line between sentences.

    `-DOCSTART-` lines and comments such as `# id = 5` before a sentence are passed over.
    """
    words: list[str] = []
    tags: list[str] = []
    for line in chain(lines, ("",)):
        # Not on other white space, which may stand inside a word.
        fields = [field for field in line.split("\t" if "\t" in line.strip(" \t") else " ") if field.strip(" \t")]
        if not fields or fields[0] == _BEGINS:
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

    def seems(self, lines: Sequence[str]) -> str:
        """CoNLL, where each line is a word and what is said of it, with the tag of a span last."""
        words = [line.split() for line in lines if line.strip() and not line.startswith(_BEGINS)]
        tags = [own[-1] for own in words]
        told = len({*tags}) > 1 and all(map(_SPAN_TAG.fullmatch, tags))
        return ".conll" if told and len(words) >= LEAST_LINES and {*map(len, words)} == {max(2, len(words[0]))} else ""

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

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """Words in rows of their own, or each written with its tag."""
        return (_by_word(head, self, said) or _written_together(head)) if said.keys() <= {*Tokens.parts} else None

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
        """The words, with a blank between them; a text as it is."""
        words = read_list(values["tokens"])
        return Words([*map(plain, words)]) if isinstance(words, list) else plain(values["tokens"])

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


def _by_word(head: Sequence[Columns], schema: RowSchema, said: Mapping[str, str]) -> Layout | None:
    """Of rows with a word, its tag, and the sentence that it is of, be that said of the first word alone."""
    columns = columns_of(head)
    words = named(columns, (*_WORD, *schema.names["tokens"]), said.get("tokens"))
    tags = named(columns, (*_TAG, *schema.names["tags"]), said.get("tags"))
    sentence = named(columns, _SENTENCE)
    if words is None or tags is None or sentence is None or len({words, tags, sentence}) < 3:
        return None
    single = [len(str(word).split()) == 1 and read_list(word) is None for word in filled(head, words)]
    known = {*map(str, filled(head, sentence))}
    # It counts sentences: where it holds them, each word is one that is asked about.
    changes = 0 if any(len(value.split()) > MOST_WORDS for value in known) else len(known)
    if not single or sum(single) < ALMOST_ALL * len(single) or not 0 < changes <= len(head) / 2:
        return None

    def read(rows: Iterable[Read]) -> Iterator[Read | Unread]:
        first: Read | None = None
        own: list[tuple[Any, Any]] = []
        for row in rows:
            own_sentence = row.values.get(sentence)
            if first is None or (own_sentence not in (None, "") and own_sentence != first.values.get(sentence)):
                if first is not None:
                    yield first._replace(values=_sentence(own))
                first, own = row, []
            if row.values.get(words) not in (None, ""):
                own.append((row.values[words], row.values.get(tags)))
        if first is not None:
            yield first._replace(values=_sentence(own))

    def _sentence(own: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        return {words: [word for word, _ in own], tags: [tag for _, tag in own]}

    what = f"words, one in each, of sentences that {sentence!r} tells apart: the words of a sentence make a row"
    return Layout(what, {"tokens": words, "tags": tags}, (sentence, words, tags), read)


def _written_together(head: Sequence[Columns]) -> Layout | None:
    """Of texts whose words are written with their tags, as in `the/DT house/NN`."""
    column = named(columns_of(head), TEXT_NAMES)
    found = [str(value).split() for value in filled(head, column)] if column is not None else []
    words = [word for own in found for word in own]
    pairs = [match.groups() for word in words if (match := _TAGGED.fullmatch(word))]
    kinds = {tag for _, tag in pairs}
    if column is None or len(words) < 3 * len(found) or len(pairs) < max(1, ALMOST_ALL * len(words)):
        return None
    # Tags come again and again, with many words.
    if not 1 < len(kinds) <= min(MOST_TAGS, len(pairs) / 3):
        return None

    def made(values: Columns) -> Iterator[dict[str, Any]]:
        own = [(_TAGGED.fullmatch(word), word) for word in str(values.get(column) or "").split()]
        tags = [match[2] if match else None for match, _ in own]
        yield {**values, column: [match[1] if match else word for match, word in own], "tags": tags}

    what = f"words with their tags in {column!r}, such as {words[0]!r}: they are taken apart"
    return Layout(what, {"tokens": column, "tags": "tags"}, (column,), each(made))


KIND: RowSchema = Tokens()
