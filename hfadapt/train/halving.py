"""The tries of a search, narrowed down while they are trained on the same rows in the same order.

Side by side they share every step; one after the other they share the adapter too, which is set back for each. A try
that goes on is not begun anew. What is finished stands in a folder, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from hfadapt.core.errors import RunError
from hfadapt.core.spec import write_text
from hfadapt.plan.tries import Halving as Plan
from hfadapt.records.search import Try
from hfadapt.train.job import Job

if TYPE_CHECKING:
    from hfadapt.train.loop import Loop

FOLDER = "search"
STATE = "state.json"
CHANCE = 0.7
"""Nats of a label that was guessed between two. A head that starts trained may begin with next to no loss, beside which
every one is high."""
DIVERGED = 4.0
"""A try whose loss is so many times that of its first step, and of another try on the same rows, is out at once."""


@dataclass
class Halving:
    """Trains tries until one is left.

    Args:
        jobs: By the place of the try; those that are out already are missing.
        tries: The settings of all tries.
        plan: How far they go.
        folder: Where it stands is kept here.
        identity: Hash of all that must be unchanged for that to be used.
        start: The weights with which each try begins, where they share one adapter; None where each has its own.
        chosen: Called with the one that is left and its place, before it goes on.
    """

    jobs: Mapping[int, Job]
    tries: Sequence[Mapping[str, float]]
    plan: Plan
    folder: Path
    identity: str
    start: Path | None
    chosen: Callable[[Job, int], None]
    known: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = read_state(self.folder, self.identity) or {
            "identity": self.identity,
            "losses": [],
            "gone": {},
            "compared_seconds": 0.0,
        }

    @property
    def losses(self) -> list[dict[str, float]]:
        """After each rung that is done, the validation loss of each try that came so far, by its place."""
        found: list[dict[str, float]] = self.known["losses"]
        return found

    def record(self) -> tuple[Try, ...]:
        """What became of each try."""
        found = []
        for place, settings in enumerate(self.tries):
            losses = tuple(rung[str(place)] for rung in self.losses if str(place) in rung)
            gone = self.known["gone"].get(str(place)) or _standing(self.jobs[place])
            kept = {name: gone[name] for name in ("steps", "seconds", "failed")}
            found.append(Try(settings=dict(settings), losses=losses, **kept))
        return tuple(found)

    def share(self, first: Job) -> None:
        """Gives all tries the rows of one of them, with what the model said of them before step 1."""
        for job in self.jobs.values():
            job.train, job.validation = first.train, first.validation

    def spent(self, what: str) -> float:
        """Steps, seconds or tokens of the tries that were given up."""
        return sum(gone[what] for gone in self.known["gone"].values())

    # --- the search --------------------------------------------------------------------------------------------------

    def run(self, loop: Loop) -> Job:
        """The try that is left, as it goes on.

        Raises:
            RunError: none can be trained.
            KeyboardInterrupt: as `Loop.train`.
        """
        alive = {place: job for place, job in self.jobs.items() if str(place) not in self.known["gone"]}
        for number, (end, _) in enumerate(self.plan.rungs):
            if number < len(self.losses) or len(alive) == 1:
                continue
            for job in alive.values():
                job.pause = end
            losses = self._rung(loop, alive)
            later = self.plan.rungs[number + 1 :]
            alive = self._narrowed(loop, alive, losses, later[0][1] if later else 1)
        ((place, winner),) = alive.items()
        if self.start is not None:
            self._take_up(loop, winner)
        winner.pause = None
        loop.save([winner])
        if winner.settings.time is not None:
            spent = loop.agreed(self.spent("seconds") + winner.state.seconds + self.known["compared_seconds"])
            winner.end_in(winner.settings.time - spent)
        self.chosen(winner, place)
        return winner

    def diverged(self, loss: float, job: Job, others: Sequence[float]) -> None:
        """Raises RunError where a loss is far above that of the first step, and of others on the same rows."""
        best = min((other for other in others if math.isfinite(other)), default=math.inf)
        first = job.state.first_loss
        if first is not None and loss > DIVERGED * max(first, CHANCE, 0.0 if len(others) == 1 else best):
            raise RunError("the loss rises", place=job.title, got=f"{loss:.4g} in step {job.state.step + 1}")

    def _rung(self, loop: Loop, alive: Mapping[int, Job]) -> dict[str, float]:
        """Trains to the next comparison; the validation loss of each that came so far."""
        losses: dict[str, float] = {}
        for turn in [dict(alive)] if self.start is None else [{place: job} for place, job in alive.items()]:
            jobs = list(turn.values())
            if self.start is not None:
                self._take_up(loop, jobs[0])
            loop.jobs = jobs
            loop.train(jobs)
            started = time.perf_counter()
            for place, job in turn.items():
                if job.error is None and math.isfinite(loss := loop.validation_loss(job, self._compared(job))):
                    losses[str(place)] = loss
            self.known["compared_seconds"] += time.perf_counter() - started
            loop.save([job for job in jobs if job.error is None])
            if self.start is not None:
                del jobs[0].optimizer
        return losses

    def _compared(self, job: Job) -> Sequence[Any]:
        """Validation rows, spread over all of them where these are too many."""
        rows, count = job.validation, self.plan.check_rows
        return rows if count >= len(rows) else [rows[i * len(rows) // count] for i in range(count)]

    def _narrowed(self, loop: Loop, alive: Mapping[int, Job], losses: Mapping[str, float], keep: int) -> dict[int, Job]:
        """The best tries; the others are let go."""
        order = sorted(losses, key=lambda place: (losses[place], int(place)))
        if not order:
            errors = [job.error for job in alive.values() if job.error is not None]
            raise errors[-1] if errors else RunError("no try has a validation loss", fix="lower train.learning_rate")
        kept = {int(place): alive[int(place)] for place in order[:keep]}
        for place, job in alive.items():
            if place not in kept:
                self.known["gone"][str(place)] = _standing(job)
                job.__dict__.pop("optimizer", None)
        self.losses.append(dict(losses))
        if loop.accelerator.is_main_process:
            write_text(self.folder / STATE, json.dumps(self.known))
        loop.accelerator.wait_for_everyone()
        shown = ", ".join(f"{alive[int(place)].title} {losses[place]:.4f}" for place in order)
        loop.progress.say(f"validation loss after {max(job.state.step for job in kept.values()):,} steps: {shown}")
        if self.start is None:
            loop.jobs = list(kept.values())
        return kept

    def _take_up(self, loop: Loop, job: Job) -> None:
        """The one adapter gets the weights of a try, as they were left or as all begin."""
        assert self.start is not None
        start = load_file(self.start)
        with torch.no_grad():
            for name, parameter in job.parameters.items():
                parameter.copy_(start[name])
        loop.begin(job)
        if loop.passes.fast:
            loop.passes.fast.refresh()


def _standing(job: Job) -> dict[str, Any]:
    """What is kept of a try that is given up, or as it stands."""
    state, error = job.state, job.error
    return {
        "steps": state.step,
        "seconds": state.seconds,
        "tokens": state.tokens,
        "labelled_tokens": state.labelled_tokens,
        "failed": None if error is None else str(getattr(error, "what", error)),
    }


def read_state(folder: Path, identity: str) -> dict[str, Any] | None:
    """Where a search of that identity stands; None where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found["identity"] == identity else None
