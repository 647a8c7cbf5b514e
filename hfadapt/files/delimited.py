"""Rows of CSV and TSV as programs write them: any usual delimiter, `sep=` lines, spaces in the header, stray quotes."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hfadapt import files
from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, Rows, Unread
from hfadapt.files.opening import called, not_utf8, suffix, text_bytes

HEAD_CHARACTERS = 1 << 16
_DELIMITERS = ",;\t|"
_DELIMITER_NAMES = dict(zip(_DELIMITERS, ("commas", "semicolons", "tabs", "vertical bars"), strict=True))
_SEP = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
# A quotation mark after a backslash, inside a field.
_ESCAPED = re.compile(r'\\"(?!\s*(?:[,;\t|\r\n]|$))')
_RECENT = 512
MANY_LINES = 3
"""So many lines of a field that each have as many fields as the header are hardly text."""
TEXT_BYTES = 1 << 20
TABLE_LINES, NAME_WORDS = 3, 4
"""A plain text is a table from so many lines on, and the name of a column has at most so many words."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?", re.ASCII)


@dataclass(frozen=True)
class Dialect:
    """How the fields of a file are set apart; `rivals` could do that in some of its rows as well."""

    delimiter: str
    escape: str | None = None
    skip_spaces: bool = False
    skip_lines: int = 0
    rivals: str = ""

    def reader(self, lines: Iterable[str], strict: bool = False) -> Iterator[list[str]]:
        """Fields of records; where it is strict, csv.Error for text beside the quotation marks of a field."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            escapechar=self.escape,
            skipinitialspace=self.skip_spaces,
            strict=strict,
        )


def dialect_of(head: str, ending: str) -> Dialect:
    """The dialect of a file by its first lines.

    Args:
        head: The beginning of the file.
        ending: `.tsv` means tabs, where the header has any, and so does `.txt`.
    """
    said = _SEP.match(head)
    body = head[said.end() :] if said else head
    first = body.partition("\n")[0]
    tabs = ending in (".tsv", ".txt") and "\t" in first
    known = said[1] if said else "\t" if tabs else "".join(filter(first.__contains__, _DELIMITERS)) or ","
    escape = "\\" if _ESCAPED.search(body) and '""' not in body else None
    dialects = []
    for delimiter in known:
        spaced = body.count(f'{delimiter} "') > body.count(f'{delimiter}"')
        dialects.append(Dialect(delimiter, escape, spaced and delimiter != "\t", 1 if said else 0))
    if len(dialects) == 1:
        return dialects[0]
    lines = body.splitlines(keepends=True)[: -1 if len(head) >= HEAD_CHARACTERS else None]
    ranks = {each: (_evenness(each, lines), first.count(each.delimiter)) for each in dialects}
    best = max(ranks, key=lambda each: ranks[each])
    rivals = [each.delimiter for each, (even, _) in ranks.items() if even and each != best]
    return replace(best, rivals="".join(rivals))


def _evenness(dialect: Dialect, lines: Sequence[str]) -> float:
    """Share of the rows that have as many fields as the header, and more than one."""
    try:
        [width, *widths] = [len(fields) for fields in dialect.reader(lines) if fields]
    except csv.Error:
        return 0.0
    return widths.count(width) / len(widths) if widths and width > 1 else 0.0


def columns_in_text(path: Path, encoding: str | None = None) -> tuple[list[str], bool] | None:
    """The fields of the first line of a plain text that is a table with tabs, and whether they name columns.

    Every line has as many fields as the first, as far as the first MiB tells; a stray tab makes no table. The first
    line names columns where its fields are short, each different, and none is a number or a value of its column.
    """
    with text_bytes(path, encoding) as raw:
        head = raw.read(TEXT_BYTES)
    whole = head if len(head) < TEXT_BYTES else head[: head.rfind(b"\n")]
    rows = [line.split("\t") for line in whole.decode("utf-8", "replace").splitlines() if line.strip()]
    first = [name.strip() for name in rows[0]] if rows else []
    if len(rows) < TABLE_LINES or len(first) < 2 or any(len(row) != len(first) for row in rows):
        return None
    short = all(name and len(name.split()) <= NAME_WORDS and not _NUMBER.fullmatch(name) for name in first)
    values = [{row[place].strip() for row in rows[1:]} for place in range(len(first))]
    named = short and len({*first}) == len(first) and not any(a in b for a, b in zip(first, values, strict=True))
    return first, named


def header(path: Path, encoding: str | None = None) -> tuple[str, ...]:
    """The names of the columns. Raises DataError where the file is no CSV."""
    with text_bytes(path, encoding) as raw:
        _, names, _ = _begin(path, raw)
        return tuple(name for name in names if name)


def read(path: Path, encoding: str | None = None) -> Rows:
    """Rows by name of column; a line with a quotation mark that is opened and not closed takes no other with it."""
    with text_bytes(path, encoding) as raw:
        dialect, names, lines = _begin(path, raw)
        if not names:
            return
        if dialect.rivals:
            yield _doubt_delimiter(dialect)
        doubted: list[tuple[int, int]] = []
        for number, (fields, line, reason) in enumerate(_records(dialect, lines, len(names), doubted)):
            if number == 0 and len(fields) == len(names) + 1 and fields[0] in ("0", "1") and fields[-1]:
                # R writes the names of rows without a name above them.
                names = ["", *names]
            while len(fields) > len(names) and not fields[-1]:
                fields.pop()
            if reason:
                yield Unread(number, *reason, line)
            elif not fields:
                yield Unread(number, "empty", " is blank", line)
            elif len(names) > 1 and [field.strip() for field in fields] == names:
                yield Unread(number, "header-again", " is the header once more", line)
            elif len(fields) != len(names):
                detail = f" has {len(fields)} fields, the header {len(names)}"
                yield Unread(number, "wrong-fields", detail, line)
            elif any(not each.isascii() and any("\udc80" <= char <= "\udcff" for char in each) for each in fields):
                raw_line = dialect.delimiter.join(fields).encode("utf-8", "surrogateescape")
                yield Unread(number, "not-utf8", not_utf8(raw_line), line)
            else:
                yield Read(number, {name: value for name, value in zip(names, fields, strict=True) if name}, line)
        if doubted:
            count = sum(count for count, _ in doubted)
            places = ", ".join(f"line {line}" for _, line in doubted[:5]) + (" …" if len(doubted) > 5 else "")
            yield Doubt(
                "lines-like-rows",
                "lines inside of quoted fields look like rows of the table, and are read as text: "
                f"{count:,} in rows that begin at {places}; a stray quotation mark may have swallowed them",
                'write "" for a mark inside a quoted field, and quote fields that begin with one; nothing, if these '
                "lines are text",
            )


def _doubt_delimiter(dialect: Dialect) -> Doubt:
    own, other = (_DELIMITER_NAMES[each] for each in (dialect.delimiter, dialect.rivals[0]))
    found = f"fields are set apart by {own}, by which most rows fit the header; some fit it by {other}, too"
    return Doubt("delimiter", found, f"if {other} are meant, write the line sep={dialect.rivals[0]} above the header")


def _begin(path: Path, raw: IO[bytes]) -> tuple[Dialect, list[str], _Lines]:
    csv.field_size_limit(files.LINE_LIMIT_BYTES)
    # Bytes that are not UTF-8 come through as lone surrogates, so that only their own row is lost.
    text = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="")
    head = text.read(HEAD_CHARACTERS)
    start = head.lstrip()[:1]
    if start in ("{", "[") and re.match(r'\s*[{\[]\s*["{\[]', head):
        kind = ".jsonl" if re.match(r"\s*\{.*\}\s*(\n|$)", head) else ".json"
        raise DataError("the file is JSON, not CSV", place=str(path), fix=f"call it {called(path, kind)}")
    dialect = dialect_of(head, suffix(path))
    lines = _Lines(head, text, dialect.skip_lines)
    try:
        first = next((fields for fields in dialect.reader(lines) if any(fields)), [])
    except csv.Error as error:
        fix = "see that its first line has the names of the columns, and that each quotation mark is closed"
        raise DataError("the names of the columns cannot be read", place=str(path), got=str(error), fix=fix) from None
    lines.take()
    return dialect, distinct([name.strip().strip("\ufeff").strip() for name in first]), lines


def distinct(names: list[str]) -> list[str]:
    """Names that stand there several times, numbered: `text (1 of 2)` can be asked for, and none is taken unasked."""
    counts, seen = Counter(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]} of {counts[name]})" if name and counts[name] > 1 else name)
    return found


class _Lines:
    """Physical lines of a text, which can be given back."""

    def __init__(self, head: str, text: io.TextIOWrapper, skipped: int) -> None:
        self.number = 0
        self.ended = False
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._source = _joined(head, text)
        for _ in range(skipped):
            next(self)
        self.take()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.ended = True
        line = self._again.popleft() if self._again else next(self._source)
        self.ended = False
        self.number += 1
        self._taken.append(line)
        return line

    def take(self) -> list[str]:
        """The lines since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def put_back(self, lines: Sequence[str]) -> None:
        """Lets lines come again."""
        self.number -= len(lines)
        self._again.extendleft(reversed(lines))


