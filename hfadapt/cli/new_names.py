"""Classes and groups in the names of recordings and pictures, for `hfadapt new`: `anna_yes_01.wav`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote

from hfadapt.cli.new_columns import GUESSED, MOST_LABELS, Ask, Rows, files_of
from hfadapt.core.errors import DataError
from hfadapt.data.labels import some
from hfadapt.data.sources import local_path
from hfadapt.files import folders, media
from hfadapt.recipe.schema import Columns
from hfadapt.schemas import LABEL_NAMES

NAME = "file"
"""The column with the names of files, which stands beside them by itself."""
LEAST_FILES, LEAST_GROUPS = 5, 5
"""Of each class on average, and so many groups as three splits need."""
SEPARATORS = "_-"
DIGITS = {*"0123456789"}
"""What is said or written where all ten stand in names; who says it is counted from 1, or with a 0 before it."""
_NUMBERED = re.compile(r"([^\W\d]*)\d+")


@dataclass(frozen=True)
class _Field:
    """One of the fields of all names: its number from 0, and how many files have each of its values."""

    number: int
    values: Counter[str]

    @property
    def numbered(self) -> bool:
        """Whether its values are numbers, alone or all behind the same word, as speakers and takes are told apart."""
        found = [_NUMBERED.fullmatch(value) for value in self.values]
        words = {each[1].lower() for each in found if each}
        return all(found) and len(words) == 1 and not words & {*LABEL_NAMES}

    def __str__(self) -> str:
        return f"field {self.number + 1} ({some(sorted(self.values), 4)})"


@dataclass(frozen=True)
class Names:
    """Names of files that all have as many fields; a folder before them is no part of the first."""

    example: str
    separator: str
    fields: tuple[_Field, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Names | None:
        """The names by the separator that tells a class; None where none does."""
        return next((found for found in cls.all_of(names) if found.candidates()), None)

    @classmethod
    def all_of(cls, names: Sequence[str]) -> Iterator[Names]:
        """The names by each separator that gives all as many fields."""
        stems = [PurePosixPath(name).stem for name in names]
        for separator in SEPARATORS:
            split = [stem.split(separator) for stem in stems]
            if len({len(each) for each in split}) == 1 and len(split[0]) > 1 and all(map(all, split)):
                fields = [_Field(number, Counter(values)) for number, values in enumerate(zip(*split, strict=True))]
                yield cls(names[0], separator, tuple(fields))

    def pattern(self, field: _Field) -> str:
        """What finds a field, wherever it stands."""
        own, last = f"[^/{self.separator}]+", field.number == len(self.fields) - 1
        start = "(?:^|/)" if "/" in self.example else "^"
        inner = rf"([^/{self.separator}]+)\.[^.]+$" if last else f"({own}){self.separator}"
        return start + f"{own}{self.separator}" * field.number + inner

    def candidates(self) -> list[_Field]:
        """Fields of few values that come again and again; numbers at the end, such as `take2`, count those of the rest.

        The likeliest class comes last: ten digits, then words, then numbers, which rather say who or when; of two that
        are equal in that the later one.
        """
        files = self.fields[0].values.total()
        few = [each for each in self.fields if 2 <= len(each.values) <= min(MOST_LABELS, files // LEAST_FILES)]
        last = self.fields[-1]
        return sorted(
            (each for each in few if each is not last or not last.numbered),
            key=lambda each: (each.values.keys() == DIGITS, not each.numbered, each.number),
        )

    def groups(self, label: _Field) -> Iterator[_Field]:
        """Fields before the last whose values, such as speakers, each have several files."""
        files = self.fields[0].values.total()
        for each in self.fields[:-1]:
            if each is not label and LEAST_GROUPS <= len(each.values) <= files // 2:
                yield each


def columns_in_names(data: str, rows: Rows, said: Columns, ask: Ask | None) -> tuple[Columns, list[str]]:
    """What is said of the columns, with class and group of files alone from their names; and what was taken from them.

    Names tell a class where all have as many fields, and one of these takes few values; of two such the likelier is
    taken, and the other is said with what names it.

    Raises:
        DataError: more than two fields could be the class, and nobody is asked.
    """
    kinds = files_of(rows)
    if kinds and said.label is None and (deep := _deep(rows)):
        inner, outer = PurePosixPath(deep).parent.name, PurePosixPath(deep).parts[0]
        told = f"{GUESSED}the class is the folder right above each file, {inner!r} of {deep}"
        return said, [f"{told}. If it is {outer!r}, add --columns 'label={NAME},label_pattern=^([^/]+)/'."]
    bare = kinds and all(set(row) <= {*kinds, NAME} for row in rows)
    names = Names.of(names_of(data, rows)) if bare and said.label is None else None
    if names is None:
        return said, []
    found = names.candidates()
    label = found[-1]
    options = {each.number: f"--columns {quote(f'label={NAME},label_pattern={names.pattern(each)}')}" for each in found}
    if len(found) > 1 and ask is not None:
        fields = sorted(found, key=lambda each: each.number)
        numbers = [str(each.number + 1) for each in fields]
        question = f"field of the names that is the class, in {names.example}: {'; '.join(map(str, fields))}"
        label = fields[numbers.index(ask(question, numbers, str(label.number + 1)))]
    elif len(found) > 2:
        fields = sorted(found, key=lambda each: each.number)
        raise DataError(
            "several fields of the names could be the class",
            place=data,
            got=f"names such as {names.example}: {'; '.join(map(str, fields))}",
            fix=f"say which it is, such as {options[label.number]} for field {label.number + 1}",
        )
    taken = {"label": NAME, "label_pattern": names.pattern(label)}
    guessed = "" if len(found) > 1 and ask is not None else GUESSED
    told = f"{guessed}the class is {label} of names such as {names.example}"
    group = next(names.groups(label), None) if said.group is None else None
    if group is not None:
        taken |= {"group": NAME, "group_pattern": names.pattern(group)}
        told += f", and files alike in {group} stay in one split"
    if not guessed:
        return Columns(**{**said.model_dump(exclude_none=True), **taken}), [f"{told}."]
    others = [f"If the class is {each}, add {options[each.number]}" for each in found if each is not label]
    told = " ".join([f"{told}.", *(others or [f"Otherwise add --columns 'label={NAME},label_pattern=REGEX'"])])
    return Columns(**{**said.model_dump(exclude_none=True), **taken}), [told]


def _deep(rows: Rows) -> str:
    """A file whose class folder is inside of another; "" where there is none."""
    names = (str(row.get(NAME, "")) for row in rows if "label" in row)
    return next((name for name in names if name.count("/") > 1), "")


def with_classes(rows: Rows, said: Columns) -> Rows:
    """The rows, with the class in the place of what it is found in."""
    if said.label_pattern is None or said.label is None:
        return rows
    return [{**row, said.label: said.class_in(row.get(said.label))} for row in rows]


def names_of(data: str, rows: Rows) -> list[str]:
    """The names of all files as rows have them; of an archive those of the first rows."""
    path = local_path(data, Path())
    files = folders.chosen(path).data if path is not None else ()
    if not files or any(file.suffix.lower() not in media.suffixes() for file in files):
        return [str(row.get(NAME, "")) for row in rows]
    return [*media.names_of(files).values()]
