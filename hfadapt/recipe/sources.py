"""What a source in a recipe names: files here, a sample, or a data set of the Hub."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from hfadapt.files import is_there
from hfadapt.files.folders import suffixes
from hfadapt.files.opening import PACKED

SAMPLE = "sample:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
"""`name` or `owner/name`."""
MODEL_ID = re.compile(rf"{HUB_ID.pattern}(@[A-Za-z0-9][\w./-]*)?", re.ASCII)
"""The same, with a revision."""


def resolve_source(source: str, recipe_folder: Path) -> Path | None:
    """Where a source lies on this machine: beside the recipe first, then in the working directory.

    Args:
        source: A path, relative or not, `~` and glob patterns included.
        recipe_folder: Folder of the recipe file.

    Returns:
        The file or folder; for a glob that matches something the pattern with its folder, which `files.folders`
        spells out; None when there is nothing here, so that it may be a sample or a data set of the Hub.
    """
    if source.startswith(SAMPLE) or "\0" in source:
        return None
    path = expanded(source)
    for base in dict.fromkeys((recipe_folder, Path.cwd())):
        candidate = base / path
        if is_there(candidate) or (is_glob(source) and next(glob.iglob(str(candidate), recursive=True), None)):
            return candidate
    return None


def folder_of(recipe: Path) -> Path:
    """Where the files that a recipe names are looked for first: beside it, and not beside a link to it."""
    return (recipe.resolve() if recipe.is_symlink() else recipe).parent


def expanded(text: str) -> Path:
    """A path as it is written; `~` stands for a home folder where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def placed_model(model: str) -> str:
    """A local model by its full path, so that it is found from any folder; a sample or a Hub id unchanged."""
    path = expanded(model)
    return model if model.startswith(SAMPLE) or not is_there(path) else str(path.resolve())


def is_missing(model: str) -> bool:
    """Whether a model can only be a path on this machine, and is not there."""
    path = expanded(model)
    local = model.startswith((".", "/", "~")) or path.is_absolute() or path.suffix == ".gguf"
    return local and not is_there(path)


def near_model(model: str) -> str:
    """A local model in or below the working directory as seen from there; anything else unchanged."""
    path, here = Path(model), Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_absolute() and path.is_relative_to(here) else model


def from_recipe(model: str, recipe_folder: Path) -> str:
    """A relative path to a local model as seen from the recipe, whatever the working directory; else unchanged."""
    path = Path(model)
    if model.startswith((SAMPLE, "~")) or path.is_absolute() or not is_there(path):
        return model
    seen = os.path.relpath(path.resolve(), recipe_folder.resolve())
    return seen if seen.startswith("..") else f"./{seen}"


def found_model(model: str, folder: Path) -> str:
    """Where the local model that a lock names lies now; a sample or a Hub id unchanged.

    A project may be moved or copied with its runs: then the model stands at the end of its old path under one of the
    folders above the cell. Whether it is the same model, the adapter's manifest tells.

    Args:
        model: As the lock names it.
        folder: The cell's folder.

    Returns:
        The path of what is there; `model` where there is nothing.
    """
    path = expanded(model)
    if not model.startswith((".", "/", "~")) and not path.is_absolute():
        return model
    if path.is_absolute() and is_there(path):
        return model
    parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    for above in folder.resolve().parents:
        for first in range(len(parts)):
            candidate = above.joinpath(*parts[first:])
            if is_there(candidate / "config.json") or (candidate.suffix == ".gguf" and is_there(candidate)):
                return str(candidate)
    return placed_model(model)


def is_glob(source: str) -> bool:
    """Whether a source is a pattern for several files."""
    return any(mark in source for mark in "*?[")


def looks_local(source: str) -> bool:
    """Whether a source can only mean files on this machine, there or not."""
    return (
        source.startswith((".", "/", "~"))
        or is_glob(source)
        or "\\" in source
        or Path(source).suffix.lower() in (*suffixes(), *PACKED)
        or source.count("/") > 1
    )
