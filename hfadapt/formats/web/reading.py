"""What a tokenizer makes of texts, written down for JavaScript: BERT's, whose steps look at one character at a time.

The page does not rely on a browser's tables of Unicode, which are of another version than the tokenizer's: each
character is asked here.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from hfadapt.modalities.text import started

STEPS = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}
WHITESPACE, PUNCTUATION = 1, 2
SURROGATES = range(0xD800, 0xE000)
BETWEEN = "0"
"""Stays what it is, and no other character becomes it."""
ITSELF = "\0"
"""Stands for a character in what becomes of it."""
Run = tuple[int, int, Any]


def unreadable(tokenizer: Any) -> str | None:
    """Why the page cannot read texts as a tokenizer does, or None."""
    if not getattr(tokenizer, "is_fast", False):
        return "its tokenizer has no tokenizer.json"
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    for step, wanted in STEPS.items():
        kind = (said[step] or {}).get("type", "none")
        if kind != wanted:
            return f"its tokenizer's {step} is {kind}; the page reads texts as BERT does, by {wanted}"
    for token in said["added_tokens"]:
        if any(token[option] for option in ("normalized", "lstrip", "rstrip", "single_word")):
            return f"its added token {token['content']!r} is not looked for as it stands"
    return None


def reading(tokenizer: Any, max_length: int) -> dict[str, Any]:
    """What the page needs beside tokenizer.json to read texts.

    Args:
        tokenizer: One that is not `unreadable`.
        max_length: Most tokens of a row, special ones included.
    """
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = list(tokenizer("a")["input_ids"])
    start = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    characters, breaks = _characters(json.dumps(said["normalizer"]), json.dumps(said["pre_tokenizer"]))
    return {
        "max_length": max_length,
        "before": whole[:start],
        "after": whole[start + len(plain) :],
        "empty": list(started((), tokenizer)),
        "keeps_end": tokenizer.truncation_side == "left",
        "characters": characters,
        "breaks": breaks,
    }


@cache
def _characters(normalizer: str, pre_tokenizer: str) -> tuple[list[Run], list[Run]]:
    """Runs of characters: what each becomes where it does not stay, and where words break.

    A run is its first code point, its length, and what all of it becomes: a text, in which `ITSELF` stands for each, a
    number of code points by which each is moved, or None for its canonical decomposition. Of breaks it is `WHITESPACE`
    or `PUNCTUATION`.
    """
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

    everything = [chr(code) for code in range(0x110000) if code not in SURROGATES and chr(code) != BETWEEN]
    normalise, cut = _opened(Normalizer, normalizer), _opened(PreTokenizer, pre_tokenizer)
    became = normalise.normalize_str(BETWEEN + BETWEEN.join(everything) + BETWEEN).split(BETWEEN)[1:-1]
    if len(became) != len(everything):
        raise ValueError(f"{normalizer} does not take characters one by one")
    moved = ((ord(one), _how(one, text)) for one, text in zip(everything, became, strict=True) if one != text)
    text = BETWEEN + BETWEEN.join(everything)
    words, ends = [False] * len(text), [False] * len(text)
    for piece, (first, last) in cut.pre_tokenize_str(text):
        words[first:last] = [True] * (last - first)
        ends[last - 1] = len(piece) == 1
    breaks = (
        (ord(one), PUNCTUATION if words[at] else WHITESPACE)
        for one, at in zip(everything, range(1, len(text), 2), strict=True)
        if not words[at] or ends[at]
    )
    return list(_runs(moved)), list(_runs(breaks))


def _opened(kind: Any, said: str) -> Any:
    """A part of a tokenizer, of what tokenizer.json says of it."""
    from tokenizers import Tokenizer, models

    name = "normalizer" if kind.__name__ == "Normalizer" else "pre_tokenizer"
    empty = json.loads(Tokenizer(models.WordPiece({"x": 0}, unk_token="x")).to_str())
    return getattr(Tokenizer.from_str(json.dumps(empty | {name: json.loads(said)})), name)


def _how(one: str, became: str) -> Any:
    """What becomes of a character, the way that makes the longest runs."""
    if len(became) == 1:
        return ord(became) - ord(one)
    return None if became and became == unicodedata.normalize("NFD", one) else became.replace(one, ITSELF)


def _runs(found: Iterator[tuple[int, Any]]) -> Iterator[Run]:
    """Neighbours of which the same becomes, as one."""
    for (_, what), group in groupby(enumerate(found), lambda each: (each[1][0] - each[0], each[1][1])):
        codes: Sequence[int] = [code for _, (code, _) in group]
        yield codes[0], len(codes), what
