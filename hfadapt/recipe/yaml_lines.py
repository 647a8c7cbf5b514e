"""Reads YAML strictly and remembers where every value stands, so that any later check can name `file:line`.

Plain words follow YAML 1.2: `no`, `off` and `12:30` are text and `1e-4` is a number. Anchors, aliases, merge keys,
tags, duplicate keys and further documents are refused: a recipe needs none of them, and aliases can grow without bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from yaml.reader import Reader

from hfadapt.core.errors import Problem

LIMIT_BYTES = 1 << 20
LIMIT_DEPTH = 12
LIMIT_VALUES = 10_000

Keys = tuple[str | int, ...]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")
_INT = re.compile(r"[-+]?[0-9]{1,200}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None}
_WORDS.update(
    {
        form: value
        for word, value in (("null", None), ("true", True), ("false", False))
        for form in (word, word.capitalize(), word.upper())
    }
)
_WORDS.update({f"{sign}.{form}": float(f"{sign}{form}") for sign in ("", "-", "+") for form in ("inf", "Inf", "INF")})
_WORDS.update({".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan")})


class Place(NamedTuple):
    """Where something was written; `order` sorts, file lines first."""

    order: int
    text: str


@dataclass
class Tree:
    """The values of a file, the place of each, and everything found wrong with them so far.

    Args:
        name: The file, as places name it.
        values: Nested dicts, lists and scalars.
        places: Place by path of keys; a path without one stands where its parent does.
        found: Problems in the order they were found.
        broken: Paths that have been refused; what lies below them is not judged again.
    """

    name: str
    values: Any = None
    places: dict[Keys, Place] = field(default_factory=dict)
    found: list[tuple[Place, Problem]] = field(default_factory=list)
    broken: set[Keys] = field(default_factory=set)

    def place(self, keys: Keys) -> Place:
        """The place of a path, or of its nearest parent that has one."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places.get(keys) or self.line(1)

    def line(self, number: int) -> Place:
        """A line of the file, counted from 1."""
        return Place(number, f"{self.name}:{number}")

    def is_broken(self, keys: Keys) -> bool:
        """Whether the path or a parent of it has been refused."""
        return any(keys[:end] in self.broken for end in range(len(keys) + 1))

    def report(
        self,
        at: Keys | Place,
        what: str,
        *,
        got: str | None = None,
        allowed: str | None = None,
        fix: str | None = None,
        final: bool = False,
    ) -> None:
        """Notes a problem; one inside a refused path is left out. `final` refuses the path itself."""
        if isinstance(at, Place):
            place = at
        else:
            if self.is_broken(at):
                return
            if final:
                self.broken.add(at)
            place = self.place(at)
        problem = Problem(what, place.text, got, allowed, fix)
        if (place, problem) not in self.found:
            self.found.append((place, problem))

    def problems(self) -> list[Problem]:
        """All problems, sorted by line."""
        return [problem for _, problem in sorted(self.found, key=lambda each: each[0].order)]

    def drop(self, keys: Keys) -> None:
        """Forgets what was known about a path and below it, before a new value is put there."""
        self.places = {path: place for path, place in self.places.items() if path[: len(keys)] != keys}
        self.broken = {path for path in self.broken if path[: len(keys)] != keys}

    def move(self, keys: Keys, to: Keys) -> None:
        """A path and what is below it stand under another one now; places stay those of the file."""
        moved = {to + path[len(keys) :]: place for path, place in self.places.items() if path[: len(keys)] == keys}
        self.drop(keys)
        self.places.update(moved)


