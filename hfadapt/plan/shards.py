"""Whether the frozen layers of the base are divided over the processes, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterator

from hfadapt.core import registry
from hfadapt.core.errors import Problem
from hfadapt.core.show import show_bytes
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.memory import predict
from hfadapt.plan.reasons import DEFAULTS, Decisions
from hfadapt.plan.search import Candidate, Question
from hfadapt.recipe.schema import AUTO, Recipe
from hfadapt.records.plan import Rejected

FIELD = "train.shard"


def shard_problems(recipe: Recipe, facts: ModelFacts) -> Iterator[Problem]:
    """Why a base cannot be divided that is to be."""
    if recipe.train.shard is not True:
        return
    for place, got, why, fix in _against(recipe, facts):
        yield Problem(
            f"the base cannot be divided over processes: {why}",
            place=FIELD,
            got=f"true with {place} {got}",
            allowed="false, auto",
            fix=fix,
        )


def can_divide(recipe: Recipe, facts: ModelFacts) -> bool:
    """Whether nothing in the recipe or the model stands against it."""
    return not any(True for _ in _against(recipe, facts))


def _against(recipe: Recipe, facts: ModelFacts) -> Iterator[tuple[str, str, str, str]]:
    """Place, value, reason and fix of everything that stands against it."""
    method = registry.adapter(DEFAULTS["adapter.method"][0] if recipe.adapter.method == AUTO else recipe.adapter.method)
    if method.whole_model:
        why = "its layers are trained, and only frozen ones are divided"
        yield "adapter.method", method.name, why, "leave adapter.method: auto, or set train.shard: false"
    elif method.needs:
        why = "this method reads whole weights before training"
        yield "adapter.method", method.name, why, "leave adapter.method: auto, or set train.shard: false"
    if recipe.quant != AUTO and not registry.quant(recipe.quant).divides:
        why = "its layers keep scales with their weights that bitsandbytes does not find in a divided one"
        yield "quant", recipe.quant, why, "set quant: nf4 or none, or leave it auto"
    if facts.experts:
        why = "its experts are weights of their own kind, which adapters wrap"
        yield "model", facts.architecture, why, "set train.shard: false"
    if not facts.stacks:
        yield "model", facts.architecture, "it has no list of layers", "set train.shard: false"


def settle_shard(decided: Decisions, question: Question, chosen: Candidate, world: int, whole: int) -> None:
    """Records what the search has found.

    Args:
        chosen: Divided or not.
        world: Processes that train.
        whole: Peak of the best configuration that is not divided.
    """
    budget = question.budget_bytes
    divided = chosen.workload.shards > 1
    saved = show_bytes(predict.weight_bytes(question.facts, chosen.workload))
    share = show_bytes(predict.held_bytes(question.facts, chosen.workload))
    if decided.asked(FIELD):
        held = f"each of {world} processes holds {share} of {saved}"
        words = held if world > 1 else "without effect in one process, which holds all of it"
        decided.settle(FIELD, True, "", if_asked=words)
        return
    if divided:
        reason = f"the base does not fit whole; each of {world} processes holds {share} of {saved}"
        rejected = (Rejected(value="False", reason=f"does not fit: {show_bytes(whole)} of {show_bytes(budget)}"),)
        decided.settle(FIELD, True, reason, rejected)
        return
    reason = "one process holds all of it"
    if world > 1:
        fits = chosen.peak_bytes <= budget
        reason = "the base fits whole into each process" if fits else "divided it does not fit either"
        if not fits and not can_divide(decided.recipe, question.facts):
            reason = next(why for _, _, why, _ in _against(decided.recipe, question.facts))
    decided.settle(FIELD, False, reason)
