"""Plots of the report as SVG text: heat maps, intervals, dumbbells, reliability, dots on a log axis, bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hfadapt.report.svg import COLOURS, chart, label, legend, line, number, text, ticks

VERDICTS = {"better": "var(--good)", "worse": "var(--bad)", "open": "var(--open)"}


def heat_map(  # noqa: PLR0913 - parts of one chart
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    *,
    title: str,
    show: Callable[[float], str],
    notes: Mapping[tuple[str, str], str] | None = None,
    higher_is_better: bool = True,
    gains: Mapping[tuple[str, str], float] | None = None,
    corner: str = "",
) -> str:
    """Cells shaded by value, each with its number; an absent one is empty.

    Args:
        notes: A second line of a cell.
        gains: Shade by these instead: green above zero, red below.
        corner: What the rows are, over their names.
    """
    notes = notes or {}
    widest = max((abs(gain) for gain in gains.values()), default=0.0) if gains is not None else 0.0
    left = 20 + max((len(row) for row in [*rows, corner]), default=0) * 7.2
    wide, tall, top = max([110.0, *(len(column) * 7.2 + 18 for column in columns)]), 46.0, 30.0
    low, high = min(values.values(), default=0.0), max(values.values(), default=1.0)
    parts = [text(left + (n + 0.5) * wide, 18, column, "mid bold") for n, column in enumerate(columns)]
    parts += [text(left - 12, 18, corner, "end soft")] if corner else []
    for r, row in enumerate(rows):
        parts.append(text(left - 12, top + (r + 0.5) * tall + 4, row, "end"))
        for c, column in enumerate(columns):
            x, y = left + c * wide, top + r * tall
            value = values.get((row, column))
            if value is None:
                parts.append(text(x + wide / 2, y + tall / 2 + 4, "–", "mid soft"))
                continue
            share = (value - low) / (high - low) if high > low else 0.5
            share = share if higher_is_better else 1 - share
            colour = "var(--c0)"
            if gains is not None:
                gain = gains.get((row, column), 0.0)
                share = abs(gain) / widest if widest else 0.0
                colour = "var(--good)" if (gain > 0) == higher_is_better else "var(--bad)"
            parts.append(
                f'<rect x="{number(x + 1.5)}" y="{number(y + 1.5)}" width="{number(wide - 3)}" '
                f'height="{number(tall - 3)}" rx="5" style="fill:{colour};opacity:{0.1 + 0.45 * share:.2f}"/>'
            )
            note = notes.get((row, column), "")
            parts.append(text(x + wide / 2, y + tall / 2 + (0 if note else 5), show(value), "mid bold"))
            if note:
                parts.append(text(x + wide / 2, y + tall / 2 + 15, note, "mid note"))
    return chart(left + len(columns) * wide + 8, top + len(rows) * tall + 6, parts, title)


@dataclass(frozen=True)
class Line:
    """A value with its name before it and what is said behind it."""

    name: str
    value: float
    verdict: str
    shown: str


@dataclass(frozen=True)
class Effect(Line):
    """A difference with its interval; `other` is a second value to compare with."""

    low: float | None
    high: float | None
    other: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True)
class Move(Line):
    """From one value to another."""

    start: float | None


L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class _Lines(Generic[L]):
    """Lines below each other on one axis; `share` says how far along the axis a value is."""

    lines: Sequence[L]
    share: Callable[[float], float]
    wide: float = 380.0
    top: float = 12.0
    tall: float = 26.0

    @property
    def left(self) -> float:
        return 24 + max((len(one.name) for one in self.lines), default=0) * 7.0

    @property
    def bottom(self) -> float:
        return self.top + len(self.lines) * self.tall

    def at(self, value: float) -> float:
        return self.left + self.share(value) * self.wide

    def grid(self, values: Iterable[float], show: Callable[[float], str] = label) -> Iterator[str]:
        for value in values:
            x = self.at(value)
            yield line(x, self.top, x, self.bottom)
            yield text(x, self.bottom + 16, show(value), "soft mid")

    def chart(
        self, behind: Iterable[str], marks: Callable[[L, float, str], Iterable[str]], title: str, axis: str
    ) -> str:
        """All of it; `marks` draws what a line has beside its value, given its height and colour."""
        parts, right = list(behind), self.left + self.wide
        for n, one in enumerate(self.lines):
            y, colour = self.top + (n + 0.5) * self.tall, VERDICTS[one.verdict]
            parts += [text(self.left - 14, y + 4, one.name, "end"), *marks(one, y, colour)]
            parts.append(f'<circle cx="{number(self.at(one.value))}" cy="{number(y)}" r="5" style="fill:{colour}"/>')
            parts.append(text(right + 14, y + 4, one.shown))
        parts.append(text((self.left + right) / 2, self.bottom + 34, axis, "soft mid"))
        widest = max((len(one.shown) for one in self.lines), default=0) * 6.6
        return chart(right + 30 + widest, self.bottom + 42, parts, title)


def _interval(low: float, high: float, y: float, colour: str, width: int = 3) -> str:
    return (
        f'<line x1="{number(low)}" y1="{number(y)}" x2="{number(high)}" y2="{number(y)}" '
        f'style="stroke:{colour};stroke-width:{width};stroke-linecap:round;opacity:.55"/>'
    )


def forest(effects: Sequence[Effect], *, title: str, axis: str, reference: float = 0.0, wide: float = 210.0) -> str:
    """Values with intervals around a line at `reference`; the axis is `wide`."""
    ends = [reference, *(end for one in effects for end in (one.low, one.high, one.value) if end is not None)]
    ends += [end for one in effects for end in one.other or () if end is not None]
    low, high = min(ends), max(ends)
    room = (high - low) * 0.05 or 0.05
    low, high = low - room, high + room
    plot = _Lines(effects, lambda value: (value - low) / (high - low), wide, tall=30.0)

    def marks(one: Effect, y: float, colour: str) -> Iterator[str]:
        if one.other is not None:
            yield from _other(one.other, plot.at, y)
        if one.low is not None and one.high is not None:
            yield _interval(plot.at(one.low), plot.at(one.high), y, colour)

    middle = line(plot.at(reference), plot.top - 4, plot.at(reference), plot.bottom, "axis")
    return plot.chart([*plot.grid(ticks(low, high, round(wide / 55))), middle], marks, title, axis)


def _other(other: tuple[float, float | None, float | None], at: Callable[[float], float], y: float) -> list[str]:
    """A grey square with its interval, a little lower."""
    value, low, high = other
    parts = [_interval(at(low), at(high), y + 8, "var(--open)", 2)] if low is not None and high is not None else []
    parts.append(
        f'<rect x="{number(at(value) - 3.5)}" y="{number(y + 4.5)}" width="7" height="7" style="fill:var(--open)"/>'
    )
    return parts


def dumbbell(moves: Sequence[Move], *, title: str, axis: str) -> str:
    """Pairs of values on one axis: hollow where it starts, filled where it ends."""
    ends = [end for one in moves for end in (one.start, one.value) if end is not None] or [0.0, 1.0]
    room = (max(ends) - min(ends)) * 0.08 or 0.1
    low, high = min(ends) - room, max(ends) + room
    plot = _Lines(moves, lambda value: (value - low) / (high - low))

    def marks(one: Move, y: float, colour: str) -> Iterator[str]:
        if one.start is not None:
            yield _interval(plot.at(one.start), plot.at(one.value), y, colour)
            yield (
                f'<circle cx="{number(plot.at(one.start))}" cy="{number(y)}" r="4.5" '
                f'style="fill:var(--paper);stroke:{colour};stroke-width:2"/>'
            )

    return plot.chart(plot.grid(ticks(low, high, 5)), marks, title, axis)


def reliability(curves: Sequence[tuple[str, int, Sequence[tuple[float, float, int]]]], *, title: str) -> str:
    """Share that is right against confidence, with the line where both are equal.

    Args:
        curves: Name, colour and points (mean confidence, share right, rows); a point's area follows its rows.
    """
    # Two lines above it: the legend, and below it the name of the axis, which has no room beside long names.
    size, left, top = 230.0, 48.0, 46.0
    right, bottom = left + size, top + size

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, bottom - y * size

    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(value, value)
        parts += [line(left, y, right, y), line(x, top, x, bottom)]
        parts += [text(x, bottom + 17, label(value), "soft mid"), text(left - 8, y + 4, label(value), "soft end")]
    parts.append(
        f'<line x1="{number(left)}" y1="{number(bottom)}" x2="{number(right)}" y2="{number(top)}" class="axis" '
        'style="stroke-dasharray:4 4"/>'
    )
    for _, colour, points in curves:
        most = sum(rows for _, _, rows in points) or 1
        shade = f"var(--c{colour % COLOURS})"
        places = [at(x, y) for x, y, _ in points]
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in places)
        parts.append(f'<path d="{path}" style="fill:none;stroke:{shade};stroke-width:2;stroke-linejoin:round"/>')
        parts += [
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(2.5 + 9 * (rows / most) ** 0.5)}" '
            f'style="fill:{shade};opacity:.55"><title>{rows} rows</title></circle>'
            for (x, y), (_, _, rows) in zip(places, points, strict=True)
        ]
    parts += [text((left + right) / 2, bottom + 36, "mean confidence", "soft mid"), text(0, 32, "share right", "soft")]
    parts += legend([(name, f"var(--c{colour % COLOURS})") for name, colour, _ in curves], right + 8, 12)
    return chart(right + 16, bottom + 44, parts, title)


def log_dots(dots: Sequence[Line], *, limit: float, lowest: float, title: str, axis: str) -> str:
    """Values on a logarithmic axis with a line at the limit; smaller ones than `lowest` are drawn there."""
    low = math.log10(lowest)
    high = math.ceil(math.log10(max([limit, lowest * 10, *(one.value for one in dots)])) + 1e-9)
    plot = _Lines(dots, lambda value: (math.log10(max(value, lowest)) - low) / (high - low), top=28.0)
    powers = range(round(low), high + 1, max(1, (high - round(low)) // 4))
    behind = [*plot.grid((10.0**power for power in powers), "{:g}".format)]
    if limit > lowest:
        x = plot.at(limit)
        behind.append(
            f'<line x1="{number(x)}" y1="{number(plot.top - 6)}" x2="{number(x)}" y2="{number(plot.bottom)}" '
            'style="stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4"/>'
        )
        behind.append(text(x, plot.top - 11, f"limit {limit:g}", "mid soft"))
    return plot.chart(behind, lambda one, y, _: [line(plot.left, y, plot.at(one.value), y)], title, axis)


@dataclass(frozen=True)
class Bar:
    """One bar of a group, with the text at its end."""

    value: float
    shown: str
    colour: str


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    names: Sequence[tuple[str, str]],
    *,
    title: str,
    most: float | None = None,
    wide: float = 290.0,
) -> str:
    """Groups of horizontal bars on a common scale from zero.

    Args:
        names: Name and colour for the legend.
        most: The longest bar's value, where several charts share a scale.
        wide: Width of the longest bar.
    """
    left = 24 + max((len(name) for name, _ in groups), default=0) * 7.0
    right, top, thick = left + wide, 30.0 if names else 10.0, 13.0
    most = most or max((bar.value for _, group in groups for bar in group), default=0.0) or 1.0
    parts = legend(names, right + 80, 14)
    y = top
    for name, group in groups:
        parts.append(text(left - 14, y + len(group) * thick / 2 + 4, name, "end"))
        for bar in group:
            long = max(1.0, bar.value / most * (right - left))
            parts.append(
                f'<rect x="{number(left)}" y="{number(y)}" width="{number(long)}" height="{number(thick - 2)}" rx="2" '
                f'style="fill:{bar.colour}"/>'
            )
            parts.append(text(left + long + 6, y + thick - 3.5, bar.shown, "soft"))
            y += thick
        y += 9
    parts.append(line(left, top - 3, left, y - 6, "axis"))
    return chart(right + 96, y, parts, title)
