"""Short trainings with and without changes of the training rows, all from the same start, scored on validation rows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hfadapt.core.hashing import json_sha256
from hfadapt.core.progress import Progress
from hfadapt.core.spec import write_text
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.hardware.processes import World, interruptible
from hfadapt.models.attach import trainable
from hfadapt.plan.augment import MOST_STEPS
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.schema import Lock
from hfadapt.run_folder import Cell
from hfadapt.train.batches import padded
from hfadapt.train.cells import Training
from hfadapt.train.job import Job, steps_of
from hfadapt.train.loop import Loop

FOLDER = "augment"


class AugmentTrial(Training):
    """A cell's base with its adapter as training begins with it, to be trained several times for a while.

    What is finished lies in a folder of the cell, so that an interrupted trial goes on where it was. `scores` are those
    of the last training.

    Args:
        start: The weights from which the adapter goes on (`models.attach.go_on`); None begins afresh.
        identity: Hash of all that must be unchanged for that.
    """

    def __init__(self, cell: Cell, world: World, start: Path | None, identity: str, progress: Progress) -> None:
        super().__init__([cell], world, [identity], progress)
        self.starts = [start]
        self.folder = cell.folder / FOLDER
        ((self.train_rows, self.validation_rows),) = self._load()
        self._try(self.train_rows[:2])
        self.steps = min(MOST_STEPS, steps_of(self.lock.train, len(self.train_rows)))
        self.start = self._save_start(self.folder)

    def seeds(self, number: int) -> tuple[int, int]:
        """Of the changes and of the training, in the run of this number: in the first one the recipe's own."""
        return self.lock.data.seed + number, self.lock.train.seed + number

    def losses(self, shares: Mapping[str, float], number: int) -> np.ndarray:
        """Trains with changes of rows; the loss of each validation row, and of how many labels: (N, 2).

        Args:
            shares: Of `data.augment`; none leave the rows as they are.
            number: Of the run; all runs of a number have the same seeds.

        Raises:
            RunError, KeyboardInterrupt: as `train_cell`.
        """
        own = _short(self.lock, shares, self.seeds(number), self.steps)
        folder = self.folder / json_sha256([dict(shares), number, self.identities[0]])[:12]
        kept = folder / "losses.json"
        if self.world.on_main(kept.exists):
            return np.array(json.loads(kept.read_text(encoding="utf-8")))
        words = "rows changed by " + ", ".join(shares) if shares else "rows as they are"
        self.progress.say(f"{self.cells[0].domain}, trial {number + 1}: {words}")
        self._restart()
        folder.mkdir(parents=True, exist_ok=True)
        changes = self._augmented(self.cells[0], own, self.train_rows)
        parameters = trainable(self.model)
        job = Job(own.train, self.train_rows, [], folder, self.identities[0], parameters, augmented=changes)
        job.cell, job.trial = self.cells[0].name, words
        with interruptible() as interrupt:
            about = ([own], self.base, self.model, [job], self.world, interrupt)
            Loop.in_run(*about, progress=self.progress).run()
        del job
        release_memory()
        found = self._scored()
        self.world.on_main(lambda: write_text(kept, json.dumps(found.tolist())))
        return found

    def close(self) -> None:
        """Takes the folder away."""
        self.world.on_main(lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def _restart(self) -> None:
        """The weights of the beginning."""
        start = load_file(self.start)
        with torch.no_grad():
            for name, parameter in trainable(self.model).items():
                parameter.copy_(start[name])

    def _scored(self) -> np.ndarray:
        def batches(examples: Any) -> Any:
            rows = 2 * self.lock.train.micro_batch_rows
            return padded(self.task, examples, self.base.pad_token_id, self.device, rows)

        with torch.inference_mode():
            self.scores = self.task.score(self.model.eval(), self.validation_rows, batches)
        return np.stack([self.scores.losses, self.scores.tokens], axis=1).astype(np.float64)


def _short(lock: Lock, shares: Mapping[str, float], seeds: tuple[int, int], steps: int) -> Lock:
    """The lock with which a short training is done: nothing is kept that only pays off in a long one."""
    fast = lock.train.fast.model_copy(update={"frozen_cache": False, "compile": False})
    changed = {"seed": seeds[1], "max_steps": steps, "time": None, "patience": None, "trackers": (), "fast": fast}
    data = lock.data.model_copy(update={"augment": Augment(**shares), "seed": seeds[0]})
    return lock.model_copy(update={"data": data, "train": lock.train.model_copy(update=changed)})


def loss_of(found: np.ndarray) -> float:
    """The mean loss per label of rows as `AugmentTrial.losses` gives them."""
    total, count = found.sum(axis=0)
    return float(total / count) if count else math.nan
