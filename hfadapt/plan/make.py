"""The plan: every `auto` of a recipe answered, per cell, with a reason and what was rejected, before any download.

How a cell is run is the fastest configuration that fits its target with the recipe's margin (plan_search.py); the
reasons for each field are in plan_fields.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError
from hfadapt.core.show import show_bytes
from hfadapt.hardware import catalogue
from hfadapt.hardware.catalogue import Target
from hfadapt.models.facts import ModelFacts, model_facts
from hfadapt.plan import student
from hfadapt.plan.device import export_format, format_problems, served, storage_problems, way_there
from hfadapt.plan.disk import disk_bytes
from hfadapt.plan.duration import settle_time
from hfadapt.plan.memory import predict
from hfadapt.plan.memory.part import runs_without_memory
from hfadapt.plan.memory.workload import Workload
from hfadapt.plan.modules import adaptable, module_problems
from hfadapt.plan.pretrain import pretrain_problems, settle_pretrain
from hfadapt.plan.reasons import (
    DEFAULTS,
    Decisions,
    Work,
    optimizer_steps,
    settle_checkpoints,
    settle_compile,
    settle_data,
    settle_evaluation,
    settle_frozen_cache,
    settle_resident,
    settle_storage,
    settle_together,
    settle_training,
)
from hfadapt.plan.search import Candidate, Question, alternatives, best, compile_seconds, reference_seconds, search
from hfadapt.plan.shards import can_divide, settle_shard, shard_problems
from hfadapt.plan.teacher import with_teacher
from hfadapt.plan.tries import alone, plan_search, settle_sharing
from hfadapt.plan.work import of_model, work_of
from hfadapt.recipe.reading import Asked, as_recipe
from hfadapt.recipe.schema import AUTO, THIS_MACHINE, Lock, Recipe
from hfadapt.records.gaps import gaps
from hfadapt.records.plan import CellPlan, Decision, Plan
from hfadapt.records.stages import DataRecord


def make_plan(
    recipe: Asked,
    *,
    data: Mapping[str, DataRecord] | None = None,
    processes: int | None = None,
    sharing: int | None = None,
) -> Plan:
    """The plan of every cell. Reads configs only: no weights, no data.

    Args:
        recipe: What was asked for: a recipe, the path of its file, or what would stand in one as a dict.
        data: Prepared domains by name; lengths and rows of the others are assumed, and `data_basis` says so.
        processes: Training processes; by default the recipe's, or one per device of the target.
        sharing: Domains that may be trained together on one base; by default all that are done.

    Raises:
        RequestError: the model cannot do the task, or something was asked for that a target or method cannot do; all
            such problems at once.

    Example:
        >>> from hfadapt import load_recipe, make_plan
        >>> cell = make_plan(load_recipe("sentiment.yaml")).cells[0]
        >>> cell.peak.total_bytes < cell.budget_bytes
        True
    """
    recipe = as_recipe(recipe)
    problems: list[Problem] = []
    cells: list[CellPlan] = []
    parameters = 0
    machine: Target | None = None
    for domain, name in recipe.cells():
        target = catalogue.target(name)
        if not target.trains or name == THIS_MACHINE:
            machine = machine or catalogue.this_machine()
        trainer = machine if (machine is not None and (not target.trains or name == THIS_MACHINE)) else target
        record = (data or {}).get(domain)
        work = work_of(recipe, domain, record)
        facts = model_facts(recipe.model, recipe.task, work.labels)
        work = of_model(work, facts, record)
        parameters = max(parameters, facts.parameters)
        found = [
            *_impossible(recipe, trainer),
            *_unknown_to_model(recipe, facts),
            *pretrain_problems(recipe, domain, facts),
            *shard_problems(recipe, facts),
            *format_problems(recipe, target, facts),
        ]
        problems.extend(problem for problem in found if problem not in problems)
        if not found:
            count = len(recipe.chosen) if sharing is None else sharing
            own = recipe.model_copy(update={"pretrain": recipe.pretrain_of(domain)})
            cells.append(_plan_cell(own, domain, target, trainer, facts, work, processes, count))
            cells[-1] = with_teacher(cells[-1], own, facts, work)
            if record is not None:
                cells[-1] = cells[-1].model_copy(update={"data_gaps": gaps(record)})
            if recipe.student is not None:
                cells[-1] = _with_student(cells[-1], own, trainer, facts, work, processes)
            if recipe.export.storage is not None:
                found = storage_problems(recipe, target, facts, lock(recipe, cells[-1]))
                problems.extend(problem for problem in found if problem not in problems)
    if problems:
        raise RequestError("the recipe asks for what its targets cannot do", problems=problems)
    unit = registry.modality_of(recipe.task).unit
    return Plan(recipe=recipe.name, model=recipe.model, parameters=parameters, unit=unit, cells=tuple(cells))


def lock(recipe: Recipe, cell: CellPlan) -> Lock:
    """The recipe of one cell with every `auto` replaced by the plan's value; it can be run again as it is."""
    fields = recipe.model_dump(mode="json")
    fields["domains"] = {cell.domain: fields["domains"][cell.domain]}
    fields["targets"] = [cell.target]
    asked = recipe.pretrain_of(cell.domain)
    fields["pretrain"] = asked.model_dump(mode="json") if asked else None
    for decision in cell.decisions:
        *sections, last = decision.field.split(".")
        place = fields
        for section in sections:
            place = place[section]
        place[last] = decision.value
    prior = next((each.value for each in cell.decisions if each.field == "train.learning_rate"), 0.0)
    tried = recipe.searched(prior)
    fields["search"] = tried.model_dump(mode="json") if tried else None
    return Lock.model_validate(fields)


