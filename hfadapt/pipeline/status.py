"""Status: what is done of every cell, by the hashes of its stages, and what is written down about it in cell.json."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfadapt import quants
from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import show_bytes
from hfadapt.plan.make import make_plan
from hfadapt.recipe.schema import Lock
from hfadapt.records.plan import Plan
from hfadapt.records.stages import DataRecord, StageError
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Stage


class Status:
    """The cells of a run as they stand; used in the main process alone.

    Args:
        context: Recipe and folders.
        stages: Those that are to be done.
        fresh: Start the cells over.
    """

    def __init__(self, context: Context, stages: Sequence[Stage], fresh: bool = False) -> None:
        self.context, self.stages, self.fresh = context, stages, fresh
        self._begun: set[Cell] = set()

    def _hash(self, cell: Cell, stage: Stage) -> str:
        """Of a cell that is not to be done now, the earlier stages are taken as they are."""
        asked = cell in self.context.cells
        known = {} if asked else {name: kept for name, kept in cell.state.stages.items() if name != stage.name}
        return self.context.hashes(cell, known)[stage.name]

    def is_done(self, cell: Cell, stage: Stage, cells: Sequence[Cell] = ()) -> bool:
        """Whether a stage was done with these inputs, and what it wrote for all of `cells` is there."""
        kept = cell.state.stages.get(stage.name)
        return kept == self._hash(cell, stage) and stage.intact(cells or [cell], self.context)

    def may_begin(self, cell: Cell, stage: Stage) -> bool:
        """Whether what the stage needs has been done."""
        return all(name in cell.state.stages for name in stage.needs)

    def start(self, cell: Cell) -> bool:
        """Makes the folder; an earlier result that something else was asked for is kept aside, not overwritten.

        Returns:
            Whether all is done already.
        """
        if cell in self._begun:
            return False
        state, name = cell.state, f"{cell.domain} on {cell.target}"
        self._begun.add(cell)
        phases = {stage.name: stage.phases for stage in self.context.stages}.get(state.running or "", ())
        if phases:
            # Neither done nor failed nor interrupted: the process was killed, mostly for lack of memory.
            words = f"the previous run was killed during {state.running}, probably out of memory"
            self.context.progress.say(f"{name}: {words}{memory_advice(cell, phases)}")
        hashes = self.context.hashes(cell)
        changed = [
            state.stages[stage.name]
            for stage in self.context.stages
            if stage.keeps_earlier and state.stages.get(stage.name, hashes[stage.name]) != hashes[stage.name]
        ]
        if self.fresh and cell.folder.exists():
            shutil.rmtree(cell.folder)
        elif changed:
            kept = self._kept(cell, changed[0])
            cell.folder.rename(kept)
            self.context.progress.say(f"{name}: recipe or data changed; earlier result kept in {kept}")
        cell.folder.mkdir(parents=True, exist_ok=True)
        again = {each.name for each in self.context.stages if each.scope != "run" and not self.is_done(cell, each)}
        self._say_lost(cell, [each for each in self.context.stages if each.name in again], hashes)
        if again.isdisjoint(stage.name for stage in self.stages):
            self.context.progress.say(f"{name}: done already, kept (--fresh starts over)")
            return True
        state = cell.state
        stages = {stage: kept for stage, kept in state.stages.items() if stage not in again}
        errors = tuple(error for error in state.errors if error.stage in stages)
        seconds = {stage: took for stage, took in state.seconds.items() if stage in stages}
        cell.set_state(status="pending", errors=errors, running=None, stages=stages, seconds=seconds)
        return False

    def _kept(self, cell: Cell, digest: str) -> Path:
        """Where an earlier result is put; an older one of the same inputs gives way."""
        kept = self.context.run.folder / ".kept" / f"{cell.domain}-{cell.target}-{digest[:8]}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        return kept

    def _say_lost(self, cell: Cell, again: Sequence[Stage], hashes: Mapping[str, str]) -> None:
        """Says what is made again although nothing else was asked for, and keeps what somebody may have changed."""
        lost = [each for each in again if cell.state.stages.get(each.name) == hashes[each.name]]
        if not lost:
            return
        which = ", ".join(each.title for each in lost)
        said = f"{cell.domain} on {cell.target}: files of {which} are not as they were saved and are made again"
        if any(each.keeps_earlier for each in lost):
            kept = self._kept(cell, hashes[lost[0].name])
            shutil.copytree(cell.folder, kept)
            said += f"; those found are kept in {kept}"
        self.context.progress.say(said)

    def mark(self, cell: Cell, stage: Stage, seconds: float) -> None:
        """Notes that a stage is done, what it took, and which gates it missed."""
        missed = [StageError(stage=stage.name, message=text) for text in stage.missed(cell, self.context)]
        state, hashed = cell.state, self._hash(cell, stage)
        errors = (*(error for error in state.errors if error.stage != stage.name), *missed)
        stages, took = {**state.stages, stage.name: hashed}, {**state.seconds, stage.name: seconds}
        cell.set_state(stages=stages, seconds=took, errors=errors, running=None)

    def settle(self, cell: Cell) -> None:
        """The status of a cell that has come through."""
        state = cell.state
        if state.status in ("interrupted", "does-not-fit"):
            return
        done = all(stage.name in state.stages for stage in self.context.stages if stage.scope != "run")
        cell.set_state(status="failed" if state.errors else "done" if done else "pending", running=None)

    def note(self, cell: Cell, stage: Stage, message: str, status: str) -> None:
        """Notes why a stage came to no good end."""
        others = (error for error in cell.state.errors if error.stage != stage.name)
        errors = (*others, StageError(stage=stage.name, message=message))
        cell.set_state(status=status, errors=errors, running=None)


def memory_advice(cell: Cell, phases: Sequence[str]) -> str:
    """What the plan had, and up to three plans that need less, where these phases needed more memory than there was."""
    said = ""
    if cell.has(Plan):
        plan = cell.plan.cells[0]
        said = f"; the plan predicted {show_bytes(plan.peak.total_bytes)} of {show_bytes(plan.budget_bytes)} usable"
    nearest = [f"\n  or:      {line}" for line in _nearest(cell, phases)]
    rows = cell.lock.train.micro_batch_rows if cell.planned else 1
    smaller = f"train.micro_batch_rows={rows // 2}, or " if rows > 1 else ""
    free = "memory_margin=0.3; and see that other programs leave memory free (hfadapt doctor)"
    return f"{said}\n  fix:     {smaller}{free}{''.join(nearest)}"


def _nearest(cell: Cell, phases: Sequence[str]) -> list[str]:
    """Settings with which these phases would need less than as they were locked, the nearest first."""
    with suppress(HfadaptError):
        lock, data = cell.lock, cell.data
        now = _peak(lock, data, phases)
        smallest = min(quants.automatic(), key=lambda quant: quant.bits).name
        changes: list[tuple[dict[str, Any], str]] = [
            ({"train.checkpointing": True}, "gives up speed"),
            ({"quant": smallest}, "gives up some accuracy"),
            ({"data.max_length": lock.data.max_length // 2}, "gives up the second half of the longest rows"),
        ]
        found = []
        for asked, gives_up in changes:
            with suppress(HfadaptError):
                found.append((_peak(with_changes(lock, asked), data, phases), asked, gives_up))
        return [
            f"{' '.join(f'{name}={str(value).lower()}' for name, value in asked.items())} ({gives_up}; "
            f"{show_bytes(peak)} predicted, {show_bytes(now)} now)"
            for peak, asked, gives_up in sorted(found, key=lambda each: -each[0])
            if peak < now
        ]
    return []


def with_changes(lock: Lock, changes: Mapping[str, Any]) -> Lock:
    """The lock with other values at dotted places."""
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        fields[section or key] = getattr(lock, section).model_copy(update={key: value}) if section else value
    return lock.model_copy(update=fields)


def _peak(lock: Lock, data: DataRecord, phases: Sequence[str]) -> int:
    planned = make_plan(lock, data={data.domain: data}).cells[0].memory
    return max((phase.total_bytes for phase in planned if phase.phase in phases), default=0)
