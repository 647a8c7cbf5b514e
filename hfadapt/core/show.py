"""How objects show themselves: one description, three views (terminal text, Markdown, HTML).

An object that wants to be shown returns blocks from `blocks()`; `Shown` turns them into what a terminal, a README or
a notebook displays. Numbers are given with their unit here and nowhere else.
"""

from __future__ import annotations

import base64
import html
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfadapt.core.commands import visible
from hfadapt.core.errors import HfadaptError

WIDTH = 100
"""Columns of text where there is no terminal to tell."""
GAP = "  "
LINE_BREAK = ("\n", "<br>")
MOST_WIDE = 12
"""Characters of double width in a word (Chinese, Japanese, Korean) up to which it is not broken, as a name is not."""
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_bytes(count: float | None) -> str:
    """1536 -> '1.5 KiB'; None -> 'not measured'."""
    if count is None:
        return "not measured"
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {BYTE_UNITS[unit]}" if unit == 0 or abs(value) >= 100 else f"{value:.1f} {BYTE_UNITS[unit]}"


def show_seconds(seconds: float | None) -> str:
    """75 -> '1 min 15 s'; None -> 'not measured'."""
    if seconds is None:
        return "not measured"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def show_latency(seconds: float | None) -> str:
    """0.0213 -> '21.3 ms'; 1.1 -> '1.1 s'."""
    if seconds is None:
        return "not measured"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def show_number(value: float | int | None, digits: int = 3) -> str:
    """A number for a table: integers with thousands separators, others with `digits` decimals."""
    if value is None:
        return "not measured"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}"


