"""What a model that is not trained says of each row: worked out once before step 1, and kept until training is done.

A resumed training reads it again, so a teacher is asked once and a reference is the model of the first start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hfadapt.core.errors import RunError
from hfadapt.core.hashing import json_sha256
from hfadapt.hardware.processes import World
from hfadapt.modalities import Example, Row
from hfadapt.objectives import Beginning, Objective

FOLDER = "known"
Answers = Sequence[Mapping[str, np.ndarray]]


def with_known(
    objective: Objective,
    beginning: Beginning,
    rows: Sequence[Row],
    examples: Sequence[Example],
    kept: tuple[Path, str],
    world: World,
    late: bool = False,
) -> list[Example]:
    """The examples with what is known of each.

    Args:
        rows: Those of the examples.
        kept: The file in which it is kept, and the hash of all that it depends on.
        late: The model that is to be asked has changed since, so that it has to be kept already.

    Raises:
        RunError: it is late, and it is not.
    """
    path, identity = kept
    if not examples:
        return []
    key = json_sha256([objective.name, identity, len(examples)])

    def write() -> None:
        if not _is_of(path, key):
            if late:
                raise RunError(
                    "training cannot go on: what the model said of its rows before step 1 is gone",
                    place=str(path),
                    fix="train again with --fresh",
                )
            with torch.no_grad():
                _save(answers.pop() if answers else objective.known(beginning, rows, examples), path, key)

    answers: list[Answers] = []
    if (
        objective.refers
        and beginning.base.shards is not None
        and world.on_main(lambda: not (late or _is_of(path, key)))
    ):
        # Its layers are gathered from all processes, so that all of them ask it.
        with torch.no_grad():
            answers.append(objective.known(beginning, rows, examples))
    world.on_main(write)
    return [replace(example, known=known) for example, known in zip(examples, _read(path), strict=True)]


def _save(answers: Answers, path: Path, key: str) -> None:
    """One array by name for all rows, and how much of it is each row's; the file appears whole."""
    from safetensors.numpy import save_file

    names = list(answers[0])
    arrays = {name: np.ascontiguousarray(np.concatenate([each[name] for each in answers])) for name in names}
    counts = {f"count.{name}": np.array([len(each[name]) for each in answers]) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = path.with_name(f".{path.name}.tmp")
    save_file({**arrays, **counts}, ready, metadata={"identity": key})
    ready.replace(path)


def _is_of(path: Path, key: str) -> bool:
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError), safe_open(path, "numpy") as file:
        return (file.metadata() or {}).get("identity") == key
    return False


def _read(path: Path) -> list[dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    found = load_file(path)
    parts: dict[str, list[np.ndarray]] = {
        name: np.split(array, np.cumsum(found[f"count.{name}"])[:-1])
        for name, array in found.items()
        if not name.startswith("count.")
    }
    rows = len(next(iter(parts.values())))
    return [{name: arrays[row] for name, arrays in parts.items()} for row in range(rows)]
