"""What the values of a column tell about it: whether they can be classes, or what a model is shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hfadapt.data.rows import fold

IDENTIFIERS = "it holds numbers or identifiers, not words"
# One word of letters and digits, or digits with what separates them in numbers, dates and times. Sums, formulas,
# addresses of the web and scripts without spaces are neither.
_ID = re.compile(r"(?=\D*\d)[A-Za-z0-9_.:/#@-]+|\+?[\d.,:/-]+(?: [\d.,:/-]*\d[\d.,:/-]*){0,3}")
_ADDRESS = re.compile(r"://|[a-z]\.[a-z]{2,}(?:[/?#:]|$)", re.IGNORECASE)
_COUNTER = re.compile(r"(.*?)(\d{1,15})", re.DOTALL)


def _identifies(value: str) -> bool:
    return _ID.fullmatch(value) is not None and not _ADDRESS.search(value)


def counted(values: Iterable[str]) -> bool:
    """Whether values number rows: the same words before a number, and most numbers of a range."""
    found = [_COUNTER.fullmatch(value.strip()) for value in values]
    numbers = {int(match[2]) for match in found if match}
    alike = len({match[1] for match in found if match}) == 1 and all(found)
    return alike and len(numbers) > 0.5 * (max(numbers) - min(numbers) + 1)


def label_fault(values: Sequence[str]) -> str | None:
    """Why these values cannot be classes, or None."""
    counts = Counter(map(fold, values))
    once = sum(1 for count in counts.values() if count == 1)
    if values and (len(counts) == len(values) or (len(counts) > max(20, 0.5 * len(values)) and 2 * once > len(counts))):
        return f"it has {len(counts):,} different values in {len(values):,} rows, so it identifies rows"
    return None


def shown_fault(values: Sequence[str], *, repeats: bool) -> str | None:
    """Why these values cannot be what a model is shown, or None.

    Args:
        repeats: Prompts may be the same in many rows as long as they are not the same in all.
    """
    distinct = {fold(value) for value in values}
    if len(distinct) == 1:
        return "it holds the same value in every row"
    if not repeats and 10 * len(distinct) <= len(values):
        return f"it has only {len(distinct)} different values in {len(values):,} rows"
    if sum(1 for value in distinct if _identifies(value.strip())) > 0.9 * len(distinct):
        return IDENTIFIERS
    return None