# --- what is asked for -----------------------------------------------------------------------------------------------


def _impossible(recipe: Recipe, target: Target) -> list[Problem]:
    """Everything that was asked for and cannot be done on this target."""
    found = []
    if recipe.dtype not in (AUTO, *target.dtypes):
        found.append(
            Problem(
                f"{target.name} has no {recipe.dtype}",
                place="dtype",
                got=recipe.dtype,
                allowed=", ".join(target.dtypes),
                fix="leave dtype: auto, so that each target gets what it can do",
            )
        )
    if recipe.quant not in (AUTO, *target.quants):
        found.append(
            Problem(
                f"there is no {recipe.quant} on {target.name}",
                place="quant",
                got=recipe.quant,
                allowed=", ".join(target.quants),
                fix="leave quant: auto, so that each target gets what it can do",
            )
        )
    method = registry.adapter(DEFAULTS["adapter.method"][0] if recipe.adapter.method == AUTO else recipe.adapter.method)
    sharing = [name for name in registry.names("adapters") if registry.adapter(name).shares_base]
    if recipe.train.together is True and not (recipe.train.fast.low_rank and method.shares_base):
        found.append(
            Problem(
                "these adapters cannot be co-trained",
                place="train.together",
                got=f"adapter.method {method.name}, train.fast.low_rank {recipe.train.fast.low_rank}".lower(),
                allowed=f"method {' or '.join(sharing)}, with train.fast.low_rank",
                fix="leave train.together: auto",
            )
        )
    if recipe.adapter.method != AUTO and recipe.quant != AUTO:
        method = registry.adapter(recipe.adapter.method)
        if not method.works_on(registry.quant(recipe.quant)):
            found.append(
                Problem(
                    f"{method.name} does not work on a {recipe.quant} base: {method.reason}",
                    place="adapter.method",
                    got=f"{method.name} with quant {recipe.quant}",
                    allowed=f"quant: {', '.join(sorted(method.quants))}",
                    fix="leave quant: auto, or choose another adapter method",
                )
            )
    return found