def _joined(head: str, text: io.TextIOWrapper) -> Iterator[str]:
    """Lines of the head and of what follows, the one that the head cuts in two put together."""
    own = io.StringIO(head, newline="")
    for line in own:
        if own.tell() < len(head) or line.endswith("\n"):
            yield line
            continue
        more = text.readline()
        yield from (line, more) if line.endswith("\r") and more not in ("\n", "") else (line + more,)
    yield from text


def _records(
    dialect: Dialect, lines: _Lines, width: int, doubted: list[tuple[int, int]]
) -> Iterator[tuple[list[str], int, tuple[str, str] | None]]:
    """Fields of each record, the line where it begins, and why it cannot be used.

    Args:
        doubted: Gets the lines in fields that may be rows: how many, and where their row begins.
    """
    recent: deque[list[str]] = deque(maxlen=_RECENT)
    reader = dialect.reader(lines)
    while True:
        fault: str | None = None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields, fault = [], str(error)
        taken = lines.take()
        if fields is None and not taken:
            return
        first = lines.number - len(taken) + 1
        # A reader asks for more lines within a record only while a quotation mark is open.
        if lines.ended or (len(taken) > 1 and (fault or _swallowed(dialect, taken, width, recent))):
            lines.put_back(taken[1:])
            yield [], first, ("open-quote", " opens a quotation mark that is not closed")
            reader = dialect.reader(lines)
        elif fault:
            yield [], first, ("huge", f": {fault}")
        else:
            found = fields or []
            if len(taken) > 1 and len(found) == width and (count := _like_rows(dialect, taken, found, recent)):
                doubted.append((count, first))
            if len(found) == width:
                recent.append(found)
            yield found, first, None


