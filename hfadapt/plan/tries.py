"""The tries of a search: how far each of them goes, by successive halving, and what that costs.

All begin on the same rows. After some steps the better half goes on, and after twice as many again, until one is left
(Jamieson and Talwalkar 2016, arXiv 1502.07943). They are compared before their rates decay, so that how far a schedule
has come does not count; the one that is left goes on from where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError
from hfadapt.core.show import show_bytes
from hfadapt.plan.reasons import CHECK_COST, Decisions, Work, can_share, optimizer_steps
from hfadapt.plan.search import Candidate, Question, shared, step_seconds
from hfadapt.recipe.schema import FIND
from hfadapt.recipe.search import OF_LAYERS, PLACES
from hfadapt.records.plan import PlannedSearch

LEAST_STEPS = 4
"""Before the first comparison: fewer say little of what a rate does."""
CHECK_SHARE = 0.2
"""Of what all tries may cost, comparing them takes about so much; with more validation rows some are left out."""
FEW_ROWS = 32
"""But so many validation rows are compared at least."""
LATEST = 0.5
"""The last comparison comes at the latest after this share of the steps, so that the rate has time to decay."""


@dataclass(frozen=True)
class Halving:
    """How tries are narrowed down.

    Args:
        rungs: The steps after which they are compared, and how many of them come so far.
        check_rows: The validation rows that they are compared on.
        cost: Of all tries beside the one that goes on, in steps.
    """

    rungs: tuple[tuple[int, int], ...]
    check_rows: int
    cost: float

    @property
    def last(self) -> int:
        """The step after which one is left."""
        return self.rungs[-1][0] if self.rungs else 0


def halving(count: int, steps: int, budget: float, validation_rows: int, batch_rows: int) -> Halving | None:
    """How `count` tries are narrowed down within a budget; None where that is too few steps to compare them.

    Each comparison is after twice the steps of the one before, the last one as late as the budget allows: of five tries
    with a budget of two trainings after an eighth, a quarter and half of the steps, less what comparing takes.

    Args:
        steps: Of the whole training.
        budget: What training may cost with all tries, in trainings.
    """
    if count < 2:
        return Halving((), 0, 0.0)
    left = [count]
    while left[-1] > 1:
        left.append((left[-1] + 1) // 2)
    room = (budget - 1) * steps
    for skipped in range(len(left) - 1):
        # Fewer comparisons where the first would come too early.
        entering = [count, *left[1 + skipped : -1]]
        checks = sum(entering)
        affordable = int(CHECK_SHARE * room * batch_rows / (CHECK_COST * checks))
        rows = min(validation_rows, max(FEW_ROWS, affordable))
        compared = checks * rows * CHECK_COST / batch_rows
        shares = [0.5 ** (len(entering) - 1 - place) for place in range(len(entering))]
        lengths = [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]
        each = sum((tries - 1) * length for tries, length in zip(entering, lengths, strict=True))
        last = min(int(LATEST * steps), int((room - compared) / each))
        ends = [max(0, int(last * share)) for share in shares]
        if ends[0] >= LEAST_STEPS:
            done = sum((n - 1) * (end - start) for n, end, start in zip(entering, ends, [0, *ends], strict=False))
            return Halving(tuple(zip(ends, entering, strict=True)), rows, done + compared)
    return None


def too_short(count: int, steps: int, budget: float) -> Problem:
    """That so many steps cannot tell so many tries apart."""
    needed = math.ceil(max(LEAST_STEPS / LATEST, LEAST_STEPS * (count - 1) / ((1 - CHECK_SHARE) * (budget - 1))))
    return Problem(
        f"{count} tries cannot be compared within {steps:,} steps of training",
        place="search",
        got=f"{steps:,} steps, budget {budget:g}",
        allowed=f"about {needed:,} steps or more, as each try needs {LEAST_STEPS} at least",
        fix="raise train.epochs or search.budget, try fewer values, or leave train.learning_rate: auto",
    )


def settle_sharing(decided: Decisions, question: Question, chosen: Candidate) -> Candidate:
    """Whether the tries are trained side by side; the candidate with all of them, if they are.

    Raises:
        RequestError: they differ in what needs adapters side by side, and that cannot be.
    """
    search = question.recipe.searched(decided.value("train.learning_rate"))
    tries = len(tuple(search.tries())) if search else 0
    able = can_share(question, chosen) and question.recipe.train.together is not False
    side_by_side = shared(question, chosen, tries) if able and tries > 1 else chosen
    fits = side_by_side.peak_bytes <= max(question.budget_bytes, chosen.peak_bytes)
    why = _alone(question) if fits else f"side by side they need {show_bytes(side_by_side.peak_bytes)}"
    together = able and fits and tries > 1
    if search and tries > 1 and not together and (named := [name for name in OF_LAYERS if name in search.lists]):
        place = f"search.{named[0]}"
        problem = Problem(
            f"{place} needs adapters side by side on one base",
            place=place,
            got=why,
            allowed=", ".join(name for name in PLACES if name not in OF_LAYERS),
            fix=f"delete {place}, or choose a method and a quant with which several adapters share a base",
        )
        raise RequestError(problem.what, problems=[problem])
    reason = f"{tries} tries side by side on one base" if together else f"tries one after the other: {why}"
    decided.settle("train.together", together, reason if tries > 1 else "one try is one training")
    if question.recipe.train.learning_rate == FIND:
        decided.because("train.learning_rate", f"a first guess, around which {tries} tries are compared")
    return side_by_side if together else chosen


def plan_search(decided: Decisions, question: Question, chosen: Candidate, work: Work) -> PlannedSearch | None:
    """How far the tries go and what they cost, once it is known how long training is.

    Raises:
        RequestError: training is too short to compare them.
    """
    search = question.recipe.searched(decided.value("train.learning_rate"))
    if search is None:
        return None
    tries = tuple(search.tries())
    steps, batch = optimizer_steps(question.recipe, work, decided), decided.value("train.batch_rows")
    found = halving(len(tries), steps, search.budget, work.validation_rows, batch)
    if found is None:
        problem = too_short(len(tries), steps, search.budget)
        raise RequestError(problem.what, problems=[problem])
    seconds = chosen.seconds_per_step
    return PlannedSearch(
        tries=tries,
        rungs=found.rungs,
        steps=math.ceil(found.cost),
        seconds=None if seconds is None else found.cost * seconds,
        together=decided.value("train.together"),
    )


def _alone(question: Question) -> str:
    """Why adapters do not lie side by side."""
    if question.recipe.train.together is False:
        return "train.together: false"
    if not registry.adapter(question.method).shares_base:
        return f"{question.method} trains alone"
    return "with this quant the base takes one adapter at a time"


def alone(question: Question, chosen: Candidate) -> Candidate:
    """The candidate with one adapter, as the one that goes on is trained."""
    if chosen.seconds_per_step is None or chosen.workload.adapters == 1:
        return chosen
    one = chosen.workload.model_copy(update={"adapters": 1})
    with_one, with_all = (
        step_seconds(question.facts, work, question.target, question.rows, question.mean_tokens)
        for work in (one, chosen.workload)
    )
    seconds = chosen.seconds_per_step * (with_one or 1.0) / (with_all or 1.0)
    return replace(chosen, workload=one, seconds_per_step=seconds)