def show_count(count: int, one: str, several: str = "") -> str:
    """(1, 'row') -> '1 row'; (1234, 'row') -> '1,234 rows'.

    Args:
        several: The plural, where it is not made by an s.
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


@dataclass(frozen=True)
class Heading:
    """A title of depth 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` keeps it verbatim."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells that are already strings; `right` names the columns of figures, which are set flush right.

    A line break in a cell is kept. A table of nameless columns has no heading.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise HfadaptError(f"a table row has {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Picture:
    """A chart as SVG with its own style; only HTML shows it, so what it says has to stand in a table, too."""

    title: str
    svg: str


@dataclass(frozen=True)
class Tile:
    """A small picture with what is said of it; a line break is kept."""

    data: bytes
    media_type: str
    caption: str

    @property
    def source(self) -> str:
        """All of it as an address (RFC 2397)."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Sheet:
    """Small pictures side by side; only HTML shows them."""

    title: str
    tiles: Sequence[Tile]


Block = Heading | Text | Table | Picture | Sheet


def as_text(blocks: Sequence[Block], width: int | None = None) -> str:
    """Plain text for a terminal of `width` columns, by default those of this one (COLUMNS where it is set).

    Lines are broken at spaces only: code and words longer than the width stay whole, so that they can be copied.
    """
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            lines = wrapped(block.text, width)
            parts.append("\n".join([*lines, "=" * max(map(width_of, lines))] if block.level == 1 else lines))
        elif isinstance(block, Text):
            parts.append(visible(block.text) if block.code else "\n".join(wrapped(block.text, width)))
        elif isinstance(block, Table):
            parts.append(_text_table(block, width))
    return "\n\n".join(parts)


def _text_table(table: Table, width: int) -> str:
    """Columns side by side, or one below the other where not even their longest words fit into a line."""
    rows = [[visible(str(cell)) for cell in row] for row in table.rows]
    table = Table([*map(visible, table.columns)], rows, frozenset(map(visible, table.right)))
    widths = _widths(table, rows, width - len(GAP) * (len(table.columns) - 1))
    if widths is None:
        return "\n".join(line for n, row in enumerate(rows) for line in _stacked(table, row, width, n > 0))

    def lines(cells: Sequence[Sequence[str]]) -> list[str]:
        shown = []
        for n in range(max(map(len, cells))):
            parts = [cell[n] if n < len(cell) else "" for cell in cells]
            aligned = [
                flush(part, size, right=column in table.right)
                for part, size, column in zip(parts, widths, table.columns, strict=True)
            ]
            shown.append(GAP.join(aligned).rstrip())
        return shown

    body = []
    for row in rows:
        cells, below = [wrapped(cell, size) for cell, size in zip(row, widths, strict=True)], []
        if max(map(width_of, cells[-1])) > widths[-1]:
            below, cells[-1] = ["    " + line for line in wrapped(row[-1], width - 4)], [""]
        body += lines(cells) + below
    if not any(table.columns):
        return "\n".join(body)
    head = lines([_wrapped_heading(column, size) for column, size in zip(table.columns, widths, strict=True)])
    return "\n".join([*head, GAP.join("-" * size for size in widths), *body])


def _widths(table: Table, rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The width of each column, together at most `room`; None where the longest words need more.

    Figures are broken only where there is no other way, and addresses in the last column may need more: they get lines
    of their own. What is left over goes where the most text is for the width.
    """

    def longest(parts: Sequence[str]) -> int:
        return max(map(width_of, parts), default=0)

    headings = [longest(column.replace("-", "- ").split()) for column in table.columns]
    cells = [[line for row in rows for line in row[n].split("\n")] for n in range(len(table.columns))]
    content = [max(heading, longest(lines)) for heading, lines in zip(headings, cells, strict=True)]
    words = [max(heading, longest(_words(" ".join(lines)))) for heading, lines in zip(headings, cells, strict=True)]
    figures = [content[n] if column in table.right else words[n] for n, column in enumerate(table.columns)]
    short = max(headings[-1], longest([word for word in _words(" ".join(cells[-1])) if width_of(word) <= room // 3]))
    widths = next((least for least in (figures, words, [*words[:-1], short]) if sum(least) <= room), None)
    if widths is None:
        return None
    widths, left, area = list(widths), room - sum(widths), [sum(map(width_of, lines)) for lines in cells]
    while left and (growing := [n for n, size in enumerate(widths) if size < content[n]]):
        widths[max(growing, key=lambda n: area[n] / max(widths[n], 1))] += 1
        left -= 1
    for n, column in sorted(enumerate(table.columns), key=lambda pair: width_of(pair[1]) - widths[pair[0]]):
        # A heading in one line, where there is room for all of it.
        if 0 < (more := width_of(column) - widths[n]) <= left:
            widths[n], left = widths[n] + more, left - more
    return widths


def _stacked(table: Table, row: Sequence[str], width: int, more: bool) -> list[str]:
    """A row with a line for each of its columns, the first one flush left, after a blank line where it is not empty."""
    lines = [""] if more and row[0] else []
    for n, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
        indent = "  " if n else ""
        named = f"{column}: {cell}" if column else cell
        lines += [indent + line for line in wrapped(named, width - len(indent)) if cell]
    return lines


def _wrapped_heading(column: str, width: int) -> list[str]:
    """Like a cell, but also broken at hyphens."""
    if width_of(column) <= width:
        return [column]
    return [line.replace("- ", "-") for line in wrapped(column.replace("-", "- "), width)]


def flush(text: str, width: int, *, right: bool = False) -> str:
    """The text with spaces up to so many columns of a terminal, in which some characters take two or none."""
    spaces = " " * (width - width_of(text))
    return spaces + text if right else text + spaces


_SECOND = "\0"
"""Stands for the second column of a character, while lines are broken."""
_WIDE = re.compile(f".{_SECOND}|(?:(?!.{_SECOND}).)+", re.DOTALL)


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces, and between characters of double width where a word has many of them: it is a sentence.

    It counts characters, so a second one stands after those of double width.
    """

    def _split(self, text: str) -> list[str]:
        chunks = super()._split(text)
        parts = (_WIDE.findall(each) if each.count(_SECOND) > MOST_WIDE else [each] for each in chunks)
        return [part for each in parts for part in each]


def _doubled(text: str) -> str:
    return text if text.isascii() else "".join(c + _SECOND if width_of(c) > 1 else c for c in text)


def _words(text: str) -> list[str]:
    """What is not broken, where there is no other way."""
    split = _Wrapper(break_on_hyphens=False)._split
    return [part.replace(_SECOND, "") for word in text.split() for part in split(_doubled(word))]


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; each paragraph keeps its indent."""
    return [
        line.replace(_SECOND, "")
        for paragraph in visible(text).split("\n")
        for line in _Wrapper(
            width=max(width, 1),
            subsequent_indent=" " * (len(paragraph) - len(paragraph.lstrip())),
            break_on_hyphens=False,
            break_long_words=False,
        ).wrap(_doubled(paragraph))
        or [""]
    ]


def as_markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(f"```\n{block.text}\n```" if block.code else block.text)
        elif isinstance(block, Table):
            cells = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in block.rows]
            marks = ["---:" if column in block.right else "---" for column in block.columns]
            lines = ["| " + " | ".join(row) + " |" for row in [list(block.columns), marks, *cells]]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_html(blocks: Sequence[Block]) -> str:
    """An HTML fragment; every value is escaped."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, Text):
            tag = "pre" if block.code else "p"
            parts.append(f"<{tag}>{html.escape(block.text)}</{tag}>")
        elif isinstance(block, Picture):
            parts.append(f"<figure><figcaption>{html.escape(block.title)}</figcaption>{block.svg}</figure>")
        elif isinstance(block, Sheet):
            parts.append(_html_sheet(block))
        else:
            style = {column: ' style="text-align:right"' if column in block.right else "" for column in block.columns}
            # A heading without a word is none.
            cells = ((f"<th{style[c]}>{html.escape(c)}</th>" if c else "<td></td>") for c in block.columns)
            head = f"<thead><tr>{''.join(cells)}</tr></thead>" if any(block.columns) else ""
            body = "".join(
                "<tr>"
                + "".join(
                    f"<td{style[column]}>{html.escape(str(cell)).replace(*LINE_BREAK)}</td>"
                    for column, cell in zip(block.columns, row, strict=True)
                )
                + "</tr>"
                for row in block.rows
            )
            parts.append(f"<table>{head}<tbody>{body}</tbody></table>")
    return "\n".join(parts)


TILE_WIDTH = 200
"""Pixels that a picture and its caption take at most; spectrograms are twice as wide as they are high."""


def _html_sheet(sheet: Sheet) -> str:
    tiles = "".join(
        f'<figure style="margin:0;max-width:{TILE_WIDTH}px;font-size:12px;line-height:1.3;overflow-wrap:anywhere">'
        f'<img src="{tile.source}" alt="" style="max-width:100%;outline:1px solid #8884">'
        f"<figcaption>{html.escape(tile.caption).replace(*LINE_BREAK)}</figcaption>"
        "</figure>"
        for tile in sheet.tiles
    )
    title = f"<figcaption>{html.escape(sheet.title)}</figcaption>" if sheet.title else ""
    row = f'<div style="display:flex;flex-wrap:wrap;gap:10px;align-items:flex-end">{tiles}</div>'
    return f'<figure style="margin:0">{title}{row}</figure>'


class Shown:
    """Gives an object with `blocks()` its text, Markdown and HTML views, also in a notebook."""

    def blocks(self) -> list[Block]:
        """What to show, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.blocks())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # What IPython prints where there is no HTML.
        printer.text(as_text(self.blocks()))

    def _repr_markdown_(self) -> str:
        return as_markdown(self.blocks())

    def _repr_html_(self) -> str:
        return as_html(self.blocks())


def described(title: str, fields: Mapping[str, Any]) -> list[Block]:
    """A record as it stands: a table of its single values, and one for each list of like objects.

    Args:
        fields: As JSON has them; what is empty is left out.
    """
    kept = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    several = {name: value for name, value in kept.items() if isinstance(value, list) and isinstance(value[0], dict)}
    single = [[name, _as_cell(value)] for name, value in kept.items() if name not in several]
    shown: list[Block] = [Heading(title, 1), Table(["", ""], single)]
    for name, rows in several.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[_as_cell(row.get(column)) for column in columns] for row in rows]
        shown += [Heading(name, 2), Table(columns, cells)]
    return shown


def _as_cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_as_cell(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_as_cell, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


class View(Shown):
    """Blocks that show themselves."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = list(blocks)

    def blocks(self) -> list[Block]:
        """As they were given."""
        return self._blocks


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes; letters of Chinese, Japanese and Korean take two."""
    if text.isascii():
        return len(text)
    # Shells ask for completions at every key press: what they need has no time for this.
    from rich.cells import cell_len

    return cell_len(text)
