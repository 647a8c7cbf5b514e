"""Errors that tell the user four things: where, what was found, what is allowed, how to fix it.

Exit codes: 1 a run or a gate failed, 2 the request was wrong, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the four parts every message has.

    Args:
        what: The fault in one short sentence, without a full stop.
        place: `file:line`, a path, or a dotted field name.
        got: What was found there.
        allowed: What would have been accepted.
        fix: The next thing to do.
    """

    what: str
    place: str | None = None
    got: str | None = None
    allowed: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.place}: {self.what}" if self.place else self.what]
        for name in ("got", "allowed", "fix"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"  {name + ':':9}{value}")
        return "\n".join(parts)


class HfadaptError(Exception):
    """Base of every error that hfadapt raises on purpose; the command line prints it without a traceback."""

    exit_code = 1
    status: Literal["failed", "does-not-fit"] = "failed"
    """What it makes of a cell."""

    def __init__(
        self,
        what: str,
        *,
        place: str | None = None,
        got: str | None = None,
        allowed: str | None = None,
        fix: str | None = None,
        problems: Iterable[Problem] = (),
    ) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(what, place, got, allowed, fix),)
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join([self.what, *(str(problem) for problem in self.problems)])


class RequestError(HfadaptError):
    """What was asked for is wrong or impossible; nothing has been started."""

    exit_code = 2


class RecipeError(RequestError):
    """The recipe is wrong; carries every problem found, not only the first."""


class DoesNotFit(RequestError):
    """A cell needs more memory than its target has."""

    status = "does-not-fit"


class DataError(RequestError):
    """The data cannot be used as asked; raised before any training step."""


class RunError(HfadaptError):
    """A stage failed after it had started; what was finished before is kept."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that a misspelt `name` most likely meant, or None."""
    known = {each.lower(): each for each in reversed(list(allowed))}
    matches = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return known[matches[0]] if matches else None


def choice_problem(what: str, got: str, allowed: Iterable[str], place: str | None = None) -> Problem:
    """A Problem for a value outside a fixed set, with the nearest valid name as its fix."""
    names = sorted(allowed)
    close = nearest(got, names)
    return Problem(
        what,
        place=place,
        got=repr(got),
        allowed=", ".join(names),
        fix=f"did you mean {close!r}?" if close else "use one of the allowed names",
    )
