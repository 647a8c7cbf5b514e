"""Where a fault is put in, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from machine import Ended, machine
from tiny import NO_CHECKS, labelled, make_models, recipe_fields, write_recipe, write_rows

from hfadapt.run_folder import Cell

TRAIN = {"batch_rows": 8, "micro_batch_rows": 8, "max_steps": 6, "checkpoint_every_steps": 2}
KILLED = """
import os, signal
from hfadapt.train import checkpoint
save = checkpoint.save
def last(folder, step, *others):
    path = save(folder, step, *others)
    if step >= 4: os.kill(os.getpid(), signal.SIGKILL)
    return path
checkpoint.save = last
"""
"""After the checkpoint of step 4 there is no more of the process."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Args:
        said: The line in which hfadapt names it.
        code: The exit code.
        kept: What was not lost, in a few words.
        wrong: What was not as it has to be; nothing where the fault was survived.
    """

    said: str
    code: int
    kept: str
    wrong: tuple[str, ...]


def judged(ended: Ended, *, code: int, says: str, kept: Mapping[str, bool], also: Sequence[Ended] = ()) -> Outcome:
    """The outcome of a command.

    Args:
        code: The exit code that it has to have.
        says: A part of the line that has to be there.
        kept: What must not be lost, and whether it was not.
        also: Commands after it, which have to succeed.
    """
    said = ended.err + ended.out
    line = next((line.strip() for line in said.splitlines() if says in line), "")
    wrong = [f"exit code {ended.code}, not {code}: {said[-800:]}"] if ended.code != code else []
    wrong += [] if line else [f"{says!r} is not said in {said[-800:]}"]
    wrong += [f"not kept: {what}" for what, is_kept in kept.items() if not is_kept]
    wrong += [f"then exit code {each.code}: {each.err[-800:]}" for each in also if each.code]
    wrong += ["a traceback" for each in (ended, *also) if "Traceback" in each.err or "bug in hfadapt" in each.err]
    return Outcome(line, ended.code, ", ".join(kept), tuple(wrong))


@dataclass(frozen=True)
class Fault:
    """One of the list.

    Args:
        number: As in the list.
        name: What goes wrong.
        to_do: What the user does.
        put: Puts it in.
        slow: It takes more than a few seconds.
    """

    number: int
    name: str
    to_do: str
    put: Callable[[Place], Outcome]
    slow: bool = False


class Shared:
    """What faults share: tiny models, and runs that are copied before they are spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def models(self) -> Path:
        """The tiny models."""
        make_models(self.folder / "models")
        return self.folder / "models"

    @cached_property
    def trained(self) -> Path:
        """A whole run."""
        return self._made("trained", "run")

    @cached_property
    def interrupted(self) -> Path:
        """A training that was killed after step 4 of 6, with checkpoints of steps 2 and 4."""
        return self._made("interrupted", "train", first=KILLED)

    def _made(self, name: str, command: str, **how: Any) -> Path:
        place = Place(self, self.folder / name)
        place.project()
        done = place.run(command, "tiny.yaml", **how)
        assert how or done.code == 0, done.err
        return place.folder


class Place:
    """A folder of its own for one fault."""

    def __init__(self, shared: Shared, folder: Path | None = None) -> None:
        self.shared = shared
        self.folder = folder or Path(tempfile.mkdtemp(dir=shared.folder))
        self.folder.mkdir(exist_ok=True)

    @property
    def models(self) -> Path:
        """The tiny models."""
        return self.shared.models

    def project(self, model: str = "encoder", task: str = "text-classification", rows: Any = None, **more: Any) -> None:
        """Rows and a recipe for one small run."""
        write_rows(self.folder / "one.jsonl", labelled(72) if rows is None else rows)
        domains = {"one": {"source": "one.jsonl", "license": "mit"}}
        fields = {"domains": domains, "train": TRAIN, "evaluate": {**NO_CHECKS, "resamples": 100}, **more}
        write_recipe(self.folder / "tiny.yaml", recipe_fields(self.models / model, task, **fields))

    def copy(self, of: Path) -> None:
        """A shared run, to be spoilt."""
        shutil.copytree(of, self.folder, dirs_exist_ok=True)

    def run(self, *words: Any, **how: Any) -> Ended:
        """`hfadapt WORDS…` here; `how` as `Machine.run`."""
        return machine().run(*words, folder=self.folder, **how)

    @property
    def cell(self) -> Cell:
        """The one cell."""
        return Cell(self.folder / "runs/tiny/one/this-machine")

    @property
    def checkpoints(self) -> list[str]:
        """Names of what lies in its checkpoints."""
        return sorted(path.name for path in (self.cell.folder / "checkpoints").iterdir())

    @property
    def as_uninterrupted(self) -> bool:
        """Whether the adapter is that of a run to which nothing happened, to the last bit."""
        name = "runs/tiny/one/this-machine/adapter/adapter_model.safetensors"
        mine = self.folder / name
        return mine.exists() and mine.read_bytes() == (self.shared.trained / name).read_bytes()
