"""How a command ends, whatever happens: with a message and an exit code, never with a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import typer

from hfadapt.core import stopping
from hfadapt.core.commands import visible
from hfadapt.core.errors import HfadaptError, RequestError, fault_of_machine, is_panic
from hfadapt.hardware.peak_memory import OneOfSeveral, is_out_of_memory


class Told(Exception):
    """The command ends with this code; why has been told already."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def ended(command: Callable[[], Any]) -> int:
    """Does what the command line says and returns the exit code: 0, 1, 2, 130 or 143."""
    # Threads that wait for each other by spinning lose most of their speed when another program wants a core; those
    # that sleep at once lose a quarter of it in small steps. These spin for a tenth of a millisecond.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal does not know is written as its code.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with stoppable():
        code = attempt(command)
        try:
            sys.stdout.flush()
        except OSError as error:
            # Nobody reads on, which is no fault; or what was printed has no room where it was sent.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = code or (1 if error.errno == errno.EPIPE else failed(error))
    return code


def attempt(command: Callable[[], Any]) -> int:
    """Tells what goes wrong on standard error and returns the exit code."""
    try:
        try:
            os.getcwd()
        except OSError:
            fix = "cd to a folder that is there, and run the command again"
            raise RequestError("the folder you are in is gone", allowed="one that exists", fix=fix) from None
        code = command()
    except HfadaptError as error:
        typer.echo(str(error), err=True)
        code = error.exit_code
    except Told as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = stopping.BY_USER
    except typer.Exit as done:
        code = done.exit_code
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        code = failed(error)
    if code == stopping.BY_USER:
        # Typer itself turns KeyboardInterrupt into this code.
        code = stopping.exit_code()
        typer.echo("interrupted; what was finished is kept, run the command again to go on", err=True)
    return code if isinstance(code, int) else 0


def failed(error: BaseException) -> int:
    """Tells what is wrong on standard error; a wrong command line is the user's (2)."""
    if hasattr(error, "format_message") and hasattr(error, "show"):
        error.show()
        return 2
    code, text = explained(error)
    typer.echo(visible(text), err=True)
    return code


def explained(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what is said of it: a full disk or a place that may not be used are the machine's
    (1); what hfadapt did not raise on purpose is a bug in it, kept in a file for a report."""
    if isinstance(error, HfadaptError):
        return error.exit_code, str(error)
    if fault := fault_of_machine(error):
        return 1, str(fault)
    if is_out_of_memory(error):
        if isinstance(error, OneOfSeveral):
            return 1, str(error)
        return 1, "out of memory\n  fix:     end other programs, or choose a smaller model or less data"
    kept = ""
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile("w", prefix="hfadapt-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
        kept = f"; details: {file.name}"
    return 1, f"{type(error).__name__}: {error}\n  this is a bug in hfadapt{kept}"


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 stop the program as Ctrl-C does: what is half done is noted, temporary files go."""

    def stop() -> None:
        raise KeyboardInterrupt

    stopping.forget()
    with stopping.handled(stop):
        yield
