"""Label-safe changes of training rows, a fresh draw each epoch, the same draw again after a resume.

The contract for any kind of data: an `Operation` changes one value with a random generator of its own, seeded by
(seed, epoch, source, row, operation), so neither the order of rows nor the number of processes matters. Text
operations are here; operations on images (crop, rotate, flip) and audio register under the column they change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.data.rows import stable_hash
from hfadapt.recipe.schema import Augment

Operation = Callable[[Any, float, random.Random], Any]

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    key: "".join(line[place] for line, place in ((line, at + step) for step in (-1, 1)) if 0 <= place < len(line))
    + (_KEYBOARD[number + 1][at] if number + 1 < len(_KEYBOARD) and at < len(_KEYBOARD[number + 1]) else "")
    + (_KEYBOARD[number - 1][at] if number else "")
    for number, line in enumerate(_KEYBOARD)
    for at, key in enumerate(line)
}


def word_dropout(text: str, share: float, draw: random.Random) -> str:
    """Leaves out a share of the words, never all of them."""
    words = text.split(" ")
    kept = [word for word in words if not word or draw.random() >= share]
    return " ".join(kept) if any(kept) else text


def word_swap(text: str, share: float, draw: random.Random) -> str:
    """Exchanges a share of the words with their right neighbours."""
    words = text.split(" ")
    at = 0
    while at < len(words) - 1:
        if draw.random() < share:
            words[at], words[at + 1] = words[at + 1], words[at]
            at += 1
        at += 1
    return " ".join(words)


def typos(text: str, share: float, draw: random.Random) -> str:
    """Hits a neighbouring key once in a share of the words of four letters or more."""
    words = text.split(" ")
    for number, word in enumerate(words):
        if len(word) >= 4 and draw.random() < share:
            at = draw.randrange(1, len(word))
            keys = NEIGHBOURS.get(word[at].lower())
            if keys:
                words[number] = word[:at] + draw.choice(keys) + word[at + 1 :]
    return " ".join(words)


def case(text: str, share: float, draw: random.Random) -> str:
    """Writes a share of the rows in lower or upper case."""
    if draw.random() >= share:
        return text
    return text.lower() if draw.random() < 0.8 else text.upper()


# Operations by the column they change. What a model has to produce (label, completion) is never changed.
OPERATIONS: dict[str, dict[str, Operation]] = {
    "text": {"word_dropout": word_dropout, "word_swap": word_swap, "typos": typos, "case": case},
}
OPERATIONS["prompt"] = OPERATIONS["text"]


def is_on(settings: Augment) -> bool:
    """Whether anything would be changed."""
    return any(settings.model_dump().values())


def apply(rows: Sequence[Mapping[str, Any]], settings: Augment, seed: int, epoch: int) -> list[dict[str, Any]]:
    """Changes training rows for one epoch; rows of the other splits must not come here.

    Args:
        rows: Prepared rows with `source` and `row`; they are not changed themselves.
        settings: How much of which operation.
        seed: The data seed.
        epoch: The 0-based epoch.

    Returns:
        As many rows in the same order; in chats only the user's turns change.
    """
    shares = {name: share for name, share in settings.model_dump().items() if share > 0}
    if not shares:
        return [dict(row) for row in rows]
    return [_changed(row, shares, seed, epoch) for row in rows]


def _changed(row: Mapping[str, Any], shares: Mapping[str, float], seed: int, epoch: int) -> dict[str, Any]:
    def run(column: str, value: Any, place: int = 0) -> Any:
        for name, operation in OPERATIONS[column].items():
            if name in shares:
                key = stable_hash(seed, epoch, row.get("source", ""), row.get("row", 0), name, place)
                value = operation(value, shares[name], random.Random(key))
        return value

    changed = dict(row)
    if row.get("messages"):
        changed["messages"] = [
            {**turn, "content": run("text", turn["content"], at)} if turn["role"] == "user" else dict(turn)
            for at, turn in enumerate(row["messages"])
        ]
        return changed
    # Text that is itself what is learned (no label beside it) would teach the mistakes.
    for column in OPERATIONS:
        if isinstance(row.get(column), str) and (column != "text" or row.get("label") is not None):
            changed[column] = run(column, row[column])
    return changed