def _swallowed(dialect: Dialect, taken: Sequence[str], width: int, recent: Collection[list[str]]) -> bool:
    """Whether a record of several lines took in rows that stand by themselves.

    They have as many fields as the header, and text follows the mark that closes the field, or their last fields are
    those of other rows. An empty one alone says nothing: lines of letters, such as "Best,", end in a comma.
    """
    inner = [fields for line in taken[1:-1] if (fields := next(dialect.reader([line]), []))]
    if width < 2 or not inner or any(len(fields) != width for fields in inner):
        return False
    try:
        list(dialect.reader(taken, strict=True))
    except csv.Error:
        return True
    pairs = zip(zip(*inner, strict=True), zip(*recent, strict=True), strict=False)
    columns = [({*values}, {*known}) for values, known in pairs]
    return bool(columns) and columns[-1][0] <= columns[-1][1] and any("" not in a and a <= b for a, b in columns)


def _like_rows(dialect: Dialect, taken: Sequence[str], found: Sequence[str], recent: Collection[list[str]]) -> int:
    """How many lines of a record with valid quotation marks may be rows all the same.

    All of them have as many fields as the header, and a column of them holds values of other rows or, like theirs,
    numbers; or they are many.
    """
    # The last line holds what follows the field, unless this is the last one.
    lines = taken[1:] if "\n" in found[-1] else taken[1:-1]
    inner = [fields for line in lines if (fields := next(dialect.reader([line]), []))]
    if len(found) < 2 or not inner or any(len(fields) != len(found) for fields in inner):
        return 0
    if len(inner) >= MANY_LINES:
        return len(inner)
    for values, known in zip(zip(*inner, strict=True), zip(*recent, strict=True), strict=False):
        if "" not in values and (set(values) <= set(known) or all(map(_NUMBER.fullmatch, (*values, *known)))):
            return len(inner)
    return 0
