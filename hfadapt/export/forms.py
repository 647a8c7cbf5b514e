"""Writes a model in one form of a format: the one that drift.json allows, or the first that passes the gate."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, Problem, RunError
from hfadapt.export.budget import within
from hfadapt.export.choice import choose, meant, measured
from hfadapt.export.gate import (
    MOST_ROWS,
    Gate,
    TestRows,
    difference_of,
    from_evaluation,
    kept_problems,
    merged_problems,
    refused,
    same_problems,
)
from hfadapt.hardware import processor
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.hardware.versions import versions
from hfadapt.objectives.distill import KIND as DISTILL
from hfadapt.records.published import ExportRecord, Judged
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    import torch

    from hfadapt.formats import Form, Format
    from hfadapt.tasks import Scores

Say = Callable[[str], None]
UNREADABLE = "the written files cannot be read"


@dataclass(frozen=True)
class Request:
    """What is to be written.

    Args:
        variant: A form, where one is named.
        force: Also what is refused.
    """

    cell: Cell
    kind: Format
    variant: str | None
    force: bool
    device: torch.device
    say: Say

    @property
    def forms(self) -> Sequence[Form]:
        """Those that may be meant: of a format with both kinds the ones of drift.json, unless another is named.

        Raises RequestError for a name that is none of them.
        """
        wanted = meant(self.kind.forms(self.cell.lock), self.variant)
        return [form for form in wanted if not form.own] or wanted

    @property
    def judged(self) -> bool:
        """Whether the gate decides, and not drift.json."""
        return any(form.own for form in self.forms)


def write_form(asked: Request, folder: Path) -> tuple[Form | None, ExportRecord]:
    """Fills an empty folder with the model's files, and says how they score when they are opened again.

    Raises:
        RequestError: there is no such variant.
        RunError: no form may be shipped, or what is opened is not what was written.
    """
    rows = TestRows.of(asked.cell, asked.kind.most_labels)
    return (_first_that_passes if asked.judged else _as_measured)(asked, folder, rows)


def _as_measured(asked: Request, folder: Path, rows: TestRows) -> tuple[Form | None, ExportRecord]:
    cell, kind, drift = asked.cell, asked.kind, asked.cell.drift
    form, forced = choose(asked.forms, drift, asked.variant, asked.force, cell)
    tried = _tried(asked, form, folder, rows)
    assert tried.found is not None
    variant = measured(form.name, drift) if form else None
    known = form is None or variant is not None
    merged = merged_problems(kind, from_evaluation(cell, tried.found), variant.divergence if variant else 0.0)
    refused([*same_problems(kind, tried.difference, tried.tolerance), *tried.problems, *(merged if known else ())])
    return form, _record(
        asked,
        tried,
        forced,
        kl_nats=variant.kl_nats if variant else None,
        spreads=variant.spreads if variant else None,
        delta=variant.delta if variant else None,
    )


def _first_that_passes(asked: Request, folder: Path, rows: TestRows) -> tuple[Form, ExportRecord]:
    """All forms that may be meant are tried, and the first that the gate lets through is kept."""
    cell, kind = asked.cell, asked.kind
    forms = asked.forms
    asked.say("asking the adapter as it was trained")
    limits = cell.lock.export.limits
    gate = Gate(cell, limits, asked.device, kind.most_labels)
    with kind.together():
        tries = [_tried(asked, form, folder / form.name, rows, gate) for form in forms]
    good = next((each for each in tries if not each.reasons), None)
    taken = good or (next((each for each in tries if each.found is not None), None) if asked.force else None)
    if taken is None:
        fix = (
            f"{_nearer(cell, kind, tries)}set another form (export.storage), other limits (export.limits) or what the "
            "target allows (targets) in the recipe, or write it all the same: hfadapt export … --force; "
            f"{kind.runtime} was asked"
        )
        found = [Problem(f"{each.name} is refused", kind.name, "; ".join(each.reasons)) for each in tries]
        # What helps is the same for all, and stands once.
        found[-1] = replace(found[-1], fix=fix)
        raise RunError(f"no form of {kind.name} passes the gate", problems=found)
    for path in sorted((folder / taken.name).iterdir()):
        path.rename(folder / path.name)
    for each in tries:
        shutil.rmtree(folder / each.name, ignore_errors=True)
    assert taken.form is not None
    forced = f"{taken.name} is refused: {'; '.join(taken.reasons)}" if taken.reasons else None
    return taken.form, _record(
        asked,
        taken,
        forced,
        limits=limits.model_dump(),
        judged=tuple(each.judged for each in tries if each.judged),
        failed={each.name: "; ".join(each.reasons) for each in tries if not each.judged},
        kl_nats=taken.judged.kl_nats if taken.judged else None,
    )


def _nearer(cell: Cell, kind: Format, tries: Sequence[_Tried]) -> str:
    """What may bring a form within the limits, in words before other fixes."""
    found, task = [], registry.task(cell.lock.task)
    few = [each.judged.rows for each in tries if each.judged and each.judged.by_chance]
    if few and few[0] < MOST_ROWS:
        found.append(f"data.test: {MOST_ROWS} in the place of {few[0]}, which are so few that it may be chance")
    learned = cell.lock.train.objective_options.get("rounded")
    if kind.rounds and any(each.rounded for each in tries) and not learned and DISTILL.unfit(task) is None:
        found.append("student.int8: true, so that a student learns how it is rounded")
    return "".join(f"{each}; or " for each in found)


@dataclass(frozen=True)
class _Tried:
    form: Form | None
    problems: tuple[Problem, ...]
    difference: float = float("nan")
    tolerance: float | None = None
    found: Scores | None = None
    judged: Judged | None = None

    @property
    def name(self) -> str:
        return self.form.name if self.form else ""

    @property
    def rounded(self) -> bool:
        """Whether it rounds, and was judged and refused."""
        return self.judged is not None and self.tolerance is None and bool(self.judged.refused)

    @property
    def reasons(self) -> tuple[str, ...]:
        if self.judged:
            return self.judged.refused
        return tuple(f"{each.what}{f': {each.got}' if each.got else ''}" for each in self.problems)


def _tried(asked: Request, form: Form | None, folder: Path, rows: TestRows, gate: Gate | None = None) -> _Tried:
    """One form, written, opened and asked; without a gate what fails is raised."""
    cell, kind, device = asked.cell, asked.kind, asked.device
    folder.mkdir(exist_ok=True)
    asked.say(f"writing {form.name if form else kind.name}")
    problems: list[Problem] = []
    judged = None
    try:
        with _of_libraries("the form cannot be written", kind):
            model = kind.write(cell, form, folder, device)
        written = rows.scores(model, device)
        with _of_libraries(UNREADABLE, kind):
            problems += [Problem(fault, kind.name) for fault in kind.faults(cell, folder, model)]
        del model
        release_memory()
        asked.say(f"opening it again: {kind.runtime}" if gate else "opening it again without hfadapt")
        with _of_libraries(UNREADABLE, kind):
            opened: Any = kind.reopen(cell, folder, device)
        found = rows.scores(opened, opened.device)
        difference, tolerance = difference_of(found, written.losses), kind.tolerance(cell, form)
        problems += kept_problems(kind, folder, opened, rows)
        if gate is not None and form is not None:
            problems += same_problems(kind, difference, tolerance)
            asked.say(f"judging {form.name} on {len(gate.reference.examples)} test rows")
            judged = gate.judge(kind, form, folder, opened, _Tried(form, tuple(problems)).reasons)
            judged = within(cell.lock, kind.name, judged)
    except RunError as error:
        if gate is None:
            raise
        return _Tried(form, (*problems, *error.problems))
    release_memory()
    return _Tried(form, tuple(problems), difference, tolerance, found, judged)


@contextlib.contextmanager
def _of_libraries(what: str, kind: Format) -> Iterator[None]:
    """Raises RunError for an error of the libraries that write and read a format, which have every kind; of hfadapt's
    own code it stays as it is."""
    try:
        yield
    except (HfadaptError, MemoryError):
        raise
    except Exception as error:
        own = Path(__file__).parents[1]
        if what != UNREADABLE and own in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents:
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise RunError(what, place=kind.name, got=said) from error


def _record(asked: Request, tried: _Tried, forced: str | None, **more: Any) -> ExportRecord:
    cell, form = asked.cell, tried.form
    assert tried.found is not None
    return ExportRecord(
        domain=cell.domain,
        target=cell.target,
        format=asked.kind.name,
        variant=form.name if form else None,
        storage=form.storage if form else cell.lock.dtype,
        forced=forced,
        rows=len(tried.found.losses),
        difference=tried.difference,
        tolerance=tried.tolerance,
        evaluated_difference=from_evaluation(cell, tried.found),
        runtime=asked.kind.runtime,
        features=processor.cpu_features(),
        files=(),
        versions=versions("cpu"),
        **more,
    )
