"""Classes of which every row was left out: an adapter would never answer with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from hfadapt.data.labels import SHOWN, some
from hfadapt.data.rows import Row
from hfadapt.recipe.yaml_lines import inline
from hfadapt.records.stages import Finding

CLASS_LOST = "class-lost"
FEW_OF_A_CLASS = 5
"""So many rows of a class are not left out by accident of a few."""
NAMED = 50
KEEPS = {
    "near-duplicate": "data.dedupe.near: false keeps rows that are nearly alike",
    "label-conflict": "data.conflicts: majority keeps the usual label of a text",
    "over-train-rows": "raise data.train_rows",
}
"""How rows are kept that were dropped for a reason, where they are wanted."""


class LostClasses:
    """Counts rows that are left out, by class and reason, and keeps the first of each class to name them."""

    def __init__(self) -> None:
        self._reasons: dict[str, Counter[str]] = {}
        self._rows: dict[str, list[int]] = {}

    def add(self, row: Row, reason: str) -> None:
        """Counts a row."""
        for name in row.classes:
            self._reasons.setdefault(name, Counter())[reason] += 1
            if len(named := self._rows.setdefault(name, [])) < NAMED:
                named.append(row.row)

    def findings(self, left: Collection[str], keeps: Mapping[str, str] = KEEPS) -> list[Finding]:
        """What is to be said of classes of which no row is left, and why.

        Args:
            left: The classes that rows are left of.
            keeps: How rows are kept that were dropped for a reason.
        """
        lost = {name: found for name, found in sorted(self._reasons.items()) if name not in left}
        if not left or not lost:
            return []
        shown = [
            f"{name!r} ({', '.join(f'{count:,} {reason}' for reason, count in found.most_common())})"
            for name, found in lost.items()
        ]
        reasons = sorted({each for found in lost.values() for each in found} & set(keeps))
        rows = sorted({row for name in lost for row in self._rows[name]})[:NAMED]
        return [
            Finding(
                code=CLASS_LOST,
                level="hard" if max(found.total() for found in lost.values()) >= FEW_OF_A_CLASS else "soft",
                message=f"every row of {some(shown, between='; ')} was left out, so that nothing is learned of it",
                rows=tuple(rows),
                classes=tuple(lost),
                fix="; ".join(
                    [
                        *(keeps[each] for each in reasons),
                        f"no_label: {inline([*lost][:SHOWN])} of the domain, where that is no class",
                        "data/dropped.jsonl of the cell, which hfadapt prepare RECIPE writes, names each row",
                    ]
                ),
            )
        ]
