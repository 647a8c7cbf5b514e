"""The flow: every stage in its order, for every cell; what is done and unchanged is kept.

A failed cell is noted and the others go on; an interrupted one continues from its checkpoint the next time. A stage of
the whole run is done when all cells have come to it, and the stages after it follow for every cell.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping, Sequence
from itertools import groupby

from hfadapt.core.errors import HfadaptError, RequestError, choice_problem
from hfadapt.core.show import show_bytes
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.records.plan import Plan
from hfadapt.records.stages import StageError
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Stage

INTERRUPTED = "interrupted; run the command again to go on"


class Flow:
    """One recipe on its way through the stages.

    Args:
        context: Recipe, folders and processes.
        until: The last stage, or the verb of the last ones.
        fresh: Start the cells over.
    """

    def __init__(self, context: Context, until: str, fresh: bool = False) -> None:
        self.context, self.fresh = context, fresh
        self.world, self.progress, self.on_main = context.world, context.progress, context.world.on_main
        self.stages = stages_until(context.stages, until)
        self._begun: set[Cell] = set()

    def check(self) -> None:
        """Looks for what cannot be done, and prepares the rows of all domains; starts no cell.

        Raises:
            HfadaptError: something cannot be done.
        """
        for stage in self.stages:
            self.on_main(lambda stage=stage: stage.check(self.context))  # type: ignore[misc]
        _ = self.context.prepared

    def run(self) -> None:
        """Every cell.

        Raises:
            KeyboardInterrupt: after the interrupted cell's state was written.
        """
        for whole, part in groupby(self.stages, lambda stage: stage.scope == "run"):
            stages = tuple(part)
            for stage in stages if whole else ():
                self._whole(stage)
            for cell in () if whole else self.context.all_cells:
                self._cell(cell, stages)

    # --- one cell ----------------------------------------------------------------------------------------------------

    def _cell(self, cell: Cell, stages: Sequence[Stage]) -> None:
        if cell in self.context.cells:
            if self.on_main(lambda: self._start(cell)):
                return
        else:
            # It is not to be done now, but a stage of the whole run may have changed what its results were made from.
            stages = [] if stages[0] is self.stages[0] else [each for each in stages if each.name in cell.state.stages]
        for stage in stages:
            if self._done(cell, stage):
                continue
            if not self._may_begin(cell, stage) or not self._attempt(cell, stage):
                return
        self.on_main(lambda: self._settle(cell))

    def _attempt(self, cell: Cell, stage: Stage) -> bool:
        """Does a stage for a cell; returns whether the cell can go on."""
        try:
            self._turn(cell, stage)
            return True
        except KeyboardInterrupt:
            self.on_main(lambda: self._note(cell, stage, INTERRUPTED, "interrupted"))
            raise
        except HfadaptError as error:
            self._fail(cell, stage, str(error), error.status)
        except Exception as error:
            if self.world.size > 1:
                # The other processes wait for this one: let the launcher end them all.
                raise
            (cell.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            if is_out_of_memory(error):
                self._fail(cell, stage, f"out of memory during {stage.name}{_memory(cell)}")
            else:
                self._fail(cell, stage, f"{type(error).__name__}: {error} (details: {cell.folder / 'error.log'})")
        return False

    def _turn(self, cell: Cell, stage: Stage) -> None:
        """Does a stage for a cell, and for those that can share the work."""
        group = self._group(cell, stage)
        if len(group) > 1:
            self.progress.say(f"co-{stage.title} {', '.join(each.domain for each in group)} on one base")
        try:
            done = self._do(stage, group)
        except Exception as error:
            known = isinstance(error, HfadaptError) or is_out_of_memory(error)
            if len(group) == 1 or self.world.size > 1 or not known:
                raise
            # A fault of one of the others is told on its own turn.
            self.progress.say(f"co-{stage.title} failed; {stage.title} {cell.domain} on its own:\n{error}")
            done = self._do(stage, [cell])
        if cell not in done:
            # It failed while the others went on; alone it says why.
            self._do(stage, [cell])

    def _do(self, stage: Stage, cells: Sequence[Cell]) -> Sequence[Cell]:
        """Runs a stage, in all processes or in the main one; returns the cells that are done, which are marked."""
        self.on_main(lambda: cells[0].set_state(running=stage.name))
        if stage.distributed:
            done = stage.run(cells, self.context)
        else:
            done = self.on_main(lambda: stage.run(cells, self.context))
        done = cells if done is None else done
        for cell in done:
            self.on_main(lambda cell=cell: self._mark(cell, stage))  # type: ignore[misc]
        return done

    def _group(self, cell: Cell, stage: Stage) -> list[Cell]:
        """The cells of the same target that share a stage's work with this one."""
        if stage.scope != "group" or not stage.groups(cell):
            return [cell]
        others = [each for each in self.context.cells if each.target == cell.target and each != cell]
        return [cell, *(other for other in others if self._ready(other, stage) and stage.joins(cell, other))]

    def _ready(self, cell: Cell, stage: Stage) -> bool:
        """Whether a cell that is not done with a stage can begin it, once the stages before it are done."""
        self.on_main(lambda: self._start(cell))
        if self._done(cell, stage):
            return False
        try:
            for earlier in self.stages[: self.stages.index(stage)]:
                if earlier.scope != "run" and not self._done(cell, earlier):
                    self._do(earlier, [cell])
        except HfadaptError:
            # Its own turn says what is wrong.
            return False
        return True

    # --- all cells ---------------------------------------------------------------------------------------------------

    def _whole(self, stage: Stage) -> None:
        """A stage of the whole run, for the cells that have what it needs. If it fails, no cell has."""
        cells = self.on_main(lambda: [cell for cell in self.context.all_cells if self._may_begin(cell, stage)])
        if not cells or self.on_main(lambda: all(self._is_done(cell, stage, cells) for cell in cells)):
            return
        try:
            if stage.distributed:
                stage.run(cells, self.context)
            else:
                self.on_main(lambda: stage.run(cells, self.context))
        except HfadaptError as error:
            self.progress.say(f"{stage.title} failed:\n{error}")
            return
        except Exception as error:
            if self.world.size > 1:
                raise
            (self.context.run.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            self.progress.say(f"{stage.title} failed: {type(error).__name__} (see error.log in the run)")
            return
        for cell in cells:
            self.on_main(lambda cell=cell: self._mark(cell, stage))  # type: ignore[misc]
            self.on_main(lambda cell=cell: self._settle(cell))  # type: ignore[misc]

    # --- what is done ------------------------------------------------------------------------------------------------

    def _done(self, cell: Cell, stage: Stage) -> bool:
        """Decided by one process, as the others may look when it has gone on already."""
        return self.on_main(lambda: self._is_done(cell, stage))

    def _hash(self, cell: Cell, stage: Stage) -> str:
        """Of a cell that is not to be done now, the earlier stages are taken as they are."""
        asked = cell in self.context.cells
        known = {} if asked else {name: kept for name, kept in cell.state.stages.items() if name != stage.name}
        return self.context.hashes(cell, known)[stage.name]

    def _is_done(self, cell: Cell, stage: Stage, cells: Sequence[Cell] = ()) -> bool:
        kept = cell.state.stages.get(stage.name)
        return kept == self._hash(cell, stage) and stage.intact(cells or [cell], self.context)

    def _may_begin(self, cell: Cell, stage: Stage) -> bool:
        return all(name in cell.state.stages for name in stage.needs)

    def _start(self, cell: Cell) -> bool:
        """Makes the folder; an earlier result that something else was asked for is kept aside, not overwritten.

        Returns:
            Whether all is done already.
        """
        if cell in self._begun:
            return False
        state, name = cell.state, f"{cell.domain} on {cell.target}"
        self._begun.add(cell)
        if state.running in [stage.name for stage in self.context.stages if stage.phases]:
            # Neither done nor failed nor interrupted: the process was killed, mostly for lack of memory.
            words = f"the previous run was killed during {state.running}, probably out of memory"
            self.progress.say(f"{name}: {words}{_memory(cell)}")
        hashes = self.context.hashes(cell)
        changed = [
            state.stages[stage.name]
            for stage in self.context.stages
            if stage.keeps_earlier and state.stages.get(stage.name, hashes[stage.name]) != hashes[stage.name]
        ]
        if self.fresh and cell.folder.exists():
            shutil.rmtree(cell.folder)
        elif changed:
            kept = self.context.run.folder / ".kept" / f"{cell.domain}-{cell.target}-{changed[0][:8]}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            cell.folder.rename(kept)
            self.progress.say(f"{name}: recipe or data changed; earlier result kept in {kept}")
        cell.folder.mkdir(parents=True, exist_ok=True)
        again = {each.name for each in self.context.stages if each.scope != "run" and not self._is_done(cell, each)}
        if again.isdisjoint(stage.name for stage in self.stages):
            self.progress.say(f"{name}: done already, kept (--fresh starts over)")
            return True
        state = cell.state
        stages = {stage: kept for stage, kept in state.stages.items() if stage not in again}
        errors = tuple(error for error in state.errors if error.stage in stages)
        cell.set_state(status="pending", errors=errors, running=None, stages=stages)
        return False

    def _mark(self, cell: Cell, stage: Stage) -> None:
        """Notes that a stage is done, and which gates it missed."""
        missed = [StageError(stage=stage.name, message=text) for text in stage.missed(cell, self.context)]
        state, hashed = cell.state, self._hash(cell, stage)
        errors = (*(error for error in state.errors if error.stage != stage.name), *missed)
        cell.set_state(stages={**state.stages, stage.name: hashed}, errors=errors, running=None)

    def _settle(self, cell: Cell) -> None:
        """The status of a cell that has come through."""
        state = cell.state
        if state.status in ("interrupted", "does-not-fit"):
            return
        done = all(stage.name in state.stages for stage in self.context.stages if stage.scope != "run")
        cell.set_state(status="failed" if state.errors else "done" if done else "pending", running=None)

    def _fail(self, cell: Cell, stage: Stage, message: str, status: str = "failed") -> None:
        others = "; continuing with the other domains" if len(self.context.cells) > 1 else ""
        where = f"{cell.domain} on {cell.target}" if len(self.context.recipe.targets) > 1 else cell.domain
        self.progress.say(f"{stage.title} of {where} failed{others}:\n{message}")
        if self.world.is_main:
            self._note(cell, stage, message, status)

    def _note(self, cell: Cell, stage: Stage, message: str, status: str) -> None:
        others = (error for error in cell.state.errors if error.stage != stage.name)
        errors = (*others, StageError(stage=stage.name, message=message))
        cell.set_state(status=status, errors=errors, running=None)


def stages_until(stages: Sequence[Stage], until: str) -> tuple[Stage, ...]:
    """The stages up to the last one of that name or verb.

    Raises:
        RequestError: there is none.
    """
    last = [number for number, stage in enumerate(stages) if until in (stage.name, stage.verb)]
    if not last:
        known: Mapping[str, None] = dict.fromkeys(stage.name for stage in stages)
        problem = choice_problem("there is no stage of that name", until, known, "until")
        raise RequestError(problem.what, problems=[problem])
    return tuple(stages[: last[-1] + 1])


def _memory(cell: Cell) -> str:
    """What the plan had, and what to try, where a stage needed more memory than there was."""
    said = ""
    if cell.has(Plan):
        plan = cell.plan.cells[0]
        said = f"; the plan predicted {show_bytes(plan.peak.total_bytes)} of {show_bytes(plan.budget_bytes)} usable"
    rows = cell.lock.train.micro_batch_rows if cell.planned else 1
    smaller = f"train.micro_batch_rows={rows // 2}, or " if rows > 1 else ""
    return f"{said}\n  fix: {smaller}memory_margin=0.3; and see that other programs leave memory free (hfadapt doctor)"
