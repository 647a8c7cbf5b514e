"""Who is told how a command goes: people in the terminal, another program by JSON lines, or both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from hfadapt.cli.ending import Told, explained
from hfadapt.cli.terminal import Terminal, is_first
from hfadapt.core import stopping
from hfadapt.core.json_lines import JsonLines
from hfadapt.core.progress import Progress, Several, Silent, failure


@dataclass(frozen=True)
class Watch:
    """What `--quiet` and `--json-lines` say.

    Args:
        json_lines: A file, or `-` for standard error, on which nothing else is then written.
    """

    quiet: bool = False
    json_lines: Path | None = None

    @contextmanager
    def open(self) -> Iterator[tuple[Terminal, Progress]]:
        """The terminal, which shows the result, and whoever is to be told. An error is told as an event, too.

        Raises:
            Told: in place of an error that is on standard error as an event.
        """
        alone = str(self.json_lines) == "-"
        with ExitStack() as stack:
            terminal = stack.enter_context(Terminal(self.quiet))
            if self.json_lines is None:
                yield terminal, terminal
                return
            lines: Progress = Silent()
            if is_first():
                lines = stack.enter_context(JsonLines(sys.stderr if alone else self.json_lines))
            try:
                yield terminal, lines if alone else Several(terminal, lines)
            except typer.Exit:
                raise
            except KeyboardInterrupt:
                raise Told(stopping.exit_code()) if alone else KeyboardInterrupt from None
            except Exception as error:
                code, text = explained(error) if alone else (1, str(error))
                lines.tell(failure(error, text))
                if alone:
                    raise Told(code) from error
                raise
