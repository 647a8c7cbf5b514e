"""A run in a notebook: one display that is renewed in its place, readable on light and dark pages."""

from __future__ import annotations

import html
import sys
import time
from collections import deque
from importlib import import_module
from math import isfinite
from typing import Any

from hfadapt.core.progress import Event, Failed, Progress, RunFinished, Said, Silent, StageFinished, StageStarted
from hfadapt.core.show import show_seconds
from hfadapt.core.standing import Row, Standing, finished, table

EVERY = 0.5
"""Seconds between two renewals of a display, at least."""
MESSAGES = 200
"""Messages that are kept."""
WIDTH, HEIGHT = 120, 24


def progress_here() -> Progress:
    """The display of a notebook where this is one, else nobody."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:
        return Silent()
    # The notebook has it; hfadapt does without.
    return Notebook(import_module("IPython.display").display)


class Notebook(Progress):
    """A Progress for notebooks. Faults and the last words stay below it; other messages can be unfolded.

    Args:
        display: `IPython.display.display`.
    """

    def __init__(self, display: Any) -> None:
        self.standing = Standing()
        self.done: list[Row] = []
        self.messages: deque[str] = deque(maxlen=MESSAGES)
        self.failures: list[str] = []
        self.end = ""
        self._display, self._handle = display, None
        self._shown = float("-inf")

    def tell(self, event: Event) -> None:
        """Takes note of it, and renews the display from time to time."""
        at_once = isinstance(event, (StageStarted, StageFinished, Failed, RunFinished))
        if isinstance(event, StageFinished):
            rows = self.standing.of(event.cells)
            names = {row.called for row in rows}
            self.done = [row for row in self.done if row.called not in names or not row.total]
            self.done += finished(rows, event.seconds)
        elif isinstance(event, Said):
            self.messages.append(event.text)
        elif isinstance(event, Failed):
            self.failures.append(event.text)
        elif isinstance(event, RunFinished):
            self.end = f"{event.status} in {show_seconds(event.seconds)}"
            if event.status == "interrupted":
                self.end += "; run it again to go on"
        self.standing.tell(event)
        if at_once or time.monotonic() - self._shown >= EVERY:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        bundle = {"text/html": self.as_html(), "text/plain": self.as_text()}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def as_text(self) -> str:
        """The same where there is no HTML."""
        rows = table(self.done, WIDTH) if self.done else []
        lines = [*rows, *self.standing.lines(WIDTH), *self.failures, self.end]
        return "\n".join(line for line in lines if line)

    def as_html(self) -> str:
        """Rows with bars and curves; colours are those of the page."""
        rows = [*self.done, *self.standing.rows.values()]
        head = html.escape(" · ".join(filter(None, (self.standing.run, self.end))))
        body = "".join(_html_row(row) for row in rows)
        together = html.escape(
            "" if self.end else next(iter(self.standing.lines(WIDTH)[len(self.standing.rows) :]), "")
        )
        failed = "".join(f'<pre role="alert" style="{WRAPPED}">{html.escape(text)}</pre>' for text in self.failures)
        said = html.escape("\n".join(self.messages))
        more = f'<details><summary>messages</summary><pre style="{WRAPPED}">{said}</pre></details>' if said else ""
        return (
            f'<div style="color:inherit;background:transparent;max-width:60em"><b>{head}</b>'
            f'<table style="width:100%;color:inherit">{body}</table><div>{together}</div>{failed}{more}</div>'
        )


WRAPPED = "white-space:pre-wrap;color:inherit;background:transparent"


def _html_row(row: Row) -> str:
    name = html.escape(row.called)
    bar = f'<progress value="{row.step}" max="{row.total}" aria-label="{name}"></progress>' if row.total else ""
    loss = "" if row.loss is None else f"loss {row.loss:.4f}"
    check = "" if row.validation is None else f"validation {row.validation:.4f}"
    steps = f"{row.step}/{row.total}" if row.total else ""
    cells = (name, html.escape(row.title), bar, steps, curve(row.losses), loss, check)
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def curve(losses: list[float]) -> str:
    """A small curve of the loss as SVG, in the colour of the text; '' before there are two finite points."""
    points = [loss for loss in losses if isfinite(loss)]
    if len(points) < 2:
        return ""
    if len(points) > WIDTH:
        points = [points[place * len(points) // WIDTH] for place in range(WIDTH)]
    least, span = min(points), (max(points) - min(points)) or 1.0
    places = " ".join(
        f"{place * WIDTH / (len(points) - 1):.1f},{1 + (HEIGHT - 2) * (1 - (loss - least) / span):.1f}"
        for place, loss in enumerate(points)
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="loss"><polyline points="{places}" fill="none" '
        'stroke="currentColor" stroke-width="1.5"/></svg>'
    )
