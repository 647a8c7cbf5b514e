"""Rows of local files. What a file is, is told by its bytes; its ending has to agree, so that nothing is guessed.

A bad row never raises: it comes as `Unread`. A file that cannot be read raises DataError, which says in one sentence
what it is and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LINE_LIMIT_BYTES = 16 << 20

Values = dict[str, Any]


@dataclass(frozen=True)
class Unread:
    """A row that cannot be read: its number from 0, the reason as in dropped.jsonl, and what was found."""

    row: int
    reason: str
    detail: str = ""


Rows = Iterator[tuple[int, Values] | Unread]
