"""Errors that tell the user four things: where, what was found, what is allowed, how to fix it.

Exit codes: 1 a run or a gate failed, 2 the request was wrong, 130 interrupted, 143 stopped by the system.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from hfadapt.core.commands import visible


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
        return visible("\n".join(parts))


class HfadaptError(Exception):
    """Base of every error that hfadapt raises on purpose; the command line prints it without a traceback.

    Example:
        >>> from hfadapt import HfadaptError, target
        >>> try:
        ...     target("android-9gb")
        ... except HfadaptError as error:
        ...     print(error.problems[0].fix)
        did you mean 'android-8gb'?
    """

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
    """The recipe is wrong; carries every problem found, not only the first.

    Example:
        >>> from hfadapt import RecipeError, load_recipe
        >>> try:
        ...     load_recipe("sentiment.yaml", ["train.epohcs=1"])
        ... except RecipeError as error:
        ...     print(error.exit_code, error.problems[0].fix)
        2 ...epochs...
    """


class DoesNotFit(RequestError):
    """A cell needs more memory than its target has."""

    status = "does-not-fit"


class DataError(RequestError):
    """The data cannot be used as asked; raised before any training step."""


class RunError(HfadaptError):
    """A stage failed after it had started; what was finished before is kept."""


FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK = re.compile(r"no space left on device|os error 28|disk quota exceeded|PytorchStreamWriter failed", re.I)
"""What libraries say that write through code of their own."""
LOST_PROCESS = re.compile(
    r"gloo/transport|NCCL error|ncclRemoteError|Connection closed by peer|Broken pipe.*gloo", re.I
)
"""What those say that wait for a process which has ended."""
PANIC = "PanicException"
"""How libraries in Rust, such as tokenizers, end where they did not expect what they were given: no Exception."""
OF_PLACES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "this may not be read or written"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is needed"),
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "links lead round in a circle",
    errno.EIO: "the disk cannot be read or written",
    errno.ESTALE: "the file server has lost this",
}


def fault_of_machine(error: BaseException) -> RunError | None:
    """What is no fault of the program as a message: a full disk, a place that cannot be used, a library that gives up;
    None for the rest."""
    error = _first(error)
    said = " ".join(str(error).split())[:200]
    if is_panic(error):
        again = "see that tokenizer.json is the one of this base, and that no row is very long or very odd"
        return RunError("a library gave up on what it was given, most likely the tokenizer", got=said, fix=again)
    if getattr(error, "errno", None) in FULL or FULL_DISK.search(said):
        return RunError(
            "the disk is full",
            place=_place(error),
            got=said,
            fix="free some space and run the command again, or use another disk: --runs FOLDER for runs, HFADAPT_CACHE "
            "for the cache, HF_HOME for downloads, TMPDIR for temporary files",
        )
    if LOST_PROCESS.search(said):
        again = "see what it said, and start all of them again: they go on from the last checkpoint"
        what = "does not answer" if re.search(r"timed? ?out", said, re.I) else "has ended"
        return RunError(f"another process of this run {what}", got=said, fix=again)
    place = _place(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in said:
        more = "ulimit -n 4096, and run the command again"
        return RunError("no more files may be opened at once", place=place, got=said, fix=more)
    if isinstance(error, OSError) and error.errno in OF_PLACES and place:
        look = f"look at it (ls -ld {shlex.quote(place)}) and make it usable, or name another file or folder"
        return RunError(OF_PLACES[error.errno], place=place, got=error.strerror, fix=look)
    if isinstance(error, FileNotFoundError):
        again = "put it back, or see who may read it, and run the command again"
        return RunError("a file is not there, or may not be read", place=place, got=said, fix=again)
    return None


def _first(error: BaseException) -> BaseException:
    """Of all that a copy of a folder could not write, the first; other errors as they are."""
    if not isinstance(error, shutil.Error) or not isinstance(error.args[0], list):
        return error
    _, path, why = error.args[0][0]
    number = re.match(r"\[Errno (\d+)\]", str(why))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has given up, which Python does not take for an Exception."""
    return type(error).__name__ == PANIC


def _place(error: BaseException) -> str | None:
    named = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    return str(named) if named else None


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
