"""Where the words of running text begin and end: at white space, and at the signs beside them, as in annotated text."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

_CHUNK = re.compile(r"\S+")
_OWNER = re.compile(r"['’][sS]$")
_SHORT = re.compile(r"\w|(?:\w+\.)+\w+")
"""What a full stop belongs to: an initial, or letters with others between them (U.S.)."""
_BEFORE = "@#"
"""Signs that belong to the word after them, of names and topics."""


class Words(str):
    """Words that are given, as a text with a blank between them; each may hold any signs."""

    words: tuple[str, ...]

    def __new__(cls, words: Sequence[str]) -> Words:
        """The text that they make."""
        made = super().__new__(cls, " ".join(words))
        made.words = tuple(words)
        return made


def words_in(text: str) -> list[tuple[int, int]]:
    """Start and end of each word of a text: "(IBM)," is four of them, "don't", "3.5", "e-mail" and "..." are one.

    Annotated text has its signs apart from its words, and so has what models have learned from it.
    """
    if isinstance(text, Words):
        ends = itertools.accumulate(len(word) + 1 for word in text.words)
        return [(end - len(word) - 1, end - 1) for word, end in zip(text.words, ends, strict=True)]
    return [place for chunk in _CHUNK.finditer(text) for place in _apart(chunk[0], chunk.start())]


def _apart(chunk: str, at: int) -> Iterator[tuple[int, int]]:
    inside = [number for number, sign in enumerate(chunk) if _of_word(sign)]
    if not inside:
        yield at, at + len(chunk)
        return
    first, last = inside[0], inside[-1] + 1
    first -= first > 0 and chunk[first - 1] in _BEFORE
    core, owner = chunk[first:last], _OWNER.search(chunk[first:last])
    if chunk[last : last + 1] == "." and chunk[last : last + 2] != ".." and _SHORT.fullmatch(core):
        last += 1
    yield from ((at + start, at + end) for start, end in _signs(chunk, 0, first))
    if owner is not None and owner.start() > 0:
        yield at + first, at + first + owner.start()
        first += owner.start()
    yield at + first, at + last
    yield from ((at + start, at + end) for start, end in _signs(chunk, last, len(chunk)))


def _of_word(sign: str) -> bool:
    """Letters, digits, and marks on letters, without which words of many scripts end too early."""
    return unicodedata.category(sign)[0] in "LMN"


def _signs(chunk: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Signs one by one, the same ones in a row together, and pictures with what joins them."""
    while start < end:
        stop = start + 1
        while stop < end and _together(chunk[start], chunk[stop]):
            stop += 1
        yield start, stop
        start = stop


def _together(one: str, other: str) -> bool:
    kinds = {unicodedata.category(one), unicodedata.category(other)}
    return one == other or not any(kind[0] == "P" or kind in ("Sc", "Sm") for kind in kinds)
