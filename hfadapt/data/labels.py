"""One name for each class, however sources spell it: numbers, booleans, case and spaces; each merge or doubt is said.

What a value is called does not depend on the rows that follow, so that data in memory and on a stream get the same
classes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.core.hashing import without_case
from hfadapt.recipe.yaml_lines import inline
from hfadapt.records.stages import Finding
from hfadapt.schemas import NOTHING, LabelKind, Unusable, read_list, refuse_scores, whole_number

FEW_NUMBERS = 10
"""So many classes with decimals are still taken for classes."""
MANY_NUMBERS = 20
SHOWN = 8
_NUMERAL = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d*[.,]\d+(?:[eE][+-]?\d+)?", re.ASCII)


class Labels:
    """Class names of one domain: from the recipe's list, a column's own names, or the values themselves.

    Args:
        names: The recipe's list, in whose order numbers stand for classes, from 0.
        none: What says in the recipe's rows that there is no label; "" is an empty cell.
    """

    def __init__(self, names: Sequence[str] | None, none: Iterable[str] = ()) -> None:
        self.names = tuple(names) if names is not None else None
        self._none = {without_case(_text(each)) for each in none}
        self.borrowed: dict[str, str] = {}
        """Sources whose numbers were named by the column of another source."""
        self.flags: dict[str, tuple[str, ...]] = {}
        """Columns of sources, or places of their lists, that say 1 or 0 for each class."""
        self._ordered = self.names is not None and not any(numeral([name]) for name in self.names)
        self._first: dict[str, str] = {}
        for name in self.names or ():
            # A list that tells case apart means it.
            self._first[without_case(name)] = "" if without_case(name) in self._first else name
        self._spelled: dict[str, Counter[str]] = defaultdict(Counter)
        self._positions: Counter[int] = Counter()
        self._lists = 0

    def name(self, value: Any, column_names: Sequence[str] = (), *, tags: bool = False) -> str | None:
        """The name of a raw label; None when there is none. A name outside the recipe's list comes back as it is.

        Args:
            value: As the source has it.
            column_names: The classes of the column, by number.
            tags: Whether it is a tag of a word, in which case tells classes apart.

        Raises:
            Unusable: it is an object, or a list of several classes.
        """
        listed = read_list(value)
        if isinstance(listed, Mapping):
            raise Unusable("label-is-object", f" has an object as its label, with {', '.join(map(str, listed))}")
        if listed is not None:
            if len(listed) > 1:
                refuse_scores(listed)
                raise Unusable("several-labels", f" has {len(listed)} labels: {', '.join(map(str, listed))[:60]}")
            self._lists += len(listed)
            return self.name(listed[0], column_names, tags=tags) if listed else None
        text = _text(value)
        if not text:
            return None
        number = int(text) if _NUMERAL.fullmatch(text) else None
        if number is not None and text not in column_names and text not in (self.names or ()):
            if number == -1 and (column_names or self._ordered):
                return None
            if 0 <= number < len(column_names):
                text, number = column_names[number], None
        if self.names is not None and text not in self.names and self._ordered:
            if text in ("false", "true") and len(self.names) == 2:
                number = int(text == "true")
            if number is not None:
                self._positions[number] += 1
                text = self.names[number] if 0 <= number < len(self.names) else text
        found = text if tags or text in (self.names or ()) else self._first.setdefault(without_case(text), text) or text
        self._spelled[found][str(value).lower() if isinstance(value, bool) else str(value).strip()] += 1
        return found

    def says_none(self, value: Any, column_names: Sequence[str] = ()) -> bool:
        """Whether the recipe says of a raw label that it stands for none."""
        if not self._none:
            return False
        text = _text(value)
        number = int(text) if _NUMERAL.fullmatch(text) else -1
        named = column_names[number] if 0 <= number < len(column_names) else text
        return not self._none.isdisjoint({without_case(text), without_case(named)})

    def refusal(self, outside: Collection[str]) -> str | None:
        """How to get labels right that are not in the recipe's list, where one thing explains them all."""
        names = self.names or ()
        if self._positions and set(outside) == {str(len(names))} and not self._positions[0]:
            used = ", ".join(map(str, sorted(self._positions)))
            return (
                f"the numbers {used} count from 1, but number 0 is {names[0]!r}, 1 is {names[1]!r}: write the names "
                "into the column, subtract 1, or leave labels out, so that the classes are called by their numbers"
            )
        return None

    def findings(self, names: Sequence[str], form: str, place: str) -> list[Finding]:
        """What was merged, and what is doubtful.

        Args:
            names: The classes that rows have.
            form: Name of the rows' schema.
            place: The domain, for messages.

        Raises:
            DataError: the classes cannot be meant: they are numbers with decimals.
        """
        kind, modality = registry.schema(form).label_kind, registry.schema(form).modality
        found = [*self._merged(names, modality), *self._as_numbers()]
        if kind == "class" and self.names is None:
            found += [*_scores(names, place, modality), *_combined(names, modality)]
        return found if kind == "tokens" else [*found, *_alike(names), *_not_classes(names)]

    def _merged(self, names: Sequence[str], modality: str) -> list[Finding]:
        found = []
        merged = {name: self._spelled[name] for name in names if len(self._spelled[name]) > 1}
        if merged:
            shown = [
                f"{name!r} is spelled {', '.join(f'{text!r} ({count:,})' for text, count in spelled.items())}"
                for name, spelled in merged.items()
            ]
            what = f"spellings of one class were read as one: {some(shown, 4, '; ')}"
            fix = "nothing, if this is meant; to keep them apart, list each spelling in the domain's labels"
            found.append(_soft("label-spelling", what, fix))
        if self._lists:
            what = f"{self._lists:,} labels are lists of one class, which was taken"
            fix = f"nothing, or {task_for('classes', modality, 'if rows may have several', 'keep one class a row')}"
            found.append(_soft("label-list", what, fix))
        return found

    def _as_numbers(self) -> list[Finding]:
        found = []
        if self.borrowed:
            shown = ", ".join(f"{source} by those of {other}" for source, other in self.borrowed.items())
            what = f"numbers were read as names of classes: {shown}"
            found.append(_soft("label-numbers", what, "check that both count the classes alike"))
        for source, names in self.flags.items():
            what = f"{source}: 0 and 1 in {some(names)} were read as classes that a row has or has not"
            found.append(_soft("label-flags", what, f"nothing, or columns: {{label: {names[0]}}} to learn one of them"))
        if self._positions and self._ordered and not self._positions[0] and len(self._positions) > 1:
            assert self.names is not None
            what = f"the numbers {some(map(str, sorted(self._positions)))} were read as labels, none is 0"
            fix = f"numbers count from 0, which is {self.names[0]!r}: subtract 1 if they were counted from 1"
            found.append(_soft("label-from-one", what, fix))
        return found


