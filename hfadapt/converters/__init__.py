"""What other fine-tuning tools call the settings of a recipe: the contract of a file in this folder.

Such a file has `KIND`, a `Converter`. Its table `fields` says what each field of the tool's configuration is here; its
`settle` reads those that only make sense together, such as data sets and batches. No field is lost: each ends as taken,
as not needed, or without a counterpart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EMPTY = "says nothing"


@dataclass(frozen=True)
class To:
    """A field that has a place in a recipe.

    Attributes:
        place: Such as `train.learning_rate`.
        read: The value there, or, where a value has none, a `Needless` or `Lacking` that says why.
    """

    place: str
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Needless:
    """A field that nothing here has to be told, and why."""

    why: str


@dataclass(frozen=True)
class Lacking:
    """A field that hfadapt has nothing for, and why where more can be said."""

    why: str = ""


Rule = To | Needless | Lacking


@dataclass(frozen=True)
class Taken:
    """Where a field's value went, and as what."""

    place: str
    value: Any


class Refused(Exception):
    """The file asks for something that no recipe can ask for; its text says what."""


@dataclass
class Said:
    """What a configuration of another tool says, and what became of each field of it.

    Attributes:
        pending: Fields of which nothing is known yet, by name; those inside a data set as `datasets[0].path`.
        folder: Where the file lies.
        out: Where the recipe will lie; paths are written as seen from there.
        values: Every field with its value, also those that are done.
        settings: The recipe so far.
        ends: What became of each field.
    """

    pending: dict[str, Any]
    folder: Path
    out: Path
    values: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    ends: dict[str, Taken | Needless | Lacking] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keeps what was said."""
        self.values = dict(self.pending)

    def get(self, key: str, default: Any = None) -> Any:
        """What a field says, whether or not it is done; the default where it says nothing."""
        value = self.values.get(key)
        return default if _empty(value) else value

    def has(self, key: str) -> bool:
        """Whether a field says something."""
        return not _empty(self.values.get(key))

    def open(self, key: str, value: Any = None) -> None:
        """Takes a field apart: its entries become fields of their own, such as `datasets[0].path`.

        Args:
            key: The field, or a name for what another file says.
            value: What that other file says.
        """
        found = self.pending.get(key) if value is None else value
        inner: dict[str, Any] = (
            {f"{key}[{index}]": each for index, each in enumerate(found)}
            if isinstance(found, list)
            else {f"{key}.{name}": each for name, each in found.items()}
            if isinstance(found, Mapping)
            else {}
        )
        if inner:
            self.pending.pop(key, None)
        self.pending |= inner
        self.values |= inner

    def entries(self, key: str) -> list[str]:
        """The names of the entries of a list of mappings, each opened. Raises Refused for anything else."""
        found = self.get(key, [])
        if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
            raise Refused(f"{key}: {str(found)[:60]}")
        self.open(key)
        names = [f"{key}[{index}]" for index in range(len(found))]
        for name in names:
            self.open(name)
        return names

    def take(self, keys: str | Sequence[str], place: str, value: Any) -> None:
        """Puts a value into the recipe, unless another field has said something else there.

        Args:
            keys: The fields that say it; of them only those that are there are counted.
            place: Dotted.
            value: What the recipe says; a `Needless` or `Lacking` ends the fields with that.
        """
        keys = [key for key in ([keys] if isinstance(keys, str) else keys) if key in self.pending]
        if isinstance(value, Needless | Lacking):
            self.end(keys, value)
            return
        *sections, last = place.split(".")
        parent = self.settings
        for section in sections:
            parent = parent.setdefault(section, {})
        if last in parent and parent[last] != value:
            self.end(keys, Lacking(f"`{place}` is {parent[last]} already, as another field says"))
            return
        parent[last] = value
        self.end(keys, Taken(place, value))

    def end(self, keys: str | Sequence[str], end: Taken | Needless | Lacking) -> None:
        """Says what became of fields."""
        for key in [keys] if isinstance(keys, str) else keys:
            if key in self.pending:
                del self.pending[key]
                self.ends[key] = end

    def near(self, text: str) -> str:
        """A path as seen from the recipe, where something lies there: in the working directory or beside the file."""
        for base in (Path.cwd(), self.folder):
            path = base / os.path.expanduser(text)
            if text and path.exists():
                seen = os.path.relpath(path.resolve(), self.out.resolve())
                return seen if seen.startswith("..") else f"./{seen}"
        return text

    def finish(self, fields: Mapping[str, Rule]) -> None:
        """Ends every field that is still open: by the table, as empty, or as one without a counterpart."""
        for key, value in list(self.pending.items()):
            rule = fields.get(key)
            if _empty(value):
                self.end(key, Needless(EMPTY))
            elif isinstance(rule, To):
                try:
                    self.take(key, rule.place, rule.read(value))
                except (TypeError, ValueError, AttributeError):
                    # Rules read what the tool itself would take.
                    self.end(key, Lacking(f"the tool does not take {value!r:.60}"))
            else:
                self.end(key, rule or Lacking())


@dataclass(frozen=True)
class Converter:
    """How the configurations of one tool are read.

    Attributes:
        name: As `hfadapt convert --from` names it.
        title: As people write it.
        fields: What each field is here.
        together: Fields that `settle` reads.
        settle: Reads them; raises `Refused` for what is no recipe.
    """

    name: str
    title: str
    fields: Mapping[str, Rule]
    together: frozenset[str]
    settle: Callable[[Said], None]

    def known(self, values: Mapping[str, Any]) -> int:
        """How many fields of a file are this tool's."""
        return sum(key in self.fields or key in self.together for key in values)

    def convert(self, said: Said) -> None:
        """Ends every field, and fills `said.settings`."""
        self.settle(said)
        said.finish(self.fields)


def named(text: str, default: str = "data") -> str:
    """A name for a domain, from that of a data set or file."""
    stem = re.sub(r"\.(jsonl?|csv|tsv|parquet|arrow|txt)$", "", text.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:64].strip("-_") or default


def _empty(value: Any) -> bool:
    return value is None or value in ("", [], {})
