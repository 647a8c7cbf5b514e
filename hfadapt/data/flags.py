"""Classes that a source spreads over columns or places of a list, 0 or 1 for each: one-hot or several at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.labels import some, task_for
from hfadapt.schemas import read_list

Values = Mapping[str, Any]
_BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
LABEL = "label"


@dataclass(frozen=True)
class Flags:
    """How the classes of a row are read.

    Args:
        names: The classes: columns, or names of places.
        column: The column of lists, or "" where each class has a column.
        one: Whether each row has exactly one.
    """

    names: tuple[str, ...]
    column: str
    one: bool

    def read(self, values: Values) -> dict[str, Any]:
        """The row with its class or classes in one column."""
        found = self.of(values)
        label: Any = found
        if self.one and len(found) < 2:
            label = found[0] if found else None
        return {**values, self.column or LABEL: label}

    def of(self, values: Values) -> list[str]:
        """The classes whose flag is set."""
        if self.column:
            bits = read_list(values.get(self.column)) or ()
            return [name for name, bit in zip(self.names, bits, strict=False) if _bit(bit)]
        return [name for name in self.names if _bit(values.get(name))]

    def fault(self, values: Values) -> str:
        """What of a row is neither 0 nor 1 where it should be, as that may mean yes, no or that nobody knows; else
        nothing."""
        if self.column:
            bits: Sequence[Any] = list(read_list(values.get(self.column)) or ())
            return f" has {bits} in {self.column}" if any(_bit(bit) is None for bit in bits) else ""
        odd = next((name for name in self.names if _bit(values.get(name)) is None), None)
        return "" if odd is None else f" has {str(values.get(odd, ''))[:40]!r} in {odd}"


def find_flags(
    head: Sequence[Values], forms: Collection[str], label: str | None, place_names: Sequence[str], place: str
) -> Flags | None:
    """The flags that the first rows of a source have, where the task learns classes; else None.

    Args:
        head: The first rows.
        forms: What the task learns from.
        label: The column that is known to be the label, if any.
        place_names: Names of the places of its lists, where the source has them.
        place: The source, for messages.

    Raises:
        DataError: the task learns one class, and rows have none or several.
    """
    kinds = {registry.schema(form).label_kind for form in forms} & {"class", "classes"}
    if not kinds:
        return None
    if label is not None:
        lists = [read_list(values.get(label)) for values in head if values.get(label) is not None]
        sizes = {len(each) for each in lists if each is not None}
        if None in lists or len(sizes) != 1 or not all(isinstance(each, list) for each in lists):
            return None
        # A list of class numbers has no number twice.
        if not all(_bit(bit) is not None for each in lists for bit in each or ()) or all(
            each is not None and len(set(each)) == len(each) for each in lists
        ):
            return None
        size = sizes.pop()
        names = tuple(place_names) if len(place_names) == size else tuple(map(str, range(size)))
        flags = Flags(names, label, "class" in kinds)
    else:
        columns = dict.fromkeys(column for values in head for column in values)
        names = tuple(name for name in columns if all(_bit(values.get(name)) is not None for values in head))
        flags = Flags(names, "", "class" in kinds)
    # A class that the first rows have not is one all the same.
    if len({name for values in head for name in flags.of(values)}) < 2:
        return None
    if flags.one and not all(len(flags.of(values)) == 1 for values in head):
        raise DataError(
            "several columns could be the label" if not flags.column else "the label is a list of 0 and 1",
            place=place,
            got=f"{some(flags.names)} hold 0 and 1, not exactly one 1 in each row",
            fix=_fix(flags, registry.schema(next(iter(forms))).modality),
        )
    return flags


def _fix(flags: Flags, modality: str) -> str:
    one = "write the one class that counts into a column of its own"
    one = one if flags.column else f"name one, such as columns: {{label: {flags.names[0]}}}"
    every = task_for("classes", modality, "to learn all of them", "")
    return f"{every}, or {one}" if every and not flags.column else every or one


def _bit(value: Any) -> bool | None:
    """Whether a flag is set; None for what is no flag."""
    return _BITS.get(str(value).strip().lower())
