"""Classes that a source spreads over columns or places of a list, 0 or 1 for each: one-hot or several at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, choice_problem
from hfadapt.data.columns import label_column
from hfadapt.data.labels import some, task_for
from hfadapt.recipe.schema import Columns
from hfadapt.recipe.yaml_lines import inline
from hfadapt.records.stages import Finding
from hfadapt.schemas import NOTHING, read_list, read_number

Values = Mapping[str, Any]
_BITS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SIGNS = {"-1": False, "1": True, "-1.0": False, "1.0": True}
LABEL = "label"
MOSTLY = 0.9
"""The share of cells with 0 or 1 from which a column is a class that is not known of some rows."""


@dataclass(frozen=True)
class Flags:
    """How the classes of a row are read.

    Args:
        names: The classes: columns, or names of places.
        column: The column of lists, or "" where each class has a column.
        one: Whether each row has exactly one.
        signed: Columns of -1 and 1, where -1 is no.
    """

    names: tuple[str, ...]
    column: str
    one: bool
    signed: frozenset[str] = frozenset()

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
        return [name for name in self.names if self._bit_of(name, values)]

    def _bit_of(self, name: str, values: Values) -> bool | None:
        value = values.get(name)
        return _SIGNS.get(str(value).strip()) if name in self.signed else _bit(value)

    def odd(self, values: Values) -> tuple[str, list[Any]]:
        """What of a row is neither 0 nor 1 where it should be, as that may mean yes, no or that nobody knows: for a
        message, and the cells; both empty of other rows."""
        if self.column:
            bits: Sequence[Any] = list(read_list(values.get(self.column)) or ())
            others = [bit for bit in bits if _bit(bit) is None]
            return (f" has {bits} in {self.column}" if others else ""), others
        found = {name: values.get(name) for name in self.names if self._bit_of(name, values) is None}
        first = next(iter(found), "")
        said = f" has {'' if found[first] is None else str(found[first])[:40]!r} in {first}" if found else ""
        return said, [*found.values()]


def find_flags(
    head: Sequence[Values], forms: Collection[str], asked: Columns, place_names: Sequence[str], place: str
) -> Flags | None:
    """The flags that the first rows of a source have, where the task learns classes; else None.

    Args:
        head: The first rows.
        forms: What the task learns from.
        asked: What the recipe says of the columns: those of the classes, the label, or what else is in one.
        place_names: Names of the places of its lists, where the source has them.
        place: The source, for messages.

    Raises:
        DataError: a column that is asked for is missing, or the task learns one class, and rows have none or several.
    """
    kinds = {registry.schema(form).label_kind for form in forms} & {"class", "classes"}
    if not kinds:
        return None
    columns = tuple(dict.fromkeys(column for values in head for column in values))
    label = label_column(columns, asked)
    if asked.classes is not None:
        missing = [name for name in asked.classes if name not in columns]
        problems = [choice_problem("there is no column for a class", name, columns, place) for name in missing]
        if problems:
            raise DataError(problems[0].what, problems=problems)
        flags = Flags(asked.classes, "", "class" in kinds, _signed(asked.classes, head))
    elif label is not None:
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
        taken = {*asked.parts.values(), asked.group, asked.split}
        free = [name for name in columns if name not in taken]
        signed = _signed(free, head)
        names = tuple(name for name in free if name in signed or _is_flag(name, head))
        flags = Flags(names, "", "class" in kinds, signed)
    # A class that the first rows have not is one all the same.
    if asked.classes is None and len({name for values in head for name in flags.of(values)}) < 2:
        return None
    if flags.one and not all(len(flags.of(values)) == 1 for values in head if not flags.odd(values)[0]):
        raise DataError(
            "several columns could be the label" if not flags.column else "the label is a list of 0 and 1",
            place=place,
            got=f"{some(flags.names)} hold 0 and 1, not exactly one 1 in each row",
            fix=_fix(flags, registry.schema(next(iter(forms))).modality),
        )
    return flags


def doubtful(head: Sequence[Values], columns: Collection[str], flags: Flags | None, place: str) -> list[Finding]:
    """What is to be said of columns that are not read and hold 0 and 1 in some rows, and in others -1 or nothing.

    Args:
        head: The first rows.
        columns: Those that are not read.
        flags: The classes that were found beside them; without any, one such column says little.
        place: The source, for messages.
    """
    bits = {name: of_column for name in columns if (of_column := _bits(name, head))}
    found = {name: each for name, each in bits.items() if each[1] and all(map(_unknown, each[1]))}
    names = [*found]
    if len(names) < (1 if flags else 2):
        return []
    known = found[names[0]][0]
    others = [value for _, values in found.values() for value in values]
    what = f"{place}: {some(map(repr, names))} {'are' if len(names) > 1 else 'is'} not read: {names[0]!r} holds 0 or 1 "
    what += f"in {known:,} of the first {len(head):,} rows, and nothing, -1 or the like in the others"
    every = inline([*(flags.names if flags else ()), *names])
    unknown = inline(sorted({"" if value is None or value != value else str(value) for value in others}))
    fix = "nothing, if these are no classes; else write 0 or 1 into each cell, or leave out the rows of which one is "
    fix += f"not known: columns: {{classes: {every}}} and no_label: {unknown} of the domain"
    return [Finding(code="classes-left-out", level="soft", message=what, fix=fix)]


def _signed(names: Iterable[str], head: Sequence[Values]) -> frozenset[str]:
    """Columns that hold -1 and 1 and nothing else."""
    found = {name: {_SIGNS.get(str(values.get(name)).strip()) for values in head} for name in names}
    return frozenset(name for name, signs in found.items() if signs == {True, False})


def _bits(name: str, head: Sequence[Values]) -> tuple[int, list[Any]] | None:
    """How many cells of a column are 0 or 1, and the other values; None where not one is 1."""
    values = [values.get(name) for values in head]
    bits = [_bit(value) for value in values]
    others = [value for value, bit in zip(values, bits, strict=True) if bit is None]
    return (len(values) - len(others), others) if True in bits else None


def _is_flag(name: str, head: Sequence[Values]) -> bool:
    """Whether a column says of the rows whether they have a class, but for a few; numbers over 1 count something."""
    if (found := _bits(name, head)) is None:
        # A class that the first rows have not.
        return all(_bit(values.get(name)) is not None for values in head)
    known, others = found
    return known >= MOSTLY * len(head) and not any(_counts(value) for value in others)


def _counts(value: Any) -> bool:
    try:
        return read_number(value) > 1
    except (ValueError, TypeError):
        return False


def _unknown(value: Any) -> bool:
    """Whether a cell says that it is not known whether a row has a class."""
    return value is None or value != value or str(value).strip().lower() in {*NOTHING, "", "-1", "-1.0"}


def _fix(flags: Flags, modality: str) -> str:
    one = "write the one class that counts into a column of its own"
    one = one if flags.column else f"name what is learned, such as columns: {{label: {flags.names[0]}}}"
    every = task_for("classes", modality, "to learn all of them", "")
    return f"{every}, or {one}" if every and not flags.column else every or one


def _bit(value: Any) -> bool | None:
    """Whether a flag is set; None for what is no flag."""
    return _BITS.get(str(value).strip().lower())
