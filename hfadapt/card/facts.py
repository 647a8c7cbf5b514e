"""Facts: every value that a card shows, traced to a field of a record.

A template writes a value only by asking for it, and what it gets is marked; what is left without a mark must hold no
digit. So a number that no record knows cannot get into a card.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from hfadapt.core.errors import RunError
from hfadapt.core.secret_rules import EMAIL, KEY
from hfadapt.core.show import show_bytes, show_latency, show_number, show_seconds
from hfadapt.core.spec import reading
from hfadapt.recipe.sources import MODEL_ID, SAMPLE
from hfadapt.records.stages import CardFact
from hfadapt.run_folder import read_lock, read_rows, read_steps

How = Literal["value", "product", "ratio", "differing"]
BEGIN, END = "\x02", "\x03"
NOT_MEASURED = "not measured"
QUOTE_CHARACTERS = 160

REDACTED = (
    (KEY, "[secret]"),
    (re.compile(r"(?:https?://|www\.)\S+", re.I), "[link]"),
    (EMAIL, "[e-mail]"),
    (re.compile(r"(?<![\w/])(?:\w+\.)+(?:com|org|net|edu|gov|io|co|ly|de|uk|me|tv|info)(?:/\S*)?\b", re.I), "[link]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "[address]"),
    (re.compile(r"(?<!\w)\+?\(?\d[\d\s().-]{6,}\d(?!\w)"), "[number]"),
    (re.compile(r"(?<!\w)@\w+"), "[user]"),
)


def redact(text: str) -> str:
    """Replaces addresses, links, phone-like numbers, user names and keys."""
    for pattern, instead in REDACTED:
        text = pattern.sub(instead, text)
    return text


def shorten(text: str, limit: int = QUOTE_CHARACTERS) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def one_text(value: Any) -> str:
    """Text as it is, words with spaces between them."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def escape(text: str) -> str:
    """Text as it is in Markdown: no markup, no HTML, no table borders."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line)


def public_name(source: str) -> str:
    """A source or model without its place on a disk: samples and Hub ids as they are, of paths the last part."""
    if source.startswith(SAMPLE) or MODEL_ID.fullmatch(source):
        return source
    return source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _turns(messages: Sequence[dict[str, Any]]) -> str:
    """Chat messages before the last answer, as a Python literal."""
    kept = list(messages)
    while kept and kept[-1]["role"] == "assistant":
        kept.pop()
    return json.dumps([{"role": turn["role"], "content": redact(turn["content"])} for turn in kept], ensure_ascii=False)


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        # Sources: without the places in which they lie, and what is not said of them.
        said = ({name: own for name, own in each.items() if own is not None} for each in value)
        shown = ({**each, "source": public_name(each["source"])} if "source" in each else each for each in said)
        return "; ".join(", ".join(f"{name} {_setting(own)}" for name, own in each.items()) for each in shown)
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(str(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


FORMS: dict[str, Callable[[Any], str]] = {
    "text": lambda value: escape(str(value)),
    "code": lambda value: "`" + str(value).replace("`", "'") + "`",
    "public": lambda value: escape(public_name(str(value))),
    "setting": lambda value: "`" + " ".join(_setting(value).split()).replace("`", "'").replace("|", "\\|") + "`",
    "integer": lambda value: f"{round(value):,}",
    "decimal": lambda value: show_number(float(value)),
    "signed": lambda value: f"{value:+.3f}",
    "small": lambda value: f"{value:.2g}",
    "plain": lambda value: f"{value:g}",
    "short": lambda value: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}",
    "hash": lambda value: f"`{str(value)[:16]}`",
    "url": lambda value: re.sub(r"[^\w:/.?=&%~#+-]", "", str(value)),
    "share": lambda value: f"{value:.1%}".replace("%", " %"),
    "tiny-share": lambda value: f"{value * 100:.2g} %" if value < 0.01 else f"{value:.1%}".replace("%", " %"),
    "percent": lambda value: f"{value:.0%}".replace("%", " %"),
    "bytes": show_bytes,
    "seconds": show_seconds,
    "latency": show_latency,
    "watt-hours": lambda value: f"{value / 3600:.3g} Wh",
    "power": lambda value: re.sub(r"e\+0*(\d+)", r" × 10^\1", f"{value:.2e}"),
    "exact": lambda value: yaml.safe_dump(round(float(value), 6)).split("\n")[0],
    "quote": lambda value: escape(shorten(redact(html.unescape(one_text(value))))),
    "literal": lambda value: json.dumps(value if not isinstance(value, str) else redact(value), ensure_ascii=False),
    "words": lambda value: json.dumps([redact(word) for word in value], ensure_ascii=False),
    "start": lambda value: json.dumps(redact(" ".join(str(value).split()[:8])), ensure_ascii=False),
    "turns": _turns,
    "printed": lambda value: redact(str(value)).replace("```", "'''"),
}
QUOTING = frozenset({"quote", "literal", "words", "start", "turns", "printed"})
"""Forms that repeat what people wrote; such text is not the card's own."""


PRIVATE = QUOTING | {"public"}
"""Forms that leave something out, so that the raw value must not be kept beside them."""