def _unknown_to_model(recipe: Recipe, facts: ModelFacts) -> list[Problem]:
    """What was asked for and this architecture cannot do."""
    found = []
    if recipe.train.checkpointing is True and not facts.recomputes:
        found.append(
            Problem(
                f"{facts.architecture} has no activation checkpointing",
                place="train.checkpointing",
                got="true",
                allowed="false, auto",
                fix="leave train.checkpointing: auto; a smaller train.micro_batch_rows saves memory too",
            )
        )
    found += _without_linear_layers(recipe, facts) if facts.pointwise or not facts.linears else []
    layers, several = recipe.adapter.layers, facts.stacks != 1
    if layers != AUTO and (several or layers > facts.layers):
        why = "not one list of layers, so there are no last ones" if several else f"{facts.layers} layers"
        found.append(
            Problem(
                f"{facts.architecture} has {why}",
                place="adapter.layers",
                got=str(layers),
                allowed="auto" if several else f"1 to {facts.layers}, auto",
                fix="leave adapter.layers: auto, which adapts all",
            )
        )
    asked, most = recipe.data.max_length, facts.max_positions
    if asked != AUTO and most and asked > most and (facts.position_table or not runs_without_memory(facts, asked)):
        found.append(
            Problem(
                f"{facts.architecture} has {most} positions",
                place="data.max_length",
                got=str(asked),
                allowed=f"at most {most}, auto",
                fix=f"lower data.max_length to {most}; longer rows are cut",
            )
        )
    if recipe.adapter.modules != AUTO:
        found.extend(module_problems(facts, recipe.adapter.modules))
    return found


def _without_linear_layers(recipe: Recipe, facts: ModelFacts) -> list[Problem]:
    """What was asked for and needs linear layers, of a model that has none."""
    found = []
    quant, method = recipe.quant, recipe.adapter.method
    if quant != AUTO and registry.quant(quant).quantised:
        what = f"{facts.architecture} has no linear layers that could be stored in {quant}"
        plain = ", ".join(name for name in registry.names("quants") if not registry.quant(name).quantised)
        found.append(Problem(what, place="quant", got=quant, allowed=f"{plain}, auto", fix="leave quant: auto"))
    beside = bool((able := adaptable(facts)).names)
    fit = [
        name
        for name in registry.names("adapters")
        if (kind := registry.adapter(name)).convolves and (beside or not kind.adapts_layers)
    ]
    if method != AUTO and method not in fit:
        what = f"{method} does not adapt convolutions" if beside else able.reason
        allowed, fix = ", ".join(fit), "leave adapter.method: auto"
        found.append(Problem(what, place="adapter.method", got=method, allowed=allowed, fix=fix))
    return found


# --- one cell --------------------------------------------------------------------------------------------------------


