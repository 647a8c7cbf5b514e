"""What is decided about the adaptation to texts before the task: by which objective, how long, in which memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

from hfadapt.core import registry
from hfadapt.core.errors import Problem
from hfadapt.core.show import show_seconds
from hfadapt.models.facts import ModelFacts, model_facts
from hfadapt.plan.memory import predict
from hfadapt.plan.memory.workload import Workload
from hfadapt.plan.reasons import ASSUMED_ROWS, Decisions, Work
from hfadapt.plan.search import Candidate, Question, step_seconds
from hfadapt.recipe.schema import AUTO, Recipe
from hfadapt.records.plan import PhaseMemory, Rejected

if TYPE_CHECKING:
    from hfadapt.objectives import SelfSupervised

EPOCHS, LEAST_STEPS, MOST_EPOCHS = 3, 100, 20
"""A few texts are gone through until so many steps are done, but not more often than this."""
ENCODER_RATE = 2e-4
"""Of encoders, at most. MiniLM on texts of diagnoses, 200 steps of TSDAE, then the task with 100 labelled rows, 3
seeds: an accuracy of 0.561 without became 0.577 after this rate and 0.351 after 2e-3 (benchmarks/pretrain.py)."""
LOGIT_BYTES = 12
"""Of a decoder's output: float32, its log-probabilities, and its gradient."""


class Phase(NamedTuple):
    """The adaptation as it is predicted."""

    memory: PhaseMemory
    seconds: float | None
    warnings: tuple[str, ...]


def objectives(facts: ModelFacts) -> dict[str, str | None]:
    """Every way to learn from texts without labels, and why the base cannot; in the order in which they are tried."""
    found = map(registry.objective, registry.names("objectives"))
    able = [cast("SelfSupervised", each) for each in found if each.self_supervised]
    able.sort(key=lambda each: (each.rank, each.name))
    if not registry.modality_of(facts.task).tokens:
        # Whatever else the base could be loaded as: encoders of speech have vocabularies, too.
        return {each.name: "its task reads no text" for each in able}
    return {each.name: each.unfit(facts) for each in able}


def pretrain_problems(recipe: Recipe, domain: str, facts: ModelFacts) -> list[Problem]:
    """What was asked for and this base cannot learn from texts."""
    settings = recipe.pretrain_of(domain)
    if settings is None:
        return []
    known = objectives(facts)
    fitting = [name for name, why in known.items() if why is None]
    asked = settings.objective
    if fitting and (asked == AUTO or asked in fitting):
        return []
    why = "; ".join(f"{name}: {each}" for name, each in known.items() if each and asked in (AUTO, name))
    return [
        Problem(
            f"{facts.architecture} cannot learn from texts so",
            place="pretrain.objective",
            got=f"{asked}; {why}",
            allowed=", ".join(fitting) or "nothing for this base",
            fix=f"set pretrain.objective: {fitting[0]}, or leave it auto" if fitting else "delete `pretrain`",
        )
    ]


def settle_pretrain(decided: Decisions, question: Question, chosen: Candidate, work: Work, world: int) -> Phase | None:
    """Decides what `pretrain` leaves open; None where the domain has none.

    Args:
        decided: With the recipe of one domain, which has the domain's own `pretrain`.
        world: Processes that share the rows of a step.
    """
    settings = decided.recipe.pretrain
    if settings is None:
        return None
    known = objectives(question.facts)
    fitting = next(name for name, why in known.items() if why is None)
    objective = cast("SelfSupervised", registry.objective(fitting))
    not_able = tuple(Rejected(value=name, reason=why) for name, why in known.items() if why)
    others = [name for name, why in known.items() if why is None and name != fitting]
    rejected = (
        *not_able,
        *(Rejected(value=name, reason=f"it can be asked for: {fitting} goes first") for name in others),
    )
    name = decided.settle("pretrain.objective", fitting, objective.because, rejected)
    objective = cast("SelfSupervised", registry.objective(name))
    batch = decided.settle("pretrain.batch_rows", decided.value("train.batch_rows"), "as in training")
    rate, reason = decided.value("train.learning_rate"), "as in training, where it is warmed up again"
    if rate > ENCODER_RATE and not question.facts.generates:
        rate, reason = ENCODER_RATE, "what an encoder knows is unlearned at the higher one of training"
    decided.settle("pretrain.learning_rate", rate, reason)
    length = int(decided.value("data.max_length"))
    rows, mean = _pieces(work, length)
    often = min(MOST_EPOCHS, max(EPOCHS, math.ceil(LEAST_STEPS * batch / rows)))
    few = f"{rows:,} texts are few, so that {LEAST_STEPS} steps are made" if often > EPOCHS else f"{rows:,} texts"
    few = f"{rows:,} texts, as often as pretrain.max_steps lets them be met" if settings.max_steps else few
    epochs = decided.settle("pretrain.epochs", float(often), few if work.texts else "texts are not read yet")
    steps = settings.max_steps or math.ceil(epochs * math.ceil(rows / max(batch, objective.text_rows)))
    facts = model_facts(question.facts.model, objective.loaded_as(question.facts.task), work.labels)
    workload = chosen.workload.model_copy(
        update={
            "objective": name,
            "adapters": 1,
            "length_tokens": max(8, min(length, work.texts.longest if work.texts else length)),
            "labelled_tokens": math.ceil(objective.labelled_share * mean),
        }
    )
    micro, memory = _that_fits(objective, facts, workload, -(-batch // world), question.budget_bytes)
    decided.settle_value("pretrain.micro_batch_rows", micro, "as many as fit")
    once = step_seconds(facts, workload, question.target, -(-batch // world), mean)
    seconds = None if once is None else once * steps * objective.passes
    if seconds is not None:
        decided.because("pretrain.epochs", f"{steps:,} steps, about {show_seconds(seconds)}")
    warnings = []
    if objective.generates and not settings.general:
        warnings.append(
            "no general text is mixed into the texts, so the base may forget some of what it knew: name some in "
            "pretrain.general"
        )
    return Phase(memory, seconds, tuple(warnings))


def _pieces(work: Work, length: int) -> tuple[int, float]:
    """How many pieces of at most `length` tokens the texts are, and the mean tokens of one."""
    if work.texts is None:
        return work.rows or ASSUMED_ROWS, min(length, work.mean_tokens)
    rows = max(work.texts.rows, math.ceil(work.texts.tokens / length))
    return rows, work.texts.tokens / rows


def _that_fits(
    objective: SelfSupervised, facts: ModelFacts, workload: Workload, rows: int, budget: int
) -> tuple[int, PhaseMemory]:
    """Texts at once, as in training or fewer, and the memory for them."""
    micro = max(objective.text_rows, min(rows, workload.micro_batch_rows))
    while True:
        work = workload.model_copy(update={"micro_batch_rows": math.ceil(micro * objective.passes)})
        found = next(phase for phase in predict.predict(facts, work) if phase.phase == "train")
        parts = dict(found.parts)
        if objective.own_decoder:
            parts["logits"] += micro * work.labelled_tokens * facts.vocab_size * LOGIT_BYTES
        memory = found.model_copy(update={"phase": "pretrain", "parts": parts})
        if memory.total_bytes <= budget or micro <= objective.text_rows:
            return micro, memory
        micro = max(objective.text_rows, micro // 2)