def pointer(*parts: str | int) -> str:
    """A JSON Pointer (RFC 6901) such as `/confusion/a~1b/2`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _by_pointer(value: Any, path: str) -> Any:
    for part in path.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


class NoField(RunError, LookupError):
    """A record does not say what a card needs of it."""

    def __init__(self, record: Path, pointer: str) -> None:
        fix = "run the stage that writes it again: hfadapt run RECIPE --fresh"
        super().__init__("the record has no such field", place=str(record), got=pointer.strip("/"), fix=fix)


@dataclass
class Records:
    """The files of a cell as plain data, read once; `given` stands in for files."""

    folder: Path
    given: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Any:
        """The content of a record.

        Raises:
            RunError: the cell has no such file, or it cannot be read.
        """
        if name not in self.given:
            path = self.folder / name
            try:
                self.given[name] = _read(path)
            except FileNotFoundError:
                raise RunError(
                    f"the cell has no {name}", place=str(path), fix="run the stage that writes it: hfadapt run RECIPE"
                ) from None
        return self.given[name]

    def value(self, ref: str) -> Any:
        """The value at `FILE#/JSON/POINTER`. Raises NoField when there is no such field."""
        name, _, path = ref.partition("#")
        record = self.file(name)
        try:
            return _by_pointer(record, path)
        except (LookupError, TypeError, ValueError):
            raise NoField(self.folder / name, path) from None

    def has(self, name: str) -> bool:
        """Whether the cell has this file."""
        return name in self.given or (self.folder / name).exists()


def _read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return read_rows(path)
    if path.suffix == ".yaml":
        # The lock may leave out what is unset; the card shows every setting.
        return read_lock(path).model_dump(mode="json")
    if path.suffix == ".jsonl":
        return read_steps(path)
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def compute(records: Records, how: How, fields: Sequence[str], factor: int) -> Any:
    """The value of a fact, from the records. Raises LookupError when a field is missing."""
    values = [records.value(ref) for ref in fields]
    if how == "value":
        return values[0]
    if how == "differing":
        return _differing(records, fields[0], values[0])
    if any(value is None for value in values):
        return None
    if how == "ratio":
        return factor * values[0] / values[1] if values[1] else None
    return factor * math.prod(values)


def _differing(records: Records, ref: str, text: str) -> str:
    """A row's text without the words that every row of the file begins or ends with, which a template put there."""
    name, _, path = ref.partition("#")
    rows = [row[path.rsplit("/", 1)[-1]] for row in records.file(name)]
    start = re.sub(r"\S*$", "", _common_start(rows))
    end = re.sub(r"^\S*", "", _common_start([row[::-1] for row in rows])[::-1])
    return text[len(start) : len(text) - len(end)].strip() or text


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def shown(value: Any, form: str) -> str:
    """The text of a value."""
    if value is None:
        return "none" if form == "setting" else NOT_MEASURED
    return FORMS[form](value).replace(BEGIN, "").replace(END, "")


class Facts:
    """What a card shows. Calling it with a field gives the marked text and notes the fact."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._facts: dict[tuple[Any, ...], CardFact] = {}
        self._names: dict[str, int] = {}

    def __call__(self, ref: str | Sequence[str], form: str = "text", how: How = "value", factor: int = 1) -> str:
        """The marked text of a value.

        Raises:
            RunError: the value is NaN, infinite, or of another kind than its form.
            LookupError: no record has this field.
        """
        fields = (ref,) if isinstance(ref, str) else tuple(ref)
        key = (fields, form, how, factor)
        if key not in self._facts:
            try:
                value = compute(self.records, how, fields, factor)
                if isinstance(value, float) and not math.isfinite(value):
                    raise RunError("a record holds a value that is not a number", place=fields[0], got=str(value))
                text = shown(value, form)
            except (TypeError, ValueError, AttributeError) as error:
                kind = f"a value of another kind ({error})"
                fix = "run the stage that writes this record again: hfadapt run RECIPE --fresh"
                raise RunError(f"a record holds {kind}", place=fields[0], fix=fix) from None
            self._facts[key] = CardFact(
                id=self._name(fields, how),
                value=value if isinstance(value, (str, int, float, bool)) and form not in PRIVATE else None,
                fields=fields,
                how=how,
                factor=factor,
                form=form,
                shown=text,
            )
        return BEGIN + self._facts[key].shown + END

    def number(self, ref: str) -> float:
        """A finite Python float for the metadata, noted as a fact."""
        return float(self(ref, "exact").strip(BEGIN + END))

    @staticmethod
    def cited(text: str) -> str:
        """Marks a number that is part of a citation, such as a year."""
        return f"{BEGIN}{text}{END}"

    def all(self) -> tuple[CardFact, ...]:
        """The facts in the order in which the card shows them."""
        return tuple(self._facts.values())

    def _name(self, fields: Sequence[str], how: str) -> str:
        name, _, path = fields[0].partition("#")
        stem = re.sub(r"[^\w]+", ".", f"{name.rsplit('/', 1)[-1].split('.')[0]}{path}").strip(".")
        stem = stem if how == "value" else f"{how}.{stem}"
        self._names[stem] = self._names.get(stem, 0) + 1
        return stem if self._names[stem] == 1 else f"{stem}.{self._names[stem]}"


def without_marks(text: str) -> str:
    """The text as the reader sees it."""
    return text.replace(BEGIN, "").replace(END, "")


def untraced(text: str) -> list[str]:
    """Lines of a marked Markdown text that hold a digit without a mark, code blocks aside."""
    found, fenced = [], False
    for line in re.sub(f"{BEGIN}[^{END}]*{END}", "", text, flags=re.S).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and re.search(r"(?<![A-Za-z\d])\d", line):
            found.append(line.strip())
    return found
