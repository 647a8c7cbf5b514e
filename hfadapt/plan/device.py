"""What of a model would run on a device that only serves: bytes and time of each form, before anything is trained.

Bytes follow from the parameters. The time of an answer is a line in its multiply-adds, drawn through published figures
of a device with like cores (targets/serve_only.toml names them); it is right within a factor of two, no better.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.core import registry
from hfadapt.core.errors import Problem
from hfadapt.core.known import remembered
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.show import show_bytes, show_latency
from hfadapt.hardware.catalogue import THIS_MACHINE, Target
from hfadapt.models.facts import ModelFacts, build
from hfadapt.quants import PLAIN
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.schema import Lock, Recipe
from hfadapt.records.plan import PlannedExport

if TYPE_CHECKING:
    from hfadapt.formats import Estimate

BEYOND = 2.0
"""An estimate of time is that far off at most: below half of the budget it fits, above the double it does not."""
BESIDE = 1.2
"""Memory that a runtime takes for a model, as a multiple of its files."""


def served(target: Target, budget: Budget | None, facts: ModelFacts, length: int) -> tuple[PlannedExport, ...]:
    """The forms of all formats that the target opens and that can hold the model; none where nothing can.

    Args:
        target: One that only serves.
        budget: What the recipe says of it, in the place of the catalogue's.
        length: Units of a row.
    """
    found = []
    for name in target.exports:
        if unwritten(name, facts) is None:
            estimates = registry.format(name).estimates(facts)
            least = min((each.bytes for each in estimates), default=0)
            for each in estimates:
                smaller = "" if each.bytes == least else ", or fewer bits"
                found.append(planned(name, each, target, budget or Budget(), facts, length, smaller))
    return tuple(found)


def unwritten(format: str, facts: ModelFacts) -> str | None:
    """Why a format will not be written, or None."""
    if format not in registry.names("formats"):
        return f"formats are {', '.join(registry.names('formats'))}"
    return registry.format(format).unfit(facts.task, facts.config)


def way_there(target: Target, exports: Sequence[PlannedExport], facts: ModelFacts) -> list[str]:
    """For a serve-only target: where it trains, and how it gets there."""
    if target.trains:
        return []
    if exports:
        how = ", ".join(dict.fromkeys(each.format for each in exports))
        return [f"{target.name} only serves: trained on {THIS_MACHINE}, exported ({how}) and tried here"]
    reasons = "; ".join(f"{name}: {unwritten(name, facts)}" for name in target.exports)
    return [
        f"{target.name} only serves, and hfadapt writes nothing of this model that runs there ({reasons}): export "
        "--format merged and convert it with the device's tools"
    ]


def export_format(recipe: Recipe, target: Target, facts: ModelFacts) -> str | None:
    """The format in which a model leaves for a target: the recipe's, or the target's first that can hold it."""
    if recipe.export.asked_format:
        return recipe.export.format
    return next((name for name in target.exports if unwritten(name, facts) is None), None)


def format_problems(recipe: Recipe, target: Target, facts: ModelFacts) -> list[Problem]:
    """A format that was asked for and cannot hold the model, where that is to leave for a target."""
    asked, other = recipe.export.format, recipe.student is not None and recipe.student.base is not None
    why = None if target.trains or other or not recipe.export.asked_format else unwritten(asked, facts)
    if why is None:
        return []
    able = [name for name in target.exports if unwritten(name, facts) is None]
    return [
        Problem(
            f"this model cannot be exported as {asked}",
            place="export.format",
            got=why,
            allowed=", ".join(able) or f"nothing that {target.name} opens",
            fix=f"delete `export.format`, so that {target.name} gets {able[0]}" if able else "choose another target",
        )
    ]


def storage_problems(recipe: Recipe, target: Target, facts: ModelFacts, settled: Lock) -> list[Problem]:
    """A form that was asked for and that no format has in which the model may leave for a target.

    Args:
        settled: The recipe with all answers of the plan: the forms of some formats hang on what was trained in.
    """
    if target.trains or recipe.export.storage is None:
        return []
    asked = recipe.export.format if recipe.export.asked_format else None
    formats = [asked] if asked else [name for name in target.exports if unwritten(name, facts) is None]
    # A student is trained in 32 bits, whatever its base is held in.
    locks = [settled, *([settled.model_copy(update={"quant": PLAIN, "dtype": "float32"})] if recipe.student else [])]
    forms = (form.name for name in formats for each in locks for form in registry.format(name).forms(each))
    known = list(dict.fromkeys(forms))
    if not formats or recipe.export.storage in known:
        return []
    return [
        Problem(
            f"{' and '.join(formats)} {'have' if len(formats) > 1 else 'has'} no such form",
            place="export.storage",
            got=recipe.export.storage,
            allowed=", ".join(known) or "none: it is what was trained",
            fix="delete `export.storage`, so that the first that passes is written",
        )
    ]


def planned(
    format: str,
    estimate: Estimate,
    target: Target,
    budget: Budget,
    facts: ModelFacts,
    length: int,
    smaller: str = "",
) -> PlannedExport:
    """A form against a budget; `smaller` says what would help beside a smaller base."""
    most = budget.bytes or target.most_bytes
    memory = int(target.budget_bytes / BESIDE)
    seconds, limit = answer_seconds(target, estimate, facts, length), budget.latency or target.most_seconds
    verdict, shrink = "fits", ""
    if estimate.bytes > memory or (most and estimate.bytes > most):
        allowed = min(memory, most or memory)
        verdict = f"DOES NOT FIT: {show_bytes(allowed)} at most"
        share = allowed * facts.parameters / estimate.bytes
        shrink = f"a base of at most {share / 1e6:,.1f} M parameters would{smaller}"
    elif seconds and limit and seconds > limit * BEYOND:
        verdict = f"TOO SLOW: {show_latency(limit)} at most"
        shrink = f"{limit / seconds:.0%} of {_slow(facts)}{smaller}"
    elif seconds and limit and seconds > limit / BEYOND:
        verdict = f"may fit: {show_latency(limit)} at most"
    return PlannedExport(
        format=format, form=estimate.form, bytes=estimate.bytes, seconds=seconds, verdict=verdict, shrink=shrink
    )


def _slow(facts: ModelFacts) -> str:
    """What an answer takes its time for, and how there is less of it."""
    if registry.task(facts.task).writes:
        return "its bytes would do: a smaller base"
    return "the multiply-adds would do: a smaller base, smaller rows (data.max_length)"


def answer_seconds(target: Target, estimate: Estimate, facts: ModelFacts, length: int) -> float | None:
    """Seconds of one answer; of what is generated, of one token, for which all weights are read once."""
    if registry.task(facts.task).writes:
        rate = target.bandwidth_bytes_per_second
        return estimate.bytes / rate if rate else None
    if estimate.arithmetic not in target.latency or (count := multiply_adds(facts, length)) is None:
        return None
    fixed, each = target.latency[estimate.arithmetic]
    return fixed + each * count


KINDS = {"mm": "linear", "addmm": "linear", "convolution": "convolution"}
"""What torch's operations are to a runtime that rounds: weights, or windows; products of activations are the rest."""
REST = "attention"


