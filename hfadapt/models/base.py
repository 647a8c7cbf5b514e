"""BaseRef: the base that a stage works on, which is the recipe's model or what an earlier stage has made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hfadapt.core.errors import RunError
from hfadapt.core.hashing import json_sha256, kept_sha256
from hfadapt.recipe.names import AUTO
from hfadapt.recipe.schema import Lock, LockedBase, Recipe
from hfadapt.records.stages import BaseRecord


@dataclass(frozen=True)
class BaseRef:
    """Which base, with which head and in which precision; `load_base` is the one way from here to a model.

    Args:
        model: As the recipe names it.
        task: Decides the head.
        quant, dtype: How the weights are held.
        seed: Of what the checkpoint does not hold, such as a new head.
        made: The base that a stage made out of `model`, where one did; its `folder` holds it.
        max_length: Of the examples that it will be given, where that is known.
    """

    model: str
    task: str
    quant: str
    dtype: str
    seed: int = 17
    made: LockedBase | None = None
    max_length: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> BaseRef:
        """The base of a recipe, or the one that a lock says was trained on."""
        made = recipe.base if isinstance(recipe, Lock) else None
        length = None if recipe.data.max_length == AUTO else recipe.data.max_length
        return cls(recipe.model, recipe.task, recipe.quant, recipe.dtype, recipe.train.seed, made, length)

    def __str__(self) -> str:
        return f"{self.model}, changed by {self.made.made_by}" if self.made else self.model

    @property
    def key(self) -> str:
        """Equal for bases with the same weights."""
        return f"{self.model}#{self.made.sha256}" if self.made else self.model

    @property
    def location(self) -> str:
        """What a library is to load: a folder, a Hub id, a sample or a GGUF file."""
        return self.made.folder if self.made else self.model

    @property
    def original(self) -> BaseRef:
        """The recipe's model, whatever was made of it."""
        return replace(self, made=None)

    def stored(self, quant: str, dtype: str) -> BaseRef:
        """The same weights in another precision."""
        return replace(self, quant=quant, dtype=dtype)

    def at(self, model: str | Path) -> BaseRef:
        """A base in another place, with the same head and precision."""
        return replace(self, model=str(model), made=None)

    def made_in(self, folder: Path) -> BaseRef:
        """The base that a stage has written into a folder. Raises RunError when there is none."""
        record = BaseRecord.read(folder / BaseRecord.FILE)
        change = {name: getattr(record, name) for name in ("made_by", "how", "sha256")}
        return replace(self, made=LockedBase(folder=str(folder), **change))


def weights_of(folder: Path) -> str:
    """Hash of all weight files of a base on disk."""
    return json_sha256({path.name: kept_sha256(path) for path in sorted(folder.glob("*.safetensors"))})


def made_here(folder: Path) -> BaseRecord | None:
    """What a folder says about the base in it, where a stage made that.

    Raises:
        RunError: its weights are not those that the stage wrote.
    """
    if not (folder / BaseRecord.FILE).is_file():
        return None
    record = BaseRecord.read(folder / BaseRecord.FILE)
    if (found := weights_of(folder)) != record.sha256:
        raise RunError(
            f"the base has been changed since the stage {record.made_by} made it",
            place=str(folder),
            got=f"sha256 {found[:16]}…",
            allowed=f"{record.sha256[:16]}…",
            fix="delete the cell's folder and run the recipe again",
        )
    return record
