"""How objects show themselves: one description, three views (terminal text, Markdown, HTML).

An object that wants to be shown returns blocks from `blocks()`; `Shown` turns them into what a terminal, a README or
a notebook displays. Numbers are given with their unit here and nowhere else.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from hfadapt.core.errors import HfadaptError

WIDTH = 100
"""Columns of a terminal that text is wrapped to, where a table says which of its columns may be."""
LINE_BREAK = ("\n", "<br>")
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
    """Rows of cells that are already strings; `right` names the columns set flush right.

    In text, the columns in `wrap` share what WIDTH leaves of a line; a line break in one of their cells is kept.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = field(default_factory=frozenset)
    wrap: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise HfadaptError(f"a table row has {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Picture:
    """A chart as SVG with its own style; only HTML shows it, so what it says has to stand in a table, too."""

    title: str
    svg: str


Block = Heading | Text | Table | Picture


def as_text(blocks: Sequence[Block]) -> str:
    """Plain text for a terminal of any width; tables are aligned with spaces."""
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(block.text if block.level > 1 else f"{block.text}\n{'=' * len(block.text)}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Table):
            parts.append(_text_table(block))
    return "\n\n".join(parts)


def _text_table(table: Table) -> str:
    widths = [max(len(str(row[i])) for row in [table.columns, *table.rows]) for i in range(len(table.columns))]
    flexible = [i for i, column in enumerate(table.columns) if column in table.wrap]
    if flexible:
        left = WIDTH - 2 * (len(widths) - 1) - sum(width for i, width in enumerate(widths) if i not in flexible)
        for count, i in zip(range(len(flexible), 0, -1), sorted(flexible, key=lambda i: widths[i]), strict=True):
            # The narrow ones keep what they need; the wide ones share the rest.
            widths[i] = max(12, len(table.columns[i]), min(widths[i], left // count))
            left -= widths[i]

    def line(cells: Sequence[str]) -> str:
        shown = [
            str(cell).rjust(width) if column in table.right else str(cell).ljust(width)
            for cell, width, column in zip(cells, widths, table.columns, strict=True)
        ]
        return "  ".join(shown).rstrip()

    def lines(cells: Sequence[str]) -> list[str]:
        parts = [_wrapped(str(cell), widths[i]) if i in flexible else [str(cell)] for i, cell in enumerate(cells)]
        return [line([part[n] if n < len(part) else "" for part in parts]) for n in range(max(map(len, parts)))]

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(table.columns), rule, *(text for row in table.rows for text in lines(row))])


def _wrapped(cell: str, width: int) -> list[str]:
    """Lines of at most `width` characters; each paragraph keeps its indent."""
    return [
        text
        for paragraph in cell.split("\n")
        for text in textwrap.wrap(
            paragraph,
            width,
            subsequent_indent=" " * (len(paragraph) - len(paragraph.lstrip())),
            break_on_hyphens=False,
            break_long_words=False,
        )
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
        else:
            style = {column: ' style="text-align:right"' if column in block.right else "" for column in block.columns}
            head = "".join(f"<th{style[column]}>{html.escape(column)}</th>" for column in block.columns)
            body = "".join(
                "<tr>"
                + "".join(
                    f"<td{style[column]}>{html.escape(str(cell)).replace(*LINE_BREAK)}</td>"
                    for column, cell in zip(block.columns, row, strict=True)
                )
                + "</tr>"
                for row in block.rows
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return "\n".join(parts)


class Shown:
    """Gives an object with `blocks()` its text, Markdown and HTML views, also in a notebook."""

    def blocks(self) -> list[Block]:
        """What to show, from top to bottom."""
        raise NotImplementedError

    def __str__(self) -> str:
        return as_text(self.blocks())

    def _repr_markdown_(self) -> str:
        return as_markdown(self.blocks())

    def _repr_html_(self) -> str:
        return as_html(self.blocks())