def multiply_adds(facts: ModelFacts, length: int) -> int | None:
    """Multiply-adds of one row of `length` units: matrix products, convolutions and attention, as torch counts them."""
    found = multiply_adds_by_kind(facts, length)
    return sum(found.values()) if found else None


def multiply_adds_by_kind(facts: ModelFacts, length: int) -> dict[str, int]:
    """The same by kind: `linear` are products with a weight, `attention` those of activations with each other; nothing
    for models that cannot be counted."""
    auto_class = registry.task(facts.task).auto_class_of(facts.config["model_type"])
    return dict(_multiply_adds(json.dumps(facts.config, sort_keys=True), auto_class, facts.task, length))


@remembered(tuple[tuple[str, int], ...])
@quiet_libraries()
def _multiply_adds(config: str, auto_class: str, task: str, length: int) -> tuple[tuple[str, int], ...]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig

    from hfadapt.plan.memory.trace import make_fake

    modality = registry.modality_of(task)
    try:
        fields = modality.shaped(json.loads(config), length)
        # Attention in plain products: torch does not count what its kernels for the CPU do.
        eager = AutoConfig.for_model(**fields, attn_implementation="eager")
        model = build(eager, auto_class, "counted").eval()
        with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
            make_fake(model)
            model(**modality.traced(model.config, 1, length))
    except Exception:
        # Models that look at values while they run cannot run without any.
        return ()
    found: dict[str, int] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = KINDS.get(str(operation).removeprefix("aten."), REST)
        found[kind] = found.get(kind, 0) + int(count) // 2
    return tuple(found.items())
