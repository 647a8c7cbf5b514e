"""A text with a number."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from hfadapt.schemas import LABEL_NAMES, NOTHING, TEXT_NAMES, Answers, Columns, Unusable, plain, read_number
from hfadapt.schemas.labelled import Labelled


class Scored(Labelled):
    """Rows of `text` and `label`, a number. Those of one text may differ a little, as several readers do."""

    name = "scored"
    rank = 21
    names = {"text": TEXT_NAMES, "label": ("score", "rating", "value", *LABEL_NAMES)}
    label_kind = "number"

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`text` and `label`."""
        import pyarrow as pa

        return [("text", pa.string()), ("label", pa.float64())]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Text and number. Raises Unusable for what is no finite number."""
        value = values["label"]
        if _says_nothing(value):
            raise Unusable("missing-field")
        try:
            number = read_number(value)
        except ValueError:
            raise Unusable("not-a-number", f" has {str(value)[:40]!r} where a number is needed") from None
        if not math.isfinite(number):
            raise Unusable("not-a-number", f" has {value!r} where a finite number is needed")
        return {"text": plain(values["text"]), "label": number}

    def label(self, row: Columns) -> str | None:
        """The number."""
        return None if row.get("label") is None else f"{row['label']:g}"

    def tolerance(self, labels: Sequence[Any]) -> float:
        """As much as numbers vary: their standard deviation."""
        return statistics.pstdev(labels) if labels else 0.0

    def classes(self, row: Columns) -> tuple[str, ...]:
        """None."""
        return ()

    def likely(self, labels: list[Any]) -> bool:
        """Whether these labels are rather numbers than names of classes: some have decimals, or they are many."""
        try:
            numbers = {read_number(label) for label in labels if not _says_nothing(label)}
        except ValueError:
            return False
        whole = all(number.is_integer() for number in numbers)
        return len(numbers) > (20 if whole else 2)

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words and a random number of the data's range."""
        return {**super().canary(chance, label, answers), "label": round(chance.uniform(*answers.numbers), 3)}


def _says_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NOTHING


KIND = Scored()
