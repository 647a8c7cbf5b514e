"""Labels that are not one class, whatever a row is made of: several classes, or a number."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import (
    NOTHING,
    Answers,
    Columns,
    LabelKind,
    RowSchema,
    Unusable,
    read_list,
    read_number,
    refuse_scores,
)

_SEPARATOR = re.compile(r"\s*[;,|]\s*")
EMPTY = ("label", "missing-field")
_OFF = frozenset({"0", "0.0", "", "false"})


class OfClasses(RowSchema):
    """Rows with `label`, a list of classes: as a list, as JSON, with `;`, `,` or `|` between them, or as an object of
    flags."""

    label_kind: LabelKind = "classes"

    def label_type(self) -> Any:
        """A list of names."""
        import pyarrow as pa

        return pa.list_(pa.string())

    def target(self, value: Any, name_of: Callable[[Any], str | None]) -> list[str]:
        """The names of its classes, each once, sorted."""
        return sorted({name for each in _listed(value) if (name := name_of(each)) is not None})

    def label(self, row: Columns) -> str | None:
        """All its classes."""
        return None if row.get("label") is None else ", ".join(row["label"])

    def classes(self, row: Columns) -> tuple[str, ...]:
        """Its classes."""
        return tuple(row.get("label") or ())

    def likely(self, labels: list[Any]) -> bool:
        """Whether these labels are lists, or text with several of the same words again and again, in other company too:
        "Injury, poisoning" is one class where neither word stands anywhere else."""
        lists = [label for label in labels if isinstance(label, (list, tuple, Mapping))]
        if lists:
            # Lists of lists and of objects are something else, such as spans.
            return not any(isinstance(each, (list, tuple, Mapping)) for label in lists for each in label)
        parts = [tuple(_listed(label)) for label in labels if isinstance(label, str)]
        if any(isinstance(part, (list, tuple, Mapping)) for each in parts for part in each):
            return False
        apart = Counter(part for each in {*parts} for part in {*each})
        joined = [any(apart[part] > 1 for part in each) for each in {*parts} if len(each) > 1]
        return sum(joined) > len(joined) / 2 and len(apart) < 0.2 * sum(map(len, parts))

    def lacks(self, values: Columns, part: str, column: str) -> Unusable:
        """An empty cell may be a row of none of the classes, or one that nobody has looked at."""
        found = super().lacks(values, part, column)
        return Unusable("no-classes", f" has nothing in {column}") if (part, found.reason) == EMPTY else found

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A random row with one random class."""
        return {**super().canary(chance, label, answers), "label": [] if label is None else [label]}


class OfNumbers(RowSchema):
    """Rows with `label`, a number. Those of what is the same may differ a little, as several readers do."""

    label_kind: LabelKind = "number"

    def label_type(self) -> Any:
        """A number."""
        import pyarrow as pa

        return pa.float64()

    def target(self, value: Any, name_of: Callable[[Any], str | None]) -> float:
        """The number. Raises Unusable for what is no finite number."""
        if _says_nothing(value):
            raise Unusable("missing-field")
        try:
            number = read_number(value)
        except ValueError:
            raise Unusable("not-a-number", f" has {str(value)[:40]!r} where a number is needed") from None
        if not math.isfinite(number):
            raise Unusable("not-a-number", f" has {value!r} where a finite number is needed")
        return number

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
        """Whether these labels are rather numbers than names of classes: some have decimals, or, of texts, they are
        many. Of files data sets number hundreds of classes."""
        try:
            numbers = {read_number(label) for label in labels if not _says_nothing(label)}
        except ValueError:
            return False
        whole = all(number.is_integer() for number in numbers)
        return len(numbers) > (20 if whole else 2) and not (whole and self.media)

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A random row with a random number of the data's range."""
        return {**super().canary(chance, label, answers), "label": round(chance.uniform(*answers.numbers), 3)}


def _listed(value: Any) -> list[Any]:
    found = read_list(value)
    if isinstance(found, Mapping):
        # NaN is not itself.
        refuse_scores(found.values())
        said = {name: flag for name, flag in found.items() if flag is not None and flag == flag}
        return [name for name, flag in said.items() if str(flag).strip().lower() not in _OFF]
    if found is not None:
        if len(found) > 1:
            refuse_scores(found)
        return found
    if not isinstance(value, str):
        return [value]
    return [part for part in _SEPARATOR.split(value.strip()) if part]


def _says_nothing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NOTHING
