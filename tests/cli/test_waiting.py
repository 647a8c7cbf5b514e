"""A command that takes long says on a terminal what it is doing, and leaves nothing of it."""

from __future__ import annotations

import io
import time

import pytest

from hfadapt.cli import terminal
from hfadapt.cli.terminal import Console, waiting


def said(monkeypatch: pytest.MonkeyPatch, patience: float, *, is_terminal: bool) -> str:
    """All that was written while something took until a line stood there, or 0.2 s where none comes."""
    monkeypatch.setattr(terminal, "PATIENCE", patience)
    stream = io.StringIO()
    with waiting("planning", Console(file=stream, force_terminal=is_terminal)):
        end = time.monotonic() + (60 if is_terminal and patience < 1 else 0.2)
        while "planning" not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    return stream.getvalue()


def test_what_takes_long_is_said_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, 0.0, is_terminal=True)
    assert "planning" in text
    assert text.endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K")), repr(text[-40:])
    assert "\x1b[2K" in text.rpartition("planning")[2], "the line is taken away"


def test_what_is_soon_done_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, 1e6, is_terminal=True) == ""


def test_who_is_no_terminal_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(monkeypatch, 0.0, is_terminal=False) == ""


def test_an_error_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), waiting("planning", Console(file=io.StringIO(), force_terminal=True)):
        raise KeyError


@pytest.mark.parametrize("is_terminal", [True, False])
def test_steps_are_printed_and_a_terminal_says_which_of_them_goes_on(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    stream = io.StringIO()
    with waiting("looking", Console(file=stream, force_terminal=is_terminal)) as say:
        end = time.monotonic() + 60 * is_terminal
        while "looking" not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
        say("sending [3] files")
        while "sending [3] files …" not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert "sending [3] files\n" in stream.getvalue()
    assert ("sending [3] files …" in stream.getvalue()) is is_terminal
