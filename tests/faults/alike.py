"""Whether two runs have left the same, but for times and memory that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MEASURED = re.compile(
    r"seconds|(rows|tokens)_per_second|\w+_seconds|joules|carbon_grams|measured_peak_bytes|budget_bytes"
    r"|resumed_from_step|next_commands|how|(\w+_)?seconds_of_32|latency_ms"
)
"""Fields that no two runs share; `how` is of energy, with the seconds of processor time."""
FACT = re.compile(r"seconds|per_second|joules|carbon|peak_bytes|budget_bytes|resumed_from_step|of processor time")
"""Of pointers of the card's facts."""
NUMBERS = re.compile(r"[\d.,]+(e[+-]\d+)?( (s|ms|min|Wh|mWh|[KMG]iB)\b)*")
BY_CARD = ("README.md", ".html", ".md", ".svg")
"""Files made from the records and their times; only their words are compared."""


def left(run: Path) -> dict[str, Any]:
    """What lies in a run's folder, by its path there."""
    paths = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(run).as_posix(): _content(path) for path in paths}


def different(one: Path, other: Path) -> list[str]:
    """The files that differ, with the first difference of each."""
    first, second = left(one), left(other)
    found = [f"{name}: only in one" for name in sorted(first.keys() ^ second.keys())]
    for name in sorted(first.keys() & second.keys()):
        if first[name] != second[name]:
            found.append(f"{name}: {_difference(first[name], second[name])}")
    return found


def _content(path: Path) -> Any:
    if path.name == "card.json":
        card = _without(json.loads(path.read_text()))
        card["facts"] = [fact for fact in card["facts"] if not FACT.search(json.dumps(fact))]
        return card
    if path.name == "cell.json":
        state = json.loads(path.read_text())
        state["stages"].pop("card", None)  # over the facts with their times
        state["seconds"] = sorted(state["seconds"])  # which stages have been timed
        return state
    if path.name == "export.json":
        exported = _without(json.loads(path.read_text()))
        # They are compared themselves, less the times that some of them have.
        exported["files"] = [each["name"] for each in exported["files"]]
        return exported
    if path.suffix == ".json":
        return _without(json.loads(path.read_text()))
    if path.name == "metrics.jsonl":
        return [_without(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name.endswith(BY_CARD):
        return None
    return path.read_bytes()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(each) for name, each in value.items() if not MEASURED.fullmatch(name)}
    return [_without(each) for each in value] if isinstance(value, list) else value


def _difference(one: Any, other: Any, at: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                return _difference(one.get(name), other.get(name), f"{at}/{name}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                return _difference(a, b, f"{at}/{number}")
    return f"{at} {str(one)[:80]!r} and {str(other)[:80]!r}"
