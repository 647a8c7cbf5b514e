"""Checkpoints that are whole or not there.

Everything is written into a temporary folder, synced, listed with its sha256 in `manifest.json` (written last), and
renamed in one step. Reading walks from the newest to the oldest and takes the first whose hashes are right; none is
ever repaired or deleted because it is bad. Old ones go only after a new one is in place.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hfadapt.core.errors import RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.show import show_bytes
from hfadapt.plan.disk import KEPT

TENSORS, OPTIMIZER, STATE, MANIFEST = "adapter.safetensors", "optimizer.pt", "state.json", "manifest.json"


def require_room(folder: Path, needed: int) -> None:
    """Looks for room for all checkpoints that there will be at once, in bytes.

    Raises:
        RunError: there is less.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            "the disk has not enough room for the checkpoints of this training",
            place=str(folder),
            got=f"{show_bytes(free)} free",
            allowed=f"{show_bytes(needed)}: {KEPT + 1} of {show_bytes(needed // (KEPT + 1))}",
            fix="free some space and run the command again, or keep runs on another disk: --runs FOLDER",
        )


def save(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], optimizer: dict[str, Any], state: dict[str, Any]
) -> Path:
    """Writes `folder/step-NNNNNN`.

    Args:
        tensors: The trained parameters by name.
        optimizer: `state_dict` of the optimizer.
        state: JSON-serialisable rest, including what must be equal for a resume to be exact.

    Raises:
        RunError: there is not enough space; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        torch.save(optimizer, temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
        manifest = {name: file_sha256(temporary / name) for name in (TENSORS, OPTIMIZER, STATE)}
        (temporary / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        # A full disk is an OSError from Python, a RuntimeError from torch and a SafetensorError from safetensors.
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            "the checkpoint could not be written",
            place=str(final),
            got=str(error).splitlines()[0],
            fix="free some space and run the command again; it goes on from the last whole checkpoint",
        ) from None
    own = [path for path in sorted(folder.glob("step-*")) if path <= final]
    if len(own) >= KEPT:
        # Those of later steps were passed over, or are of another training.
        for other in {*folder.glob("step-*")} - {*own[-KEPT:]}:
            shutil.rmtree(other)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def latest(
    folder: Path, say: Callable[[str], None] = lambda _: None, identity: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]] | None:
    """(tensors, optimizer, state) of the newest whole checkpoint, or None.

    Args:
        say: Is told which were skipped and why.
        identity: That its state has to have, where one is given.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        if problem := _problem(path):
            say(f"checkpoint {path.name} skipped: {problem}")
            continue
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if identity is not None and state.get("identity") != identity:
            say(f"checkpoint {path.name} skipped: it belongs to another recipe, data or base")
            continue
        return load_file(path / TENSORS), torch.load(path / OPTIMIZER, weights_only=True), state
    return None


def _problem(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name in (TENSORS, OPTIMIZER, STATE):
            if file_sha256(path / name) != manifest[name]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError) as error:
        return f"incomplete ({type(error).__name__})"
    return None
