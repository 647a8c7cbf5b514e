"""`hfadapt work`: a worker's own end of a job."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import typer

from hfadapt.cli.ending import explained
from hfadapt.core.errors import RequestError
from hfadapt.core.json_lines import JsonLines
from hfadapt.core.progress import failure


def work_on(path: Path, tied: bool) -> None:
    """Does a job; what happens stands in the file of its events, and exit code 1 says that a cell failed.

    Args:
        tied: Stop when standard input is closed, which is when whoever has started this is gone.
    """
    if not path.exists():
        fix = "hfadapt run RECIPE --on local, which writes them"
        raise RequestError("there is no such job", place=str(path.absolute()), fix=fix)
    from hfadapt.pipeline.part import do_job

    if tied:
        threading.Thread(target=_stop_at_end, daemon=True).start()
    # Of another try at the same job something may stand there.
    with path.with_suffix(".jsonl").open("a", encoding="utf-8") as stream:
        lines = JsonLines(stream)
        try:
            done = do_job(path, lines)
        except Exception as error:
            lines.tell(failure(error, explained(error)[1]))
            raise
    if not done:
        raise typer.Exit(1)


def _stop_at_end() -> None:
    # Not by sys.stdin: a thread that waits in it aborts the interpreter when that ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