def plain(text: str) -> Any:
    """What an unquoted word means: null, a boolean, a number, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def read_into(tree: Tree, text: str, keys: Keys = (), place: Place | None = None) -> Any:
    """Reads one YAML document.

    Args:
        tree: Where places and problems go.
        text: The document.
        keys: Path that the document will have in the tree.
        place: Place of everything in it; by default the lines of the tree's file.

    Returns:
        The value; None when it is empty or could not be read, the latter with a problem reported.
    """
    reader = _Reader(tree, text, place)
    try:
        return reader.document(keys)
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        reader.report_syntax(error)
    return None


class _Stop(Exception):
    """Reading on is pointless; the reason has been reported."""


class _Reader:
    """Builds values from parser events, which show aliases and tags before anything is made of them."""

    def __init__(self, tree: Tree, text: str, place: Place | None) -> None:
        self.tree, self.text, self.fixed = tree, text, place
        self.count = 0
        self.referenced = False
        self.events: Iterator[Any] = iter(())

    def at(self, mark: Any) -> Place:
        return self.fixed or self.tree.line(mark.line + 1)

    def document(self, keys: Keys) -> Any:
        unprintable = Reader.NON_PRINTABLE.search(self.text)
        if unprintable:
            line = self.text.count("\n", 0, unprintable.start()) + 1
            self.tree.report(
                self.fixed or self.tree.line(line),
                "a control character is in the text",
                got=repr(unprintable[0]),
                allowed="printable text",
                fix="remove the character; it is often invisible in an editor",
            )
            return None
        self.events = yaml.parse(self.text, Loader=_LOADER)
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.value(next(self.events), keys)
        next(self.events)
        more = next(self.events)
        if isinstance(more, yaml.DocumentStartEvent):
            self.tree.report(
                self.at(more.start_mark),
                "the file holds more than one document",
                got="a second `---`",
                allowed="one document",
                fix="write one recipe a file, without further `---` lines",
            )
        return value

    def limit(self, event: Any, depth: int) -> None:
        """Counts a value; gives up on a document that cannot be a recipe."""
        self.count += 1
        if self.count > LIMIT_VALUES or depth > LIMIT_DEPTH:
            limit = f"{LIMIT_VALUES:,} values" if self.count > LIMIT_VALUES else f"{LIMIT_DEPTH} levels"
            self.tree.report(
                self.at(event.start_mark),
                "this is too large or too deep for a recipe",
                got=f"more than {limit}",
                allowed=f"{LIMIT_VALUES:,} values and {LIMIT_DEPTH} levels",
                fix="check that this is the recipe, not a data file",
            )
            raise _Stop

    def value(self, event: Any, keys: Keys) -> Any:
        self.limit(event, len(keys))
        if event.anchor:
            self.refuse_reference(event, keys)
        if isinstance(event, yaml.AliasEvent):
            return None
        if event.tag not in _TEXT_TAGS:
            self.tree.report(
                keys or self.at(event.start_mark),
                "YAML tags are not allowed",
                got=event.tag.replace("tag:yaml.org,2002:", "!!"),
                allowed="plain values, lists and settings",
                fix="remove the tag",
                final=True,
            )
        if isinstance(event, yaml.ScalarEvent):
            quoted = event.style or event.tag is not None
            return event.value if quoted else plain(event.value)
        return self.items(keys) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(keys)

    def items(self, keys: Keys) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            here = (*keys, len(values))
            self.tree.places[here] = self.at(event.start_mark)
            values.append(self.value(event, here))
        return values

    def mapping(self, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, values, keys)
            event = next(self.events)
            if key is None:
                self.skip(event)
            else:
                values[key] = self.value(event, (*keys, key))
        return values

    def key(self, event: Any, before: dict[str, Any], keys: Keys) -> str | None:
        """The key that starts here, or None when it is refused."""
        place = self.at(event.start_mark)
        if not isinstance(event, yaml.ScalarEvent):
            self.skip(event)
            got, fix = None, "write a name"
        else:
            quoted = event.style or event.tag == "tag:yaml.org,2002:str"
            got = event.value if quoted else plain(event.value)
            fix = f'put it in quotes: "{event.value}":' if event.value else "write a name"
            if event.anchor:
                self.refuse_reference(event, None)
        if not isinstance(got, str):
            written = getattr(event, "value", None) or "nothing, a list or settings"
            self.tree.report(place, "a key is not text", got=written, allowed="text", fix=fix)
            return None
        if got == "<<" and not event.style:
            self.tree.report(
                place,
                "merge keys are not allowed",
                got="<<",
                allowed="settings written out",
                fix="write the settings where they are used; every domain shares the recipe's sections anyway",
            )
            return None
        if got in before:
            first = self.tree.place((*keys, got))
            self.tree.report(
                place,
                f"the key `{got}` is given twice",
                got=f"first at {first.text}" if not self.fixed else got,
                allowed="every key once",
                fix="delete one of them",
            )
            return None
        self.tree.places[keys + (got,)] = place  # noqa: RUF005 (a star in a subscript needs Python 3.11)
        return got

    def skip(self, event: Any) -> None:
        """Passes over one whole value."""
        depth = 0
        while True:
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth == 0:
                return
            event = next(self.events)
            self.limit(event, depth)

    def refuse_reference(self, event: Any, keys: Keys | None) -> None:
        """Reports the first anchor or alias only: there is one reason for all of them."""
        if keys is not None and isinstance(event, yaml.AliasEvent):
            self.tree.broken.add(keys)
        if self.referenced:
            return
        self.referenced = True
        alias = isinstance(event, yaml.AliasEvent)
        self.tree.report(
            self.at(event.start_mark),
            "YAML anchors and aliases are not allowed",
            got=f"{'*' if alias else '&'}{event.anchor}",
            allowed="values written out",
            fix="write the value where it is used; text that starts with & or * goes in quotes",
        )

    def report_syntax(self, error: yaml.MarkedYAMLError) -> None:
        """Puts a parser's complaint in words a person can act on."""
        mark = error.problem_mark or error.context_mark
        context = error.context or ""
        if error.context_mark and ("quoted scalar" in context or "flow" in context):
            mark = error.context_mark
        number = mark.line if mark else 0
        lines = self.text.splitlines()
        if mark and number < len(lines):
            got = lines[number].strip()[:60] or "an empty line"
        else:
            got = "the end of the file"
        what, fix = self.explain(error, lines[number] if number < len(lines) else "")
        place = self.fixed or self.tree.line(number + 1)
        self.tree.report(place, what, got=got.expandtabs(1), allowed="valid YAML: `key: value` lines", fix=fix)

    @staticmethod
    def explain(error: yaml.MarkedYAMLError, line: str) -> tuple[str, str]:
        problem, context = error.problem or "", error.context or ""
        indent = line[: len(line) - len(line.lstrip())]
        value = re.sub(r"^[^:]*:\s+|^\s*-\s+", "", line)
        if "\t" in indent or "tab" in problem:
            return "a tab is used for indentation", "indent with spaces"
        if "escape" in problem:
            return "a backslash has a meaning between double quotes", "use single quotes, or double the backslash"
        if "quoted scalar" in context:
            return "a quotation mark is not closed", "close it, or double a ' that belongs to the text"
        pairs = {"{": "}", "[": "]"}
        unclosed = value[:1] in pairs and pairs[value[:1]] not in value
        if value[:1] and value[0] in "@`%{[*&" and not unclosed and not value.rstrip().endswith(("]", "}")):
            return f"a value starts with {value[0]}, which has a meaning in YAML", "put the value in quotes"
        if unclosed or "flow" in context:
            return "a bracket is not closed", "close it, or put the value in quotes"
        if "mapping values" in problem:
            fix = "indent keys of one section alike, and put a value that contains ': ' in quotes"
            return "a second `key:` stands where none can be", fix
        if "expected key" in problem or "block end" in problem:
            return "the indentation or a value does not fit the lines above", "indent keys of one section alike"
        return f"this is not YAML: {problem}", "write `key: value` lines"


class _Dumper(yaml.SafeDumper):
    """Quotes text that this reader, or a reader of YAML 1.1, would take for something else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML leaves some line separators as they are unless the text stands between double quotes.
    style = '"' if not text.isprintable() else None if isinstance(plain(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def dump(values: Any) -> str:
    """Values as YAML that `read_into` reads back equal: one entry a line, inner settings and lists in brackets."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def inline(value: Any) -> str:
    """One value as it can stand behind `key: `."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return str(text).removesuffix("...\n").strip()
