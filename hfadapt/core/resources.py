"""Files that come with hfadapt: tables in TOML, and templates."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@cache
def toml(path: Path) -> dict[str, Any]:
    """A TOML file, read once: not to be changed."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def templates(folder: Path, *, html: bool = False) -> jinja2.Environment:
    """Jinja for the templates of a folder: a name that is not there is an error. `html` escapes what is put in.

    One for all callers, since compiling a template takes longer than filling it in; a changed file is compiled anew.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
