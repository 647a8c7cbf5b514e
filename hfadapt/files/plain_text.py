"""Rows of plain text: a line each, or what lines plainly make together.

A file of brat beside it has its entities. The rest is told by the first MiB: a table with tabs, texts with lines of `%`
between them as of fortune, and paragraphs whose lines were broken to fit a width. What was not read line by line is
said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from hfadapt.core.errors import DataError
from hfadapt.files import Doubt, Read, Rows, Unread, delimited, lists
from hfadapt.files.opening import lines, text_bytes

HEAD_BYTES = 1 << 20
ANNOTATIONS = ".ann"
_ENTITY = re.compile(r"T\d+\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")
_PLACE = re.compile(r"(\d+) (\d+)")
SEPARATORS = ("%", "%%", "<|endoftext|>")
"""Lines that stand between texts and are no text."""
LEAST_SEPARATORS = 2
NARROW, WIDE = 40, 120
"""To a width between these are lines broken by people and programs."""
AS_WIDE = 0.98
"""The width: hardly a line is longer, but for addresses."""
LEAST_LINES, LEAST_PARAGRAPHS = 12, 3
LEAST_WORDS, ENDS = 4, (".", "!", "?", ":", ";")
FULL, SEEMING = 0.8, 0.5
"""Shares of lines that the first word below would have made too long: from which on they are put together, and said."""
_BROKEN = re.compile(r"\w-$")
_OTHERWISE = "to learn the lines themselves, put them into a file of another kind, such as JSON Lines with text"


def read(path: Path, encoding: str | None = None) -> Rows:
    """The rows, and what is to be said of how they are read."""
    if (layout := lists.layout_of(path, encoding)) is not None:
        known = ", ".join(layout.names)
        yield Doubt("text-as-list", f"read as a list of files, with {known} of each", "nothing")
        yield from lists.read(path, layout, encoding)
        return
    if (found := delimited.columns_in_text(path, encoding)) is not None:
        names, named = found
        each = f"every line has {len(names)} fields set apart by tabs"
        if named:
            detail = f"read as a table with the columns {', '.join(names)}, as {each}"
            yield Doubt("text-as-table", detail, "nothing; to learn the lines themselves, put them into another file")
            yield from delimited.read(path, encoding)
            return
        fix = "if it is a table, write a line with the names of its columns above it, such as text, a tab and label"
        yield Doubt("table-as-text", f"read as plain text, though {each}", fix)
    if (beside := entities_of(path)) is not None:
        yield Doubt("annotations-read", f"read with the entities of {beside.name}, a row for each line", "nothing")
        yield from _annotated(path, beside, encoding)
        return
    head = _head(path, encoding)
    if (separator := _separator(head)) is not None:
        detail = f"read as texts of several lines, with lines of {separator!r} between them"
        yield Doubt("text-divided", detail, f"nothing; {_OTHERWISE}")
        yield from _texts(lines(path, encoding), separator)
    elif (found_width := _width(head)) is not None:
        width, share = found_width
        if share < FULL or _paragraphs(head) < LEAST_PARAGRAPHS:
            detail = f"read line by line, though most lines seem to be broken at {width} letters, amid sentences"
            fix = "write each paragraph in one line, or put an empty line between paragraphs"
            yield Doubt("lines-broken", detail, fix if share >= FULL else fix.partition(",")[0])
            yield from _lines(path, encoding)
            return
        detail = f"read as paragraphs, whose lines were broken at {width} letters and are put together"
        yield Doubt("lines-joined", detail, f"nothing; {_OTHERWISE}")
        yield from _texts(lines(path, encoding), "", width)
    else:
        yield from _lines(path, encoding)


def _lines(path: Path, encoding: str | None) -> Rows:
    for item in lines(path, encoding):
        yield item if isinstance(item, Unread) else Read(item[0], {"text": item[1]}, item[0] + 1)


def entities_of(path: Path) -> Path | None:
    """The file that has the entities of a text, where there is one."""
    beside = path.with_suffix(ANNOTATIONS)
    return beside if path.suffix.lower() == ".txt" and beside.is_file() else None


def _annotated(path: Path, beside: Path, encoding: str | None) -> Rows:
    """Lines of a text with `spans`, the entities of a file of brat: `T1`, a tab, `PER 0 5`, a tab, the words.

    Raises:
        DataError: the words stand elsewhere in the text.
    """
    items = list(lines(path, encoding))
    text = "\n".join("" if isinstance(item, Unread) else item[1] for item in items)
    spans: list[tuple[int, int, str]] = []
    for found in (
        match for item in lines(beside, encoding) if not isinstance(item, Unread) if (match := _ENTITY.match(item[1]))
    ):
        places = [(int(start), int(end)) for start, end in _PLACE.findall(found[2])]
        there = " ".join(text[start:end] for start, end in places)
        if there.split() != found[3].split():
            what, fix = "the entities do not fit the text", f"get both files again; or take {beside.name} away"
            got = f"{found[0]!r}, where the text has {there[:60]!r}"
            raise DataError(what, place=str(beside), got=got, fix=fix)
        spans += [(start, end, found[1]) for start, end in places]
    begin = 0
    for number, item in enumerate(items):
        if isinstance(item, Unread):
            yield item
            begin += 1
            continue
        line, end = item[1], begin + len(item[1])
        # One that goes on in the next line ends here.
        own = [[start - begin, min(stop, end) - begin, label] for start, stop, label in spans if begin <= start < end]
        if line.strip():
            yield Read(number, {"text": line, "spans": own}, number + 1)
        begin = end + 1


def _head(path: Path, encoding: str | None) -> list[str]:
    """The first lines, less one that may be cut."""
    with text_bytes(path, encoding) as raw:
        head = raw.read(HEAD_BYTES)
    whole = head if len(head) < HEAD_BYTES else head[: head.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines()


def _separator(head: Sequence[str]) -> str | None:
    """The line that stands between texts, where there is one."""
    count = Counter(line.strip() for line in head)
    found = max(SEPARATORS, key=lambda each: count[each])
    return found if count[found] >= LEAST_SEPARATORS else None


def _width(head: Sequence[str]) -> tuple[int, float] | None:
    """The width to which lines were broken, and the share of lines that it explains; None where lines end for another
    reason, as sentences and records do."""
    filled = sorted(len(line.rstrip()) for line in head if line.strip())
    if len(filled) < LEAST_LINES:
        return None
    width = filled[min(int(AS_WIDE * len(filled)), len(filled) - 1)]
    pairs = [(one, other) for one, other in pairwise(head) if len(one.split()) >= LEAST_WORDS and other.strip()]
    if not NARROW <= width <= WIDE or len(pairs) < LEAST_LINES // 2:
        return None
    joined = "".join(one for one, _ in pairs)
    ending = sum(one.rstrip().endswith(ENDS) for one, _ in pairs)
    share = sum(_is_full(one, other, width) for one, other in pairs) / len(pairs)
    words = sum(map(str.isalpha, joined)) > len(joined) / 2
    return (width, share) if words and ending < len(pairs) / 2 and share >= SEEMING else None


def _is_full(line: str, below: str, width: int) -> bool:
    """Whether the next word would not have fitted."""
    return len(line.rstrip()) + 1 + len(below.split(maxsplit=1)[0]) > width


def _paragraphs(head: Iterable[str]) -> int:
    """How many runs of lines there are with empty ones between them."""
    last, count = False, 0
    for line in head:
        count += bool(line.strip()) and not last
        last = bool(line.strip())
    return count


def _texts(found: Iterable[tuple[int, str] | Unread], separator: str, width: int | None = None) -> Rows:
    """A row for what stands between two separators; a line that cannot be read is one of its own.

    Args:
        separator: The line, without white space around it.
        width: To which lines were broken, where these are put together.
    """
    for row, (number, own) in enumerate(_runs(found, separator)):
        if isinstance(own, Unread):
            yield Unread(row, own.reason, own.detail, own.line)
        else:
            yield Read(row, {"text": "\n".join(own).strip() if width is None else _joined(own, width)}, number + 1)


def _runs(found: Iterable[tuple[int, str] | Unread], separator: str) -> Iterator[tuple[int, list[str] | Unread]]:
    """Lines that belong together, with the number of the first; those without a word are left out."""
    start, own = 0, list[str]()
    for item in found:
        if isinstance(item, Unread):
            yield item.row, item
        elif item[1].strip() == separator:
            if own:
                yield start, own
            own = []
        elif own or item[1].strip():
            start = start if own else item[0]
            own.append(item[1])
    if own:
        yield start, own


def _joined(own: Sequence[str], width: int) -> str:
    """Lines in one, but where a line ends before it is full, as in verses and lists."""
    text = own[0].strip()
    for above, line in pairwise(own):
        full, word = _is_full(above, line, width), line.strip()
        text += ("" if _BROKEN.search(text) and word[:1].islower() else " ") + word if full else f"\n{word}"
    return text
