"""The environment in which LiteRT's converter lives: its packages do not go together with those of hfadapt.

It is made in the cache, once for each version of Python, torch and the converter, unless a variable names a Python
that has them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hfadapt.core import cache
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.hashing import json_sha256

VARIABLE = "HFADAPT_LITERT_PYTHON"
CONVERTER = ("litert-torch==0.10.0", "ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0")
WORKER = Path(__file__).with_name("_litert_worker.py")
SIZE, MINUTES = "2.1 GB", "5 to 10 minutes"
log = logging.getLogger(__name__)


def python() -> Path:
    """The Python that has the converter; its environment is made where there is none yet.

    Raises:
        RequestError: the variable names none.
        RunError: the environment cannot be made.
    """
    if asked := os.environ.get(VARIABLE):
        path = Path(asked).expanduser()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise RequestError(
                "no Python there for LiteRT's converter",
                place=VARIABLE,
                got=asked,
                allowed=f"a Python with {', '.join(CONVERTER)}",
                fix=f"unset {VARIABLE}: hfadapt makes an environment of its own",
            )
        return path
    needs = [f"torch=={version('torch').partition('+')[0]}", *CONVERTER]
    key = json_sha256([sys.version, sys.prefix, *needs])[:16]
    return _program(cache.made(cache.folder() / "litert" / key, lambda folder: _make(folder, needs)))


def _program(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make(folder: Path, needs: list[str]) -> None:
    """Installs the converter with the torch that made the graph, from where pip takes packages here."""
    log.warning(
        "making the environment of LiteRT's converter in %s, once: %s, about %s, with pip (%s names another Python)",
        cache.folder() / "litert", SIZE, MINUTES, VARIABLE,
    )  # fmt: skip
    _run([sys.executable, "-m", "venv", str(folder)], "the environment could not be made")
    install = [str(_program(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *needs]
    _run(install, "LiteRT's converter could not be installed", what=", ".join(needs))


def _run(command: list[str], fault: str, what: str = "python -m venv") -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = [line for line in done.stderr.splitlines() if "ERROR" in line or "rror:" in line]
        raise RunError(
            fault,
            place=what,
            got=(reason or done.stderr.strip().splitlines() or ["no reason"])[0],
            fix=f"check that pip works here, or set {VARIABLE} to the Python of an environment that has these packages",
        )


def convert(folder: Path, recipe: str | None, about: Mapping[str, str]) -> dict[str, Any]:
    """Has the worker make folder/model.tflite of the graph and the rows in a folder, and returns what it saw.

    Args:
        recipe: Name of a recipe of the quantiser; None for float32.
        about: What the file is to say of itself.

    Raises:
        RunError: the converter does not take the graph.
    """
    program = python()
    (folder / "job.json").write_text(json.dumps({"recipe": recipe, "about": dict(about)}), encoding="utf-8")
    started = time.monotonic()
    # Nothing of this process's packages may be found by the other Python.
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(program), str(WORKER), str(folder)], capture_output=True, text=True, env=plain, cwd=folder
    )
    if done.returncode != 0 or not (folder / "seen.json").exists():
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        # What an error is called stands before what its library adds.
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        said = (named or lines or [f"exit code {done.returncode}"])[-1]
        raise RunError(
            "LiteRT's converter does not take this model",
            place=str(program),
            got=said[:400],
            fix="export it as onnx or merged" if lines and "No module named" not in said else f"unset {VARIABLE}",
        )
    seen: dict[str, Any] = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return {**seen, "seconds": round(time.monotonic() - started, 1)}