def _plan_cell(  # noqa: PLR0913 - all that a cell is planned from
    recipe: Recipe,
    domain: str,
    target: Target,
    trainer: Target,
    facts: ModelFacts,
    work: Work,
    processes: int | None,
    sharing: int,
) -> CellPlan:  # long: every setting in the order in which one hangs on another
    decided = Decisions(recipe)
    length = settle_data(decided, facts, work)
    settle_training(decided, recipe, facts, work)
    world = _processes(recipe, trainer, processes, decided.value("train.batch_rows"))
    question = _question(decided, trainer, facts, work, length, world)
    budget = question.budget_bytes
    candidates, chosen = _searched(question)
    whole = chosen.peak_bytes
    if world > 1 and recipe.train.shard is not False and can_divide(recipe, facts):
        divided = replace(question, shards=world)
        if recipe.train.shard is True or whole > budget:
            found, one = _searched(divided)
            if recipe.train.shard is True or one.peak_bytes <= budget:
                question, candidates, chosen = divided, found, one
    settle_storage(decided, question, chosen, candidates)
    settle_shard(decided, question, chosen, world, whole)
    if recipe.searched(1.0):
        chosen = settle_sharing(decided, question, chosen)
    else:
        chosen = settle_together(decided, question, chosen, sharing)
    chosen = settle_resident(decided, question, chosen)
    chosen = settle_compile(decided, question, chosen, optimizer_steps(recipe, work, decided))
    chosen = settle_frozen_cache(decided, question, chosen, work)
    chosen, lost = settle_time(decided, question, chosen, work)
    tries = plan_search(decided, question, chosen, work)
    settle_checkpoints(decided, chosen)
    settle_evaluation(decided, recipe, facts, chosen, work, budget)
    decided.made.append(_of_processes(world, trainer, "processes" in recipe.model_fields_set or processes is not None))
    final = chosen.workload.model_copy(update={"evaluate_rows": decided.value("evaluate.batch_rows")})
    before = settle_pretrain(decided, question, chosen, work, world)
    phases = (*predict.predict(facts, final), *([before.memory] if before else []))
    fits = max(phase.total_bytes for phase in phases) <= budget
    nearest = () if fits else tuple(alternatives(question, final))
    one = alone(question, chosen) if tries else chosen
    seconds, rate = _time(question, one, work, decided)
    exports = served(target, recipe.budgets.get(target.name), facts, length)
    would = student.written(exports, export_format(recipe, target, facts), recipe.export.storage)
    leaves, cut = not would or any(each.fits for each in would), ""
    if not leaves and recipe.student is not None:
        leaves, cut = student.promised(recipe, target, facts, length)
    elif not leaves:
        least = min(would, key=lambda each: each.bytes)
        cut = f"no form of the export would fit; {least.form} of {show_bytes(least.bytes)} {least.verdict}"
    warnings = [
        # What is the matter comes first.
        *([cut] if cut else []),
        *way_there(target, exports, facts),
        *lost,
        *_doubts(trainer, facts, final),
        *base_notes(facts, work, length),
        *(before.warnings if before else ()),
    ]
    if trainer.devices > 1 and world < trainer.devices:
        warnings.append(f"{world} of {trainer.devices} devices are used: the effective batch cannot be split further")
    return CellPlan(
        domain=domain,
        target=target.name,
        decisions=tuple(decided.made),
        memory=phases,
        merge=predict.predict_merge(facts, final),
        budget_bytes=budget,
        margin=recipe.memory_margin,
        disk=disk_bytes(predict.trained_parameters(facts, final), final.optimizer, facts.parameters, would),
        fits=fits and leaves,
        trains_on=trainer.name,
        predicted_seconds=seconds,
        predicted_tokens_per_second=rate,
        pretrain_seconds=before.seconds if before else None,
        data_basis=work.basis,
        alternatives=nearest,
        exports=exports,
        search=tries,
        warnings=tuple(warnings),
    )


def _searched(question: Question) -> tuple[list[Candidate], Candidate]:
    """What was looked at, and the best that fits, or what needs the least."""
    candidates = search(question)
    fitting = [c for c in candidates if c.peak_bytes <= question.budget_bytes]
    return candidates, best(fitting) if fitting else min(candidates, key=lambda one: one.peak_bytes)


def _with_student(
    cell: CellPlan, recipe: Recipe, trainer: Target, facts: ModelFacts, work: Work, processes: int | None
) -> CellPlan:
    """With what it takes at most to train the student, after the adapter."""
    asked = recipe.student
    assert asked is not None
    if asked.base is not None:
        facts = model_facts(asked.base, recipe.task, work.labels)
    own = student.learning(recipe, facts.parameters, {"teacher": "."})
    plan = _plan_cell(own, cell.domain, trainer, trainer, facts, work, processes, 1)
    tries = asked.tries if asked.open else 1
    rounds = asked.int8 == AUTO and bool(cell.exports)
    words = student.said(plan, tries, again=asked.on_policy, rounds=rounds)
    return cell.model_copy(
        update={
            "disk": {**cell.disk, "student": sum(plan.disk.values())},
            "student_seconds": student.seconds(plan, tries, again=asked.on_policy),
            "warnings": (*cell.warnings, words),
        }
    )


