"""What a form that was written is to the target of its cell, where that only serves: bytes and time of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.core import registry
from hfadapt.core.show import show_bytes, show_latency
from hfadapt.formats import Estimate
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.plan.device import planned
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.schema import Lock
from hfadapt.records.plan import PlannedExport
from hfadapt.records.published import Judged


def weighed(lock: Lock, format: str, form: str, size: int) -> PlannedExport | None:
    """A form against its target's budget; None where that trains, and so has none.

    Args:
        size: Bytes of its files.
    """
    if not catalogue.only_serves(lock.target):
        return None
    facts, budget = model_facts(BaseRef.of(lock).location, lock.task), lock.budgets.get(lock.target) or Budget()
    arithmetic = {each.form: each.arithmetic for each in registry.format(format).estimates(facts)}
    estimate = Estimate(form, size, arithmetic.get(form, "float32"))
    return planned(format, estimate, catalogue.target(lock.target), budget, facts, lock.data.max_length)


def within(lock: Lock, format: str, judged: Judged) -> Judged:
    """What the gate says of a form, with its time on the target; refused where it is beyond the budget."""
    found = weighed(lock, format, judged.form, judged.bytes)
    if found is None:
        return judged
    reasons: Sequence[str] = ()
    if not found.fits:
        time = "" if found.seconds is None else f" and about {show_latency(found.seconds)}"
        reasons = (f"on {lock.target} it takes {show_bytes(found.bytes)}{time}: {found.verdict}",)
    return judged.model_copy(
        update={"there_seconds": found.seconds, "there": found.verdict, "refused": (*judged.refused, *reasons)}
    )
