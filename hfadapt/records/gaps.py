"""What prepared data lack, in words: files and splits that nobody reads, and classes that are not scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hfadapt.records.stages import DataRecord

NOT_READ, LEFT_OUT, SPLITS_LEFT_OUT = "files-not-read", "files-left-out", "splits-left-out"
"""Codes of findings about what lies beside the data."""
HELD_OUT = ("test", "validation")
SHOWN = 8


def unscored(counts: Mapping[str, Mapping[str, int]], split: str = "test") -> tuple[str, ...]:
    """Classes that rows are trained on, and no row of another split has; none where that split has no rows.

    Args:
        counts: Rows of each class in each split.
    """
    held = counts.get(split) or {}
    return tuple(sorted(name for name, rows in counts.get("train", {}).items() if held and rows and not held.get(name)))


def said_of(names: Sequence[str], split: str = "test") -> str:
    """What classes without a row of a split mean."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    means = "how well they are told is not measured" if split == "test" else "its loss says nothing of them"
    return f"no {split} row of {', '.join(map(repr, names[:SHOWN]))}{more}: {means}"


def gaps(record: DataRecord) -> tuple[str, ...]:
    """What a plan says of the data beside their size, a sentence each."""
    beside = [each.message for each in record.noticed if each.code in (NOT_READ, LEFT_OUT, SPLITS_LEFT_OUT)]
    lacking = {split: unscored(record.label_counts, split) for split in HELD_OUT}
    return (*beside, *(said_of(names, split) for split, names in lacking.items() if names))