def _question(decided: Decisions, trainer: Target, facts: ModelFacts, work: Work, length: int, world: int) -> Question:
    """What is settled before the search over configurations."""
    # Processes on a CPU share its memory; on cards each has its own.
    share = trainer.budget_bytes // world if trainer.on_cpu else trainer.budget_bytes
    budget = int(share * (1 - decided.recipe.memory_margin))
    return Question(
        recipe=decided.recipe,
        facts=facts,
        target=trainer,
        budget_bytes=budget,
        method=decided.value("adapter.method"),
        rank=decided.value("adapter.rank"),
        modules=tuple(decided.value("adapter.modules")),
        layers=decided.value("adapter.layers"),
        optimizer=decided.value("train.optimizer"),
        dropout=decided.value("adapter.dropout") > 0,
        length_tokens=min(length, work.longest_tokens),
        labelled_tokens=work.labelled_tokens,
        mean_tokens=min(length, work.mean_tokens),
        parts=math.ceil(work.parts),
        rows=max(1, math.ceil(decided.value("train.batch_rows") / world)),
    )


def _doubts(trainer: Target, facts: ModelFacts, final: Workload) -> list[str]:
    """Why the predicted memory or time may not hold."""
    found = []
    if trainer.busy:
        found.append("the machine was busy when its speed was measured: training may be quicker, see hfadapt doctor")
    if trainer.on_cpu and not final.malloc_tuned:
        found.append("glibc malloc is not tuned, expect 1.3 to 4x the predicted peak: see hfadapt doctor")
    if not predict.is_traced(facts, final):
        found.append("a step of this model could not be traced: its memory is a rough estimate")
    if trainer.on_cpu and facts.experts:
        found.append(
            "experts on a CPU: a kernel is kept for each token count of an expert; these hundreds of MiB grow with the "
            "steps and are not predicted"
        )
    return found


def _processes(recipe: Recipe, trainer: Target, processes: int | None, batch_rows: int) -> int:
    """As asked, else one per device of a catalogued target; always a divisor of the effective batch."""
    if processes is not None:
        return processes
    if "processes" in recipe.model_fields_set or trainer.name == THIS_MACHINE:
        return recipe.processes
    return max(n for n in range(1, trainer.devices + 1) if batch_rows % n == 0)


def _of_processes(world: int, trainer: Target, asked: bool) -> Decision:
    reason = f"one for each of {trainer.devices} devices" if world > 1 else "one device"
    return Decision(field="processes", value=world, asked=asked, reason=reason)


def _time(question: Question, chosen: Candidate, work: Work, decided: Decisions) -> tuple[float | None, float | None]:
    """Rough seconds of the whole training and tokens per second over all processes."""
    if not chosen.seconds_per_step:
        return None, None
    rows = decided.value("train.batch_rows")
    tokens = min(work.mean_tokens, chosen.workload.length_tokens) * work.parts
    rate = rows * tokens / chosen.seconds_per_step
    if decided.recipe.train.max_steps is None and work.rows is None and decided.recipe.train.time is None:
        return None, rate
    steps = optimizer_steps(decided.recipe, work, decided)
    once = compile_seconds(chosen.workload) + reference_seconds(question, chosen, work.rows)
    return steps * chosen.seconds_per_step + once, rate


def base_notes(facts: ModelFacts, work: Work, length: int) -> list[str]:
    """What a user may not expect of this base, in a line each."""
    found = [facts.head.note(registry.task(facts.task), work.names, facts.architecture)]
    if facts.max_positions and length > facts.max_positions:
        found.append(f"rows of {length} tokens are longer than the {facts.max_positions} that this base was made for")
    return [note for note in found if note]