def some(names: Iterable[Any], limit: int = SHOWN, between: str = ", ") -> str:
    """Names for a message: the first ones, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return between.join(map(str, names[:limit])) + more


def numeral(names: Iterable[str]) -> bool:
    """Whether all classes are called by numbers."""
    return all(map(_NUMERAL.fullmatch, names))


def tasks_with(kind: LabelKind, *, of_files: bool = False) -> list[str]:
    """The tasks that learn this kind of label of texts, or of files."""
    known = (each for each in map(registry.task, registry.names("tasks")) if each.label_kind == kind)
    return [each.name for each in known if bool(registry.modality(each.modality).suffixes) == of_files]


def task_for(kind: LabelKind, modality: str, then: str, otherwise: str) -> str:
    """What helps with labels of another kind: the task of a modality that learns these, and what it does, or, where
    there is none, something else."""
    known = (task for task in map(registry.task, registry.names("tasks")) if task.modality == modality)
    name = next((task.name for task in known if task.label_kind == kind), None)
    return f"set task: {name} {then}" if name else otherwise


def _text(value: Any) -> str:
    """A label as text: whole numbers without decimals, one space between words; empty where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, (float, Decimal)) and not math.isfinite(value)):
        return ""
    whole = whole_number(value)
    return str(whole) if whole is not None else " ".join(str(value).split())


def _soft(code: str, what: str, fix: str) -> Finding:
    return Finding(code=code, level="soft", message=what, fix=fix)


def _scores(names: Sequence[str], place: str, modality: str) -> list[Finding]:
    """Labels that are rather numbers to be predicted."""
    numbers = [name for name in names if _NUMERAL.fullmatch(name) or _DECIMAL.fullmatch(name)]
    decimals = [name for name in numbers if _DECIMAL.fullmatch(name)]
    if len(numbers) < len(names) or not (decimals or len(numbers) > MANY_NUMBERS):
        return []
    kind = "numbers with decimals" if decimals else "numbers"
    what = f"the labels are {len(names):,} {kind}: {some(decimals or numbers)}"
    nouns = registry.modality(modality).nouns
    none = f"no task learns a number of {nouns}: write ranges of it, such as low and high, into a column of their own"
    fix = task_for("number", modality, "to learn a number", none)
    fix += "; if these are classes, list them in the domain's labels"
    if decimals and len(names) > FEW_NUMBERS:
        raise DataError("the labels are scores, not classes", place=place, got=what, fix=fix)
    return [_soft("label-score", what, fix)]


def _combined(names: Sequence[str], modality: str) -> list[Finding]:
    """Classes such as `anger,joy` beside `anger`, and `scab rust` beside both `scab` and `rust`."""
    parts = {name: [part.strip() for part in re.split("[;,|]", name) if part.strip()] for name in names}
    parts |= {name: own for name in names if len(own := name.split()) > 1 and {*own} <= {*names}}
    several = [name for name in names if len(parts[name]) > 1]
    if several and len({part for each in parts.values() for part in each}) < len(names):
        what = f"labels look like several classes together: {some(map(repr, several))}"
        nouns = registry.modality(modality).nouns
        none = f"no task learns several classes of {nouns}, and each of these is one of its own: keep one class a row"
        fix = task_for("classes", modality, f"to learn any number of classes of {nouns}", none)
        return [_soft("label-several", what, fix)]
    return []


def _alike(names: Sequence[str]) -> list[Finding]:
    """Classes that are hardly two: leading zeros, width, and signs between words."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_rough(name)].append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    fix = "if they are one class, write them alike in the source"
    return [_soft("label-alike", f"classes differ in little: {some(alike, between='; ')}", fix)]


def _rough(name: str) -> str:
    if _NUMERAL.fullmatch(name):
        return str(int(name))
    bare = re.sub(r"[\s_'\"-]+", "", unicodedata.normalize("NFKC", name).casefold()) or name
    return {"true": "1", "false": "0"}.get(bare, bare)


def _not_classes(names: Sequence[str]) -> list[Finding]:
    found = []
    words = [name for name in names if name.casefold() in NOTHING]
    if words:
        what = f"a class is called {some(map(repr, words))}, which programs write where there is no label"
        found.append(_soft("label-missing", what, f"no_label: {inline(words)} of the domain leaves these rows out"))
    numbers = {name for name in names if _NUMERAL.fullmatch(name)}
    if "-1" in numbers and len(numbers) == len(names) and numbers != {"-1", "1"}:
        what = "a class is called -1, which stands for 'no label' in many data sets"
        fix = "if it does, set no_label: ['-1'] of the domain, which leaves these rows out"
        found.append(_soft("label-minus-one", what, fix))
    return found
