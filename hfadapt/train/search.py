"""A cell whose settings are searched while it is trained: its tries on one base, and what is kept of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from hfadapt.core.progress import Progress
from hfadapt.hardware.processes import World
from hfadapt.modalities import Example
from hfadapt.models.attach import trainable
from hfadapt.plan.tries import halving
from hfadapt.recipe.schema import Lock
from hfadapt.records.search import SearchRecord, named_try
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.train.cells import Training, train_cells
from hfadapt.train.halving import FOLDER, Halving, read_state
from hfadapt.train.job import Job, share_of, steps_of
from hfadapt.train.sharing import learned_from
from hfadapt.train.smaller import with_less
from hfadapt.train.trial import CannotShare


def search_cell(
    cell: Cell, world: World, *, identity: str = "", start: Path | None = None, progress: Progress
) -> TrainRecord:
    """Trains a cell whose lock has a search; what is found stands in search.json, and in the lock, without the search.

    Raises:
        DataError, RunError, KeyboardInterrupt: as `train_cell`.
    """
    together = cell.lock.train.together

    def work() -> TrainRecord | None:
        nonlocal together
        if cell.lock.search is None:
            # Memory ran out after the choice, which stands.
            return train_cells([cell], world, identities=[identity], starts=[start], progress=progress)[0]
        training = SearchTraining(cell, world, identity, progress, together)
        training.starts = [start] * len(training.cells)
        try:
            return training.run()[0]
        except CannotShare as error:
            if not together or not training.alike:
                raise
            progress.say(f"the tries are trained one after the other: {error.what}")
        together = False
        return work()

    record = with_less([cell], world, progress, work)
    assert record is not None
    return record


class SearchTraining(Training):
    """The training of one cell with several tries at its beginning.

    Args:
        together: Each try has an adapter of its own, and all are trained side by side; else one after the other.
    """

    def __init__(self, cell: Cell, world: World, identity: str, progress: Progress, together: bool) -> None:
        self.folder, self.whole, self.began_with = cell.folder / FOLDER, cell.lock, learned_from(cell)
        assert self.whole.search is not None
        self.tries = list(self.whole.search.tries())
        gone = (read_state(self.folder, identity) or {"gone": {}})["gone"]
        self.places = [place for place in range(len(self.tries)) if str(place) not in gone]
        self.together = together and len(self.tries) > 1
        count = len(self.places) if self.together else 1
        super().__init__([cell] * count, world, [identity] * count, progress)
        self.locks = [with_settings(self.whole, self.tries[place]) for place in self.places[:count]]
        world.on_main(lambda: (cell.folder / SearchRecord.FILE).unlink(missing_ok=True))

    @property
    def alike(self) -> bool:
        """Whether all tries have adapters of one shape, so that one can be set back."""
        return len({with_settings(self.whole, settings).adapter for settings in self.tries}) == 1

    def _jobs(self, rows: Sequence[tuple[list[Example], list[Example]]]) -> list[Job]:
        """A job for each try; those that the loop begins with."""
        cell, identity, (train, validation) = self.cells[0], self.identities[0], rows[0]
        search = self.whole.search
        assert search is not None
        settings = self.whole.train
        steps = steps_of(settings, len(train))
        plan = halving(len(self.tries), steps, search.budget, len(validation), settings.batch_rows)
        assert plan is not None
        augmented = self._augmented(cell, self.whole, train)
        if augmented is not None:
            # All tries go through an epoch at the same time.
            augmented = lru_cache(maxsize=1)(augmented)
        jobs, start = {}, None if self.together else self._save_start(self.folder)
        for number, place in enumerate(self.places):
            own = with_settings(self.whole, self.tries[place])
            if plan.rungs:
                own = own.model_copy(
                    update={"train": own.train.model_copy(update=held(own, plan.last, plan.rungs[0][0], steps))}
                )
            name = self.names[number] if self.together else self.names[0]
            folder = self.folder / str(place)
            self.world.on_main(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]
            parameters = trainable(self.model, name if len(self.cells) > 1 else None)
            title = named_try(self.tries[place])
            names = (name, title, cell.name, title)
            jobs[place] = Job(own.train, train, validation, folder, identity, parameters, *names, augmented)
        self.halving = Halving(jobs, self.tries, plan, self.folder, identity, start, self._chosen)
        return list(jobs.values()) if self.together else [next(iter(jobs.values()))]

    def _chosen(self, job: Job, place: int) -> None:
        """One try is left: from here on it is the training of the cell, and nothing else is kept of the others."""
        cell = self.cells[0]
        lock = with_settings(self.whole, self.tries[place])
        lock = lock.model_copy(update={"train": job.settings, "search": None})
        job.title, job.trial = self.titles[0], ""
        record = self._record(job, place)

        def keep() -> None:
            for name in ("checkpoints", "metrics.jsonl"):
                old, new = cell.folder / name, job.folder / name
                shutil.rmtree(old, ignore_errors=True)
                old.unlink(missing_ok=True)
                if new.exists():
                    (shutil.copytree if new.is_dir() else shutil.copy)(new, old)
            cell.write(record)
            cell.save_lock(lock)
            shutil.rmtree(self.folder)

        self.world.on_main(keep)
        job.folder = cell.folder
        self.cells, self.locks = [cell], [lock]
        self.identities, self.starts = self.identities[:1], self.starts[:1]
        self.progress.say(f"{named_try(self.tries[place])} goes on")

    def _record(self, job: Job, place: int) -> SearchRecord:
        found, search = self.halving, self.whole.search
        assert found is not None
        assert search is not None
        return SearchRecord(
            domain=self.cells[0].domain,
            target=self.cells[0].target,
            budget=search.budget,
            together=self.together,
            rungs=tuple(end for end, _ in found.plan.rungs[: len(found.losses)]),
            tries=found.record(),
            chosen=place,
            validation_rows=found.plan.check_rows,
            training_steps=job.total_steps,
            further_steps=int(found.spent("steps")),
            further_seconds=found.spent("seconds"),
            further_tokens=int(found.spent("tokens")),
            further_labelled_tokens=int(found.spent("labelled_tokens")),
            compared_seconds=found.known["compared_seconds"],
            began_with=self.began_with,
        )


def with_settings(lock: Lock, settings: Mapping[str, float]) -> Lock:
    """The lock of a try; its alpha is twice a rank that is tried, unless that is tried too."""
    changes: dict[str, dict[str, float]] = {"train": {}, "adapter": {}}
    for place, value in settings.items():
        section, _, name = place.partition(".")
        changes[section][name] = value
    rank = changes["adapter"].get("rank")
    if rank is not None and "alpha" not in changes["adapter"]:
        # As the plan has it for the rank of the lock: what it is to alpha stays.
        changes["adapter"]["alpha"] = lock.adapter.alpha * rank / lock.adapter.rank
    return lock.model_copy(
        update={
            "train": lock.train.model_copy(update=changes["train"]),
            "adapter": lock.adapter.model_copy(update=changes["adapter"]),
        }
    )


def held(lock: Lock, until: int, first: int, steps: int) -> dict[str, float]:
    """Settings with which the rate is full from half of the way to the first comparison to the last comparison."""
    warmup = min(math.ceil(lock.train.warmup_ratio * steps), first // 2)
    until = max(until, round(lock.train.hold_ratio * steps))
    return {"warmup_ratio": share_of(warmup, steps), "hold_ratio": until / steps}
