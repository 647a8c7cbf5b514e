"""`train.time`: how many steps, and of how many layers, fit into the time that training may take."""

from __future__ import annotations

import math
from dataclasses import replace

from hfadapt.core import registry
from hfadapt.core.show import show_seconds
from hfadapt.plan.memory import predict
from hfadapt.plan.reasons import CACHED_EPOCHS, CHECK_COST, EVALUATIONS, MAX_STEPS, Decisions, Work, optimizer_steps
from hfadapt.plan.search import Candidate, Question, cached, compile_seconds
from hfadapt.records.plan import Rejected

CHECK_SHARE = 0.2
"""Of the time that training may take, at most, for validations; the one at the end stays in any case."""


def settle_time(decided: Decisions, question: Question, chosen: Candidate, work: Work) -> tuple[Candidate, list[str]]:
    """Cuts training down to the time that it may take: epochs, then rows, and where a row would not be seen even once,
    layers, if what comes out of the others can be kept. Test rows are the same whatever the time.

    Returns:
        The candidate, and what is lost, in a line each.
    """
    limit, notes = decided.recipe.train.time, list[str]()
    if limit is None:
        return chosen, notes
    batch, full = decided.value("train.batch_rows"), optimizer_steps(decided.recipe, work, decided)
    time = show_seconds(limit)
    if chosen.seconds_per_step is None:
        _say(decided, limit, "the target's speed is not known: measured over the first steps")
        return chosen, notes
    fit = _steps(decided, chosen, work, limit)
    once = math.ceil((work.rows or batch * full) / batch)
    if fit < min(once, full) and (fewer := _fewer_layers(decided, question, chosen, work, limit, full)):
        chosen = fewer
        of, layers = question.facts.layers, chosen.workload.layers or 0
        words = f"within {time} the last {layers} of {of} layers see all rows; the first {of - layers} stay as they are"
        decided.revise("adapter.layers", layers, words)
        decided.revise(
            "train.fast.frozen_cache", True, f"{of - layers} layers are frozen, so that training fits {time}"
        )
        fit = full
        notes.append(f"train.time: {words}")
    if fit >= full:
        _say(decided, limit, f"all {full:,} steps fit; corrected after the first ones")
        return chosen, notes
    seen = fit * batch / (work.rows or batch * full)
    lost = f"{fit:,} of {full:,} steps fit: rows are seen {seen:.2g} times instead of {full / once:.2g}"
    if seen < 1 and work.rows:
        lost = f"{fit:,} of {full:,} steps fit: {fit * batch:,} of {work.rows:,} rows are seen, once, the others never"
    _say(decided, limit, f"{lost}; corrected after the first steps")
    rejected = (Rejected(value=str(full), reason=f"takes about {show_seconds(_seconds(decided, chosen, work, full))}"),)
    decided.settle(MAX_STEPS, fit, f"as many as fit into {time}", rejected)
    checks = _checks(decided, chosen, work, limit)
    words = f"about {checks} validations in {fit:,} steps"
    if checks < EVALUATIONS:
        words = f"{checks} of {EVALUATIONS} validations, so that they take no more than {CHECK_SHARE:.0%} of {time}"
        if checks == 1:
            words = f"at the end only, as several would take more than {CHECK_SHARE:.0%} of {time}"
    decided.revise("train.evaluate_every_steps", max(1, -(-fit // checks)), words)
    return chosen, [*notes, f"train.time: within {time} {lost}"]


def _say(decided: Decisions, limit: float, words: str) -> None:
    decided.settle("train.time", limit, words, if_asked=words)


def _share(decided: Decisions) -> float:
    """Of the time that is for the training itself, beside its tries."""
    search = decided.recipe.searched(1.0)
    return 1 / search.budget if search else 1.0


def _seconds(decided: Decisions, chosen: Candidate, work: Work, steps: int, checks: int = EVALUATIONS) -> float:
    """Of so many steps and validations."""
    one = work.validation_rows * CHECK_COST / decided.value("train.batch_rows")
    done = steps / _share(decided) + checks * one
    return compile_seconds(chosen.workload) + done * (chosen.seconds_per_step or 0.0)


def _checks(decided: Decisions, chosen: Candidate, work: Work, limit: float) -> int:
    """How many validations training has time for, where the recipe does not say it."""
    one = _seconds(decided, chosen, work, 0, 1) - _seconds(decided, chosen, work, 0, 0)
    if decided.asked("train.evaluate_every_steps") is not None or not one:
        return EVALUATIONS
    return max(1, min(EVALUATIONS, int(CHECK_SHARE * limit / one)))


def _steps(decided: Decisions, chosen: Candidate, work: Work, limit: float) -> int:
    """As many as fit, and one at least."""
    before = _seconds(decided, chosen, work, 0, _checks(decided, chosen, work, limit))
    return max(1, int((limit - before) * _share(decided) / (chosen.seconds_per_step or 1.0)))


def _fewer_layers(
    decided: Decisions, question: Question, chosen: Candidate, work: Work, limit: float, full: int
) -> Candidate | None:
    """The most layers, by halves, with which all steps fit, the outputs of the others being kept; None without any."""
    facts, task = question.facts, registry.task(question.facts.task)
    met = full * decided.value("train.batch_rows") / (work.rows or math.inf)
    rows_change = decided.recipe.data.augment.on or decided.tries or task.redraws or bool(task.without)
    asked = decided.asked("adapter.layers") is not None or decided.recipe.train.fast.frozen_cache is False
    able = registry.adapter(question.method).adapts_layers and facts.stacks == 1 and not facts.pointwise
    if asked or rows_change or not able or met < CACHED_EPOCHS:
        return None
    layers = facts.layers // 2
    while layers >= 1:
        given = chosen.workload.model_copy(update={"layers": layers})
        one = replace(chosen, workload=given, phases=predict.predict(facts, given))
        one = cached(question, one, min(1.0, 1 / met))
        if _seconds(decided, one, work, full) <= limit:
            return one
        layers //= 2
    return None
