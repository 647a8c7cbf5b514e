"""The Backend contract: where the jobs of a run are done. One file each, with an instance called `KIND`.

A job is a file in the run folder, `.jobs/NAME.json`. A backend starts `hfadapt work FILE` for it somewhere, with the
job's resources, and says when that has ended. What happens in a job its worker writes into `.jobs/NAME.jsonl`; from
there the command that has handed it out learns how it goes and how it ends, which is not the backend's affair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from hfadapt.records.job import Job

SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Left:
    """Jobs of an earlier command that go on without it.

    Args:
        there: The names of those that the scheduler has, in its queue or at work.
        gone: Of those that it no longer has; of some of them nobody has seen the end.
        end: What ends them, as a command.
    """

    there: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    end: str = ""


class Workers(Protocol):
    """The workers of one command, and those that an earlier one has left."""

    def submit(self, jobs: Mapping[Path, Job]) -> None:
        """Hands out jobs, by their files; may be called again while others are under way.

        Raises:
            RequestError: they cannot be handed out.
        """

    def ended(self) -> Mapping[str, str]:
        """The jobs whose workers have come to an end since this was asked last, with how they ended in a few words, ''
        where nothing is known. Called again and again.

        Raises:
            RequestError: none of the others can come to a good end either.
        """

    def stop(self) -> None:
        """Ends all workers so that they can save what they have; comes back when none is left."""

    def leave(self) -> bool:
        """The command is stopped by its user. Whether workers go on without it, until the same command follows them
        again; else they are to be stopped."""
        return False


class Backend:
    """Where jobs are done.

    Attributes:
        name: As in `--on NAME`, and the name of its file.
        seconds_between: How often it is asked which workers have ended.
    """

    name: ClassVar[str]
    seconds_between: ClassVar[float] = 0.2

    def check(self, address: str) -> None:
        """Looks, before anything is done, for what is missing.

        Args:
            address: What stands behind `--on NAME://`; '' where nothing does.

        Raises:
            RequestError: jobs cannot be handed out from here.
        """

    def left(self, folder: Path) -> Left:
        """What an earlier command has handed out from this folder of jobs and left to itself. Nothing where workers
        end with their command.

        Raises:
            RequestError: whether it goes on cannot be found out.
        """
        return Left()

    def open(self, address: str, folder: Path, say: Callable[[str], None]) -> Workers:
        """The workers of a command; those that were left are among them.

        Args:
            folder: Where the files of jobs are.
            say: Tells people.

        Raises:
            RequestError: the place at this address cannot be reached.
        """
        raise NotImplementedError


def command(path: Path, *, tied: bool = False) -> list[str]:
    """What does the job of this file.

    Args:
        tied: It stops when its standard input is closed: when whoever started it is no longer there.
    """
    return [sys.executable, "-m", "hfadapt", "work", str(path), *["--tied"] * tied]


def log_of(path: Path) -> Path:
    """Where the worker of a job's file says what is no event."""
    return path.with_suffix(".log")


def last_words(path: Path, most: int = 300) -> str:
    """The end of what the worker of a job's file has said, on one line."""
    try:
        text = log_of(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return " ".join(text.split())[-most:]


def settings() -> dict[str, str]:
    """Variables of this process that a worker elsewhere goes by; secrets stay here."""
    named = {name: value for name, value in os.environ.items() if name.startswith(("HFADAPT_", "HF_", "OMP_WAIT"))}
    named |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {name: value for name, value in named.items() if not any(word in name for word in SECRETS)}


def how(code: int | None) -> str:
    """How a process ended, in words."""
    import signal

    if code is None:
        return ""
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number:
        try:
            return f"ended by {signal.Signals(number).name}"
        except ValueError:
            return f"ended by signal {number}"
    return f"exit code {code}" if code else ""


def divided(jobs: Sequence[Job], cores: int, memory_bytes: int, devices: int) -> int:
    """How many of these jobs can be done at the same time on one machine, at least one.

    Args:
        devices: GPUs; jobs that want one share them out, one each. Without any, all is done on the cores.
    """
    wanting = devices and any(job.resources.gpus for job in jobs)
    most = devices if wanting else cores
    room = memory_bytes // max(job.resources.memory_bytes for job in jobs)
    return max(1, min(len(jobs), most, room))
