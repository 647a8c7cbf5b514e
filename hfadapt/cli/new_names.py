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
from hfadapt.files import Blob, folders, media
from hfadapt.recipe.schema import Columns
from hfadapt.schemas import LABEL_NAMES

NAME = "file"
"""The column with the names of files, which stands beside them by itself."""
LEAST_FILES, LEAST_GROUPS = 5, 5
"""Of each class on average, and so many groups as three splits need."""
SEPARATORS = "_-."
DIGITS = {*"0123456789"}
"""What is said or written where all ten stand in names; who says it is counted from 1, or with a 0 before it."""
_NUMBERED = re.compile(r"([^\W\d]*)\d+")
_COUNTED = re.compile(r"(.*?[^\W\d_])[\W_]*\d+")
"""A name that is words and a number, as `basset_hound_12` is."""
ORIGINS = "speaker|spk|singer|patient|participant|recording|session|kit|donor|animal|actor|lesion|fold"
"""Words for whom or what rows are of, or for those that are held back together."""
_OF_ORIGIN = re.compile(rf"({ORIGINS}|subject|person|user)s?[\W_]*\d+", re.IGNORECASE)
ABOVE = r"([^/]+)/[^/]+$"
"""What finds the folder right above a file."""


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
        if self.number < 0:
            return f"what stands before the number ({some(sorted(self.values), 4)})"
        return f"field {self.number + 1} ({some(sorted(self.values), 4)})"


@dataclass(frozen=True)
class Names:
    """Names of files that all have as many fields; a folder before them is no part of the first."""

    names: Sequence[str]
    separator: str
    fields: tuple[_Field, ...]

    @property
    def example(self) -> str:
        """The first of them."""
        return self.names[0]

    @property
    def folders(self) -> list[str]:
        """The folder right above each file."""
        return [above(name) for name in self.names]

    def column(self, field: _Field) -> list[str]:
        """What a field is in each name."""
        pattern = re.compile(self.pattern(field))
        return [match[1] if (match := pattern.search(name)) else "" for name in self.names]

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
                yield cls(names, separator, tuple(fields))
        counted = [_COUNTED.fullmatch(stem) for stem in stems]
        if all(counted):
            yield cls(names, "", (_Field(-1, Counter(each[1] for each in counted if each)),))

    def pattern(self, field: _Field) -> str:
        """What finds a field, wherever it stands."""
        start = "(?:^|/)" if "/" in self.example else "^"
        if field.number < 0:
            return start + r"([^/]*?[^/\W\d_])[\W_]*\d+\.[^.]+$"
        own, last, between = (
            f"[^/{self.separator}]+",
            field.number == len(self.fields) - 1,
            self.separator.replace(".", r"\."),
        )
        inner = rf"([^/{self.separator}]+)\.[^.]+$" if last else f"({own}){between}"
        return start + f"{own}{between}" * field.number + inner

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
        DataError: more than two fields could be the class, or two of numbers, and nobody is asked.
    """
    kinds = files_of(rows)
    owners = _owners(rows) if kinds and said.label is None else []
    if kinds and said.label is None and not owners and (deep := _deep(rows)):
        name, inner, outer = deep
        told = f"{GUESSED}the class is the folder right above each file, {inner!r} of {name}"
        return said, [f"{told}. If it is {outer!r}, add --columns 'label={NAME},label_pattern=^([^/]+)/'."]
    bare = kinds and all(set(row) <= {*kinds, NAME, "split"} for row in rows)
    names = Names.of(names_of(data, rows)) if (bare or owners) and said.label is None else None
    if names is None:
        return said, []
    found = names.candidates()
    if owners:
        # The same as the folder, it says nothing new.
        found = [
            each
            for each in found
            if len({*zip(names.folders, names.column(each), strict=True)}) > len({*names.folders})
        ]
        if not found:
            return said, []
    label = found[-1]
    options = {each.number: f"--columns {quote(f'label={NAME},label_pattern={names.pattern(each)}')}" for each in found}
    if len(found) > 1 and ask is not None:
        fields = sorted(found, key=lambda each: each.number)
        numbers = [str(each.number + 1) for each in fields]
        question = f"field of the names that is the class, in {names.example}: {'; '.join(map(str, fields))}"
        label = fields[numbers.index(ask(question, numbers, str(label.number + 1)))]
    elif len(found) > 2 or (len(found) > 1 and label.numbered and label.values.keys() != DIGITS):
        fields = sorted(found, key=lambda each: each.number)
        raise DataError(
            "several fields of the names could be the class",
            place=data,
            got=f"names such as {names.example}: {'; '.join(map(str, fields))}",
            fix=f"say which it is, such as {options[label.number]} for field {label.number + 1}"
            + (f"; or --columns {quote(f'label={NAME},label_pattern={ABOVE}')} for the folder" if owners else ""),
        )
    taken = {"label": NAME, "label_pattern": names.pattern(label)}
    guessed = "" if len(found) > 1 and ask is not None else GUESSED
    told = f"{guessed}the class is {label} of names such as {names.example}"
    group = next(names.groups(label), None) if said.group is None else None
    if owners and len({*names.folders}) >= LEAST_GROUPS and said.group is None:
        taken |= {"group": NAME, "group_pattern": ABOVE}
        told += f", and files of a folder ({some(owners, 4)}) stay in one split"
    elif group is not None:
        taken |= {"group": NAME, "group_pattern": names.pattern(group)}
        told += f", and files alike in {group} stay in one split"
    if not guessed:
        return Columns(**{**said.model_dump(exclude_none=True), **taken}), [f"{told}."]
    others = [f"If the class is {each}, add {options[each.number]}" for each in found if each is not label]
    if owners:
        others.append(f"If the class is the folder, add --columns {quote(f'label={NAME},label_pattern={ABOVE}')}")
    told = " ".join([f"{told}.", *(others or [f"Otherwise add --columns 'label={NAME},label_pattern=REGEX'"])])
    return Columns(**{**said.model_dump(exclude_none=True), **taken}), [told]


def _owners(rows: Rows) -> list[str]:
    """Folders of files that say whose these are, such as Actor_01 and Actor_02, and hardly their class."""
    labels = sorted({str(row["label"]) for row in rows if "label" in row})
    plain = all(set(row) <= {*files_of(rows), NAME, "label", "split"} for row in rows)
    return labels if labels and plain and all(map(_OF_ORIGIN.fullmatch, labels)) else []


def above(name: str) -> str:
    """The folder right above a file."""
    return PurePosixPath(name).parent.name


def _deep(rows: Rows) -> tuple[str, str, str] | None:
    """A file whose class folder is inside of another, both folders, and None where there is none: neither in a folder
    that is called like a split, nor where all of an archive are in one."""
    found = [(str(row.get(NAME, "")), str(row["label"])) for row in rows if "label" in row]
    deep = [(name, label, PurePosixPath(name).parts[0]) for name, label in found if name.count("/") > 1]
    packed = any(isinstance(value, Blob) and value.path is None for value in rows[0].values())
    if packed and len({outer for *_, outer in deep}) < 2 and len(deep) == len(found):
        return None
    return next((each for each in deep if each[1] != each[2]), None)


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
