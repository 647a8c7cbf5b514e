"""Finds the folders beside the package, `cards/` and `recipes/`, in a checkout or in an installed wheel."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from hfadapt.core.errors import RunError

SHARED = "share/hfadapt"
"""Where a wheel puts them, below the environment's data folder (pyproject: tool.setuptools.data-files)."""


def folder(name: str) -> Path:
    """The folder `cards` or `recipes`.

    Raises:
        RunError: neither a checkout nor an installed package holds it.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists() and (checkout / name).is_dir():
        return checkout / name
    try:
        installed = files("hfadapt") or []
    except PackageNotFoundError:
        installed = []
    found = [Path(str(file.locate())) for file in installed if f"{SHARED}/{name}/" in file.as_posix()]
    # `pip install --target` moves the folder after it has noted where it is.
    for path in [*(path.resolve().parent for path in found), checkout / SHARED / name]:
        if path.is_dir() and path.name == name:
            return path
    raise RunError(f"this installation lacks its {name}", place=name, fix="install hfadapt again")


def template(name: str) -> str:
    """The text of a file in `cards/`."""
    return (folder("cards") / name).read_text(encoding="utf-8")
