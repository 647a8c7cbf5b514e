"""The flow: every stage in its order, for every cell; what is done and unchanged is kept.

A failed cell is noted and the others go on; an interrupted one continues from its checkpoint the next time. A stage of
the whole run is done when all cells have come to it, and the stages after it follow for every cell.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RequestError, choice_problem, fault_of_machine, is_panic
from hfadapt.core.progress import (
    CellFinished,
    CellStarted,
    Event,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    failure,
)
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.pipeline.status import Status, memory_advice
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Stage, look_at, shares

INTERRUPTED = "interrupted; run the command again to go on"


class Flow:
    """One recipe on its way through the stages.

    Args:
        context: Recipe, folders and processes.
        stages: Those that are to be done, in their order.
        fresh: Start the cells over.
    """

    def __init__(self, context: Context, stages: Sequence[Stage], fresh: bool = False) -> None:
        self.context = context
        self.world, self.progress, self.on_main = context.world, context.progress, context.world.on_main
        self.stages = tuple(stages)
        self.status = Status(context, self.stages, fresh)

    def check(self) -> None:
        """Looks for what cannot be done, and prepares the rows of all domains; starts no cell.

        Raises:
            HfadaptError: something cannot be done.
        """
        for stage in self.stages:
            self.on_main(lambda stage=stage: look_at(self.context.asked, stage))  # type: ignore[misc]
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
                self.turn_of(cell, stages)

    def _tell(self, event: Event) -> None:
        if self.world.is_main:
            self.progress.tell(event)

    @property
    def failed(self) -> bool:
        """Whether a cell has come to no good end."""
        return any(cell.state.status in ("failed", "does-not-fit") for cell in self.context.cells)

    # --- one cell ----------------------------------------------------------------------------------------------------

    def turn_of(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Does stages for a cell, from the first one that is not done."""
        if cell not in self.context.cells:
            self._cell(cell, stages)
            return
        self._tell(CellStarted(cell.name))
        try:
            self._cell(cell, stages)
        finally:
            self._tell(CellFinished(cell.name, cell.state.status))

    def _cell(self, cell: Cell, stages: Sequence[Stage]) -> None:
        if cell in self.context.cells:
            if self.on_main(lambda: self.status.start(cell)):
                return
        else:
            # It is not to be done now, but a stage of the whole run may have changed what its results were made from.
            stages = [] if stages[0] is self.stages[0] else [each for each in stages if each.name in cell.state.stages]
            if not stages:
                return
        for stage in stages:
            if self._done(cell, stage):
                continue
            if not self.status.may_begin(cell, stage) or not self._attempt(cell, stage):
                return
        self.on_main(lambda: self.status.settle(cell))

    def _attempt(self, cell: Cell, stage: Stage) -> bool:
        """Does a stage for a cell; returns whether the cell can go on."""
        try:
            self._turn(cell, stage)
            return True
        except KeyboardInterrupt:
            self.on_main(lambda: self.status.note(cell, stage, INTERRUPTED, "interrupted"))
            raise
        except HfadaptError as error:
            self._fail(cell, stage, error, error.status)
        except BaseException as error:
            if self.world.size > 1 or not (isinstance(error, Exception) or is_panic(error)):
                # The other processes wait for this one: let the launcher end them all.
                raise
            if fault := fault_of_machine(error):
                self._fail(cell, stage, fault)
                return False
            (cell.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            if is_out_of_memory(error):
                self._fail(cell, stage, f"out of memory during {stage.name}{memory_advice(cell, stage.phases)}")
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
        names, started = tuple(cell.name for cell in cells), time.monotonic()
        self._tell(StageStarted(stage.name, stage.title, names))
        if stage.distributed:
            done = stage.run(cells, self.context)
        else:
            done = self.on_main(lambda: stage.run(cells, self.context))
        done = cells if done is None else done
        self._mark(done, stage, time.monotonic() - started)
        return done

    def _mark(self, cells: Sequence[Cell], stage: Stage, seconds: float) -> None:
        """Notes and tells that a stage is done for these cells, each of which took a like share of the time."""
        each = seconds / max(1, len(cells))
        for cell in cells:
            self.on_main(lambda cell=cell: self.status.mark(cell, stage, each))  # type: ignore[misc]
        self._tell(StageFinished(stage.name, stage.title, tuple(cell.name for cell in cells), seconds))

    def _group(self, cell: Cell, stage: Stage) -> list[Cell]:
        """The cells of the same target that share a stage's work with this one."""
        others = [each for each in self.context.cells if each.target == cell.target and each != cell]
        return shares(stage, cell, (other for other in others if self._ready(other, stage)))

    def _ready(self, cell: Cell, stage: Stage) -> bool:
        """Whether a cell that is not done with a stage can begin it, once the stages before it are done."""
        self.on_main(lambda: self.status.start(cell))
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
        cells = self.on_main(lambda: [cell for cell in self.context.all_cells if self.status.may_begin(cell, stage)])
        if not cells or self.on_main(lambda: all(self.status.is_done(cell, stage, cells) for cell in cells)):
            return
        names, started = tuple(cell.name for cell in cells), time.monotonic()
        self._tell(StageStarted(stage.name, stage.title, names))
        try:
            if stage.distributed:
                stage.run(cells, self.context)
            else:
                self.on_main(lambda: stage.run(cells, self.context))
        except HfadaptError as error:
            self._tell(failure(error, f"{stage.title} failed:\n{error}", stage.name))
            return
        except Exception as error:
            if self.world.size > 1:
                raise
            if fault := fault_of_machine(error):
                self._tell(failure(fault, f"{stage.title} failed:\n{fault}", stage.name))
                return
            (self.context.run.folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
            words = f"{stage.title} failed: {type(error).__name__} (see error.log in the run)"
            self._tell(failure(error, words, stage.name))
            return
        self._mark(cells, stage, time.monotonic() - started)
        for cell in cells:
            self.on_main(lambda cell=cell: self.status.settle(cell))  # type: ignore[misc]

    def _done(self, cell: Cell, stage: Stage) -> bool:
        """Decided by one process, as the others may look when it has gone on already."""
        return self.on_main(lambda: self.status.is_done(cell, stage))

    def _fail(self, cell: Cell, stage: Stage, error: Exception | str, status: str = "failed") -> None:
        others = "; continuing with the other domains" if len(self.context.cells) > 1 else ""
        where = f"{cell.domain} on {cell.target}" if len(self.context.recipe.targets) > 1 else cell.domain
        words = f"{stage.title} of {where} failed{others}:\n{error}"
        self._tell(failure(error, words, stage.name, cell.name))
        if self.world.is_main:
            self.status.note(cell, stage, str(error), status)


@contextmanager
def told(context: Context, flow: Flow) -> Iterator[None]:
    """Tells the beginning and the end of a command; an error that ends it is its caller's to tell."""
    if not context.world.is_main:
        yield
        return
    started, cells = time.monotonic(), [cell.name for cell in context.cells]
    unit = registry.modality_of(context.recipe.task).unit
    names = (tuple(cells), tuple(stage.name for stage in flow.stages))
    context.progress.tell(RunStarted(context.recipe.name, str(context.run.folder), *names, unit))
    try:
        yield
    except KeyboardInterrupt:
        context.progress.tell(RunFinished("interrupted", time.monotonic() - started))
        raise
    context.progress.tell(RunFinished("failed" if flow.failed else "done", time.monotonic() - started))


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
