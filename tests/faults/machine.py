"""A process that has imported everything and forks for each command: hfadapt as it is started from a shell, in the time
that its work takes, with a layer below it that counts its writes and can end or fail any of them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KILL = 0
"""In the place of an errno: the process is killed at that write."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Its exit code; of a signal -N, as of `subprocess`.
        writes: How many there were below its folder.
        seconds: From the signal, or else from the start, to the end.
    """

    code: int
    out: str
    err: str
    writes: int
    seconds: float


@dataclass
class Machine:
    """Runs commands one after the other. Started once; ends with the process that made it."""

    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(layer())}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        atexit.register(self.process.kill)

    def run(
        self,
        *words: Any,
        folder: Path,
        at: int = 0,
        fault: int = KILL,
        after: float | None = None,
        send: int = signal.SIGKILL,
        when: str = "",
        first: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """`hfadapt WORDS…` in a folder.

        Args:
            at: The number of the write at which the fault comes; 0 for none.
            fault: `KILL`, or the errno with which that write and all later ones that need room fail.
            after: Seconds after which `send` is sent.
            when: `send` is sent when standard error says this.
            first: Python that is done in the new process before the command.
            variables: Of its environment.
        """
        asked = {"words": [str(word) for word in words], "folder": str(folder), "at": at, "fault": fault}
        asked |= {"after": after, "send": int(send), "when": when, "first": first, "variables": dict(variables or {})}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that forks has ended"
        return Ended(**json.loads(answer))


@lru_cache
def machine() -> Machine:
    """The one of this process."""
    return Machine()


@lru_cache
def layer() -> Path:
    """The compiled layer. Raises subprocess.CalledProcessError or FileNotFoundError without a C compiler."""
    made = Path(tempfile.mkdtemp(prefix="hfadapt-layer-")) / "layer.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", made, HERE / "layer.c", "-ldl"], check=True)
    return made


# --- the process itself ----------------------------------------------------------------------------------------------


def serve() -> None:
    """Answers requests until there are no more."""
    load()
    os.environ.pop("LD_PRELOAD")
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), file=own, flush=True)


def load() -> None:
    """Imports what a run needs."""
    import importlib
    import pkgutil

    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch

    import hfadapt

    torch.set_num_threads(1)
    for found in pkgutil.walk_packages(hfadapt.__path__, "hfadapt."):
        if not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)


def _forked(asked: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out, err, writes = (Path(folder) / name for name in ("out", "err", "writes"))
        writes.write_bytes(bytes(8))
        child = os.fork()
        if child == 0:
            _command(asked, out, err, writes)
        started = time.monotonic()
        sent, status = False, 0
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            passed = time.monotonic() - started
            due = asked["after"] is not None and passed >= asked["after"]
            due = due or bool(asked["when"] and err.exists() and asked["when"] in err.read_text(errors="replace"))
            if due and not sent:
                os.kill(child, asked["send"])
                sent, started = True, time.monotonic()
            time.sleep(0.002)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read_text(errors="replace") if out.exists() else "",
            "err": err.read_text(errors="replace") if err.exists() else "",
            "writes": int.from_bytes(writes.read_bytes(), "little"),
            "seconds": time.monotonic() - started,
        }


def _command(asked: dict[str, Any], out: Path, err: Path, writes: Path) -> None:
    """In the forked process; does not return."""
    code = 1
    try:
        counter = os.open(writes, os.O_WRONLY)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.environ.update(asked["variables"])
        os.chdir(asked["folder"])
        sys.argv = ["hfadapt", *asked["words"]]
        from hfadapt.cli.app import main
        from hfadapt.hardware import peak_memory

        peak_memory.own_process = True
        exec(asked["first"], {})
        lib = ctypes.CDLL(None)
        lib.faults_counted.restype = ctypes.c_long
        lib.faults_arm(asked["folder"].encode(), ctypes.c_long(asked["at"]), asked["fault"])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        lib_count = lib.faults_counted()
        lib.faults_arm(b"", ctypes.c_long(0), 0)
        os.pwrite(counter, lib_count.to_bytes(8, "little"), 0)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
