"""Small charts as SVG text: the same numbers give the same bytes on every machine, and no library draws.

Colours are CSS classes, so that a page may set them; a chart that stands alone brings its own style, light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STYLE = """
.chart{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;--ink:#1f2430;--soft:#667085;
--line:#e3e6ec;--c0:#2f6fdb;--c1:#d9622b;--c2:#1c8a6a;--c3:#9357c9;--c4:#b8860b;--c5:#c2416b;--good:#1c8a6a;
--bad:#c93a3a;--open:#8a8f9c;--pale:#b9cdf3;--paper:#fff}
.chart text{fill:var(--ink)}.chart .soft{fill:var(--soft)}.chart .note{opacity:.78}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--soft);stroke-width:1}.chart .end{text-anchor:end}.chart .mid{text-anchor:middle}
.chart .bold{font-weight:600}
@media(prefers-color-scheme:dark){.chart{--ink:#e8eaf0;--soft:#98a1b3;--line:#2c3240;--c0:#7aa7ff;--c1:#ff9a66;
--c2:#5bcaa6;--c3:#c39bf0;--c4:#e0b84a;--c5:#f08aae;--good:#5bcaa6;--bad:#ff8080;--open:#8a93a6;--pale:#39507f;--paper:#1a1e27}}
""".strip()

COLOURS = 6


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * m for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}" if abs(value) >= 1e-12 else "0"


def text(x: float, y: float, content: str, kind: str = "", title: str = "") -> str:
    """A text element; `kind` are CSS classes."""
    mark = f' class="{kind}"' if kind else ""
    inner = html.escape(content) + (f"<title>{html.escape(title)}</title>" if title else "")
    return f'<text x="{number(x)}" y="{number(y)}"{mark}>{inner}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight line."""
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{kind}"/>'


def chart(width: float, height: float, parts: Sequence[str], title: str, *, alone: bool = False) -> str:
    """The whole picture; `alone` adds name space and style."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(width)}" height="{number(height)}" role="img">'
        if alone
        else f'<svg class="chart" viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" role="img">'
    )
    style = f"<style>{STYLE}</style>" if alone else ""
    return f"{head}<title>{html.escape(title)}</title>{style}{''.join(parts)}</svg>\n"


def alone(drawn: str) -> str:
    """A chart of a page, made ready for a place that has not its style, such as a notebook: with a paper of its own."""
    style = f"<style>{STYLE}.chart.alone{{background:var(--paper);padding:8px;border-radius:8px}}</style>"
    return drawn.replace("</title>", f"</title>{style}", 1).replace('class="chart"', 'class="chart alone"', 1)


@dataclass(frozen=True)
class Series:
    """Points joined by a line; `faint` draws it in the background, `dots` adds a circle at each point."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    faint: bool = False
    dots: bool = False


def line_chart(
    series: Sequence[Series], x_name: str, y_name: str, title: str, *, size: tuple[int, int] = (640, 260), alone: bool
) -> str:
    """Lines over a common x axis, with a legend of the named ones."""
    width, height = size
    shown = [one for one in series if one.points]
    xs = [x for one in shown for x, _ in one.points] or [0.0, 1.0]
    ys = [y for one in shown for _, y in one.points] or [0.0, 1.0]
    y_low, y_high = min(ys), max(ys)
    room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
    y_low, y_high = (max(0.0, y_low - room) if y_low >= 0 else y_low - room), y_high + room
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    left, right, top, bottom = 52, width - 16, 34, height - 40

    def x_at(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def y_at(value: float) -> float:
        return bottom - (value - y_low) / (y_high - y_low) * (bottom - top)

    parts = []
    for value in ticks(y_low, y_high):
        parts += [
            line(left, y_at(value), right, y_at(value)),
            text(left - 8, y_at(value) + 4, label(value), "soft end"),
        ]
    for value in ticks(x_low, x_high, 8):
        parts.append(text(x_at(value), bottom + 18, label(value), "soft mid"))
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts += [text((left + right) / 2, height - 6, x_name, "soft mid"), text(left, 14, y_name, "soft")]
    for one in shown:
        path = "M" + "L".join(f"{number(x_at(x))} {number(y_at(y))}" for x, y in one.points)
        colour = f"var(--c{one.colour % COLOURS})"
        style = f"fill:none;stroke:{colour};stroke-width:{1 if one.faint else 2};stroke-linejoin:round"
        parts.append(f'<path d="{path}" style="{style}{";opacity:.35" if one.faint else ""}"/>')
        if one.dots:
            parts += [
                f'<circle cx="{number(x_at(x))}" cy="{number(y_at(y))}" r="3.5" style="fill:{colour}"/>'
                for x, y in one.points
            ]
    parts += legend([(one.name, f"var(--c{one.colour % COLOURS})") for one in shown if one.name], right, 14)
    return chart(width, height, parts, title, alone=alone)


def legend(names: Sequence[tuple[str, str]], right: float, y: float) -> list[str]:
    """Names with a colour sample, flush right on one line; widths are guessed from the number of characters."""
    parts = []
    x = right
    for name, colour in reversed(names):
        x -= len(name) * 6.6
        parts.append(text(x, y, name))
        parts.append(
            f'<rect x="{number(x - 16)}" y="{number(y - 9)}" width="10" height="10" rx="2" style="fill:{colour}"/>'
        )
        x -= 30
    return parts


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each y as the mean of the last `window` ones."""
    found = []
    for n in range(len(points)):
        last = [y for _, y in points[max(0, n + 1 - window) : n + 1]]
        found.append((points[n][0], sum(last) / len(last)))
    return found


def loss_points(
    steps: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, training loss) and (step, validation loss) of the lines of metrics.jsonl."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(float(step["step"]), float(step[name])) for step in steps if step.get(name) is not None]

    return points("loss"), points("validation_loss")


def loss_chart(steps: Sequence[Mapping[str, Any]], *, small: bool = False) -> str:
    """Training loss of each step, its running mean, and the validation loss; a `small` one is for a page."""
    train, validation = loss_points(steps)
    window = max(1, len(train) // 20)
    series = [
        Series("", train, 0, faint=True),
        Series("training" if window == 1 else f"training (mean of {window})", smoothed(train, window), 0),
        Series("validation", validation, 1, dots=True),
    ]
    size = (380, 210) if small else (640, 260)
    name = "loss" if small else "loss (nats per label)"
    return line_chart(series, "optimizer step", name, "Loss by step", size=size, alone=not small)
