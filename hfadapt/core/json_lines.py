"""What happens in a run, for other programs: one JSON object a line (docs/events.md)."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from hfadapt.core.errors import RequestError
from hfadapt.core.progress import Event, Part, Progress

if TYPE_CHECKING:
    from types import TracebackType

SCHEMA = 1
"""Raised when a field goes or changes its meaning; new events and fields may come without."""


class JsonLines(Progress):
    """A Progress that writes every event as a line.

    Args:
        place: A file, which is written anew, or a stream.

    Raises:
        RequestError: the file cannot be written.
    """

    def __init__(self, place: Path | IO[str]) -> None:
        self.own = isinstance(place, Path)
        self.stream: IO[str] | None
        try:
            self.stream = place.open("w", encoding="utf-8") if isinstance(place, Path) else place
        except OSError as error:
            fix = "name a file in a folder that is there and may be written"
            raise RequestError("events cannot be written", place=str(place), got=error.strerror, fix=fix) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.own and self.stream is not None:
            with suppress(OSError):
                self.stream.close()

    def tell(self, event: Event) -> None:
        """Writes it at once; when nobody reads any more, or there is no room, the run goes on without."""
        if self.stream is None:
            return
        try:
            self.stream.write(as_line(event))
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = None


def as_line(event: Event) -> str:
    """The JSON object of an event, with its end of line. Numbers that are none, such as a loss of NaN, become null."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"schema": SCHEMA, "event": event.name, "time": now, **_plain(asdict(event))}) + "\n"


def from_line(line: str) -> Event | None:
    """The event that a line tells of, losses that are null as NaN; None for what is no event, or an unknown one."""
    try:
        told = json.loads(line)
        kind = {each.name: each for each in Event.__subclasses__()}[told["event"]]
        given = {each.name: told[each.name] for each in fields(kind) if each.name in told}
        if "parts" in given:
            parts = ({**part, "loss": _number(part["loss"])} for part in given["parts"])
            given["parts"] = [Part(**{each.name: part[each.name] for each in fields(Part)}) for part in parts]
        elif "loss" in given:
            given["loss"] = _number(given["loss"])
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except (ValueError, LookupError, TypeError):
        return None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
