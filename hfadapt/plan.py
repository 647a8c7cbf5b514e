"""The plan: every `auto` of a recipe answered, per cell, with a reason and what was rejected, before any download.

What is learned (data, adapter, hyper-parameters, effective batch) never depends on the target; how it is run (storage,
checkpointing, micro-batch) is the fastest configuration that fits there with the recipe's margin (plan_search.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hfadapt import hardware, kinds, memory
from hfadapt.errors import Problem, RequestError
from hfadapt.facts import ModelFacts, model_facts
from hfadapt.hardware import Target
from hfadapt.memory import Workload
from hfadapt.plan_search import (
    Candidate,
    Question,
    alternatives,
    best,
    resident,
    search,
    shared,
    storages_of,
    stored_bytes,
)
from hfadapt.recipe import AUTO, THIS_MACHINE, Lock, Recipe
from hfadapt.records import CellPlan, DataRecord, Decision, Lengths, Plan, Rejected
from hfadapt.show import show_bytes, show_seconds

# --- default hyper-parameters, with their reasons --------------------------------------------------------------------

SMALL_ENCODER_PARAMETERS = 100_000_000
SMALL_LM_PARAMETERS = 500_000_000


DEFAULTS: dict[str, tuple[Any, str]] = {
    "adapter.method": ("lora", "reaches full fine-tuning on most tasks at under 1 % of its trained weights"),
    "adapter.rank": (16, "ranks above 16 rarely gain on data sets of this size"),
    "adapter.alpha": (32.0, "twice the rank, so the learning rate keeps its meaning when the rank changes"),
    "adapter.dropout": (0.0, "short runs with few trained weights do not overfit enough to need it"),
    "adapter.modules": (("all-linear",), "adapting every linear layer beats more rank on fewer of them"),
    "train.schedule": ("linear", "falls to zero, so the last weights are settled"),
    "train.warmup_ratio": (0.06, "lets the optimizer's second moments settle before full steps"),
    "train.weight_decay": (0.0, "low-rank adapters are small already"),
    "train.optimizer": ("adamw", "its states exist for trained weights only, so they are small"),
}
ENCODER_DEFAULTS: dict[str, tuple[Any, str]] = {
    "train.learning_rate": (3e-4, "usual for LoRA on encoders of 100 M parameters and more"),
    "train.batch_rows": (16, "many optimizer steps per pass matter more than a large batch on small data"),
    "train.epochs": (2.0, "one pass leaves a fresh head short of training; more passes gain little"),
}
LM_DEFAULTS: dict[str, tuple[Any, str]] = {
    "train.learning_rate": (2e-4, "usual for LoRA on language models"),
    "train.batch_rows": (16, "many optimizer steps per pass matter more than a large batch on small data"),
    "train.epochs": (1.0, "language models memorise repeated rows quickly"),
}
ALL_LINEAR = "all-linear"
FUSED_MODEL_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
FUSED_MODULES = ("conv1d", "out_proj")
"""Layers of these model types that peft refuses (peft/tuners/tuners_utils.py)."""
ASSUMED_TOKENS = {"causal-lm": 512}
ASSUMED_TOKENS_OTHERWISE = 128
ASSUMED_ROWS = 2000
ASSUMED_LABELS = 3
EVALUATIONS = 4
CHECKPOINT_SECONDS = 60.0
TOGETHER_GAIN = 1.1
"""Domains are trained together when that is faster than one after the other by this much."""
LONGEST_TOKENS = 4096
"""An automatic length never exceeds this; longer ones must be asked for."""


@dataclass(frozen=True)
class Work:
    """What the data asks for: token lengths, rows, labels, and where these figures come from."""

    basis: str
    longest_tokens: int
    mean_tokens: float
    labelled_tokens: int
    rows: int | None
    labels: int
    small_label_set: bool
    lengths: Lengths | None = None


@dataclass
class Decisions:
    """Collects decisions in order; a field that the user set is taken over as it is."""

    recipe: Recipe
    made: list[Decision] = field(default_factory=list)

    def asked(self, name: str) -> Any:
        """The value in the recipe, or None when it is `auto`."""
        value: Any = self.recipe
        for part in name.split("."):
            value = getattr(value, part)
        return None if value == AUTO else value

    def settle(self, name: str, value: Any, reason: str, rejected: tuple[Rejected, ...] = ()) -> Any:
        """Records and returns the value of a field."""
        asked = self.asked(name)
        if asked is not None:
            self.made.append(Decision(field=name, value=asked, asked=True, reason="set in the recipe"))
            return asked
        self.made.append(Decision(field=name, value=value, asked=False, reason=reason, rejected=rejected))
        return value

    def default(self, name: str, table: Mapping[str, tuple[Any, str]]) -> Any:
        """Settles a field from a table of defaults."""
        value, reason = table[name]
        return self.settle(name, value, reason)

    def value(self, name: str) -> Any:
        """A value settled before."""
        return next(decision.value for decision in self.made if decision.field == name)


def make_plan(
    recipe: Recipe,
    *,
    data: Mapping[str, DataRecord] | None = None,
    processes: int | None = None,
    sharing: int | None = None,
) -> Plan:
    """The plan of every cell. Reads configs only: no weights, no data.

    Args:
        recipe: What was asked for.
        data: Prepared domains by name; lengths and rows of the others are assumed, and `data_basis` says so.
        processes: Training processes; by default the recipe's, or one per device of the target.
        sharing: Domains that may be trained together on one base; by default all of the recipe.

    Raises:
        RequestError: the model cannot do the task, or something was asked for that a target or method cannot do; all
            such problems at once.
    """
    problems: list[Problem] = []
    cells: list[CellPlan] = []
    parameters = 0
    machine: Target | None = None
    for domain, name in recipe.cells():
        target = hardware.target(name)
        if not target.trains or name == THIS_MACHINE:
            machine = machine or hardware.this_machine()
        trainer = machine if (machine is not None and (not target.trains or name == THIS_MACHINE)) else target
        work = _work(recipe, domain, (data or {}).get(domain))
        facts = model_facts(recipe.model, recipe.task, work.labels)
        parameters = max(parameters, facts.parameters)
        found = [*_impossible(recipe, trainer), *_unknown_to_model(recipe, facts)]
        problems.extend(problem for problem in found if problem not in problems)
        if not found:
            count = len(recipe.domains) if sharing is None else sharing
            cells.append(_plan_cell(recipe, domain, target, trainer, facts, work, processes, count))
    if problems:
        raise RequestError("the recipe asks for what its targets cannot do", problems=problems)
    return Plan(recipe=recipe.name, model=recipe.model, parameters=parameters, cells=tuple(cells))


def lock(recipe: Recipe, cell: CellPlan) -> Lock:
    """The recipe of one cell with every `auto` replaced by the plan's value; it can be run again as it is."""
    fields = recipe.model_dump(mode="json")
    fields["domains"] = {cell.domain: fields["domains"][cell.domain]}
    fields["targets"] = [cell.target]
    for decision in cell.decisions:
        *sections, last = decision.field.split(".")
        place = fields
        for section in sections:
            place = place[section]
        place[last] = decision.value
    return Lock.model_validate(fields)


# --- what is asked for -----------------------------------------------------------------------------------------------


def _work(recipe: Recipe, domain: str, record: DataRecord | None) -> Work:
    """Lengths and rows from the prepared data, else assumptions."""
    asked = recipe.domains[domain]
    generative = recipe.task == "causal-lm"
    if record is not None and "train" in record.lengths:
        lengths = record.lengths["train"]
        labelled = lengths.mean
        if record.completions:
            # At most two characters a token, with the end token and one to spare.
            labelled = max(len(text) for text in record.completions.values()) / 2 + 2
        if record.audit is not None and record.audit.rows:
            labelled = record.audit.labelled_tokens / record.audit.rows
        return Work(
            basis=f"{lengths.rows:,} training rows of {lengths.mean:.0f} tokens in the mean, {lengths.longest} at most",
            longest_tokens=lengths.longest,
            mean_tokens=lengths.mean,
            labelled_tokens=math.ceil(labelled),
            rows=record.splits.get("train", lengths.rows) + (record.canaries.rows if record.canaries else 0),
            labels=len(record.labels) or 2,
            small_label_set=bool(record.labels),
            lengths=lengths,
        )
    longest = ASSUMED_TOKENS.get(recipe.task, ASSUMED_TOKENS_OTHERWISE)
    labels = len(asked.labels) if asked.labels else ASSUMED_LABELS
    template = recipe.template_of(domain)
    from_label = bool(template and template.completion and "{label}" in template.completion)
    return Work(
        basis=f"not prepared yet: rows of up to {longest} tokens assumed",
        longest_tokens=longest,
        mean_tokens=longest / 2,
        labelled_tokens=longest // 2 if generative and not from_label else 8,
        rows=recipe.data.train_rows,
        labels=labels,
        small_label_set=bool(asked.labels) or from_label,
    )


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
    if recipe.quant not in (AUTO, "none", *target.quants):
        found.append(
            Problem(
                f"bitsandbytes stores no {recipe.quant} on {target.name}",
                place="quant",
                got=recipe.quant,
                allowed=", ".join(("none", *target.quants)),
                fix="leave quant: auto, so that each target gets what it can do",
            )
        )
    method = kinds.load("adapters", "lora" if recipe.adapter.method == AUTO else recipe.adapter.method)
    if recipe.train.together is True and not (recipe.train.fast and method.shares_base):
        found.append(
            Problem(
                "these adapters cannot be trained together",
                place="train.together",
                got=f"adapter.method {method.name}, train.fast {recipe.train.fast}".lower(),
                allowed="method lora or rslora, with train.fast",
                fix="leave train.together: auto",
            )
        )
    if recipe.adapter.method != AUTO and recipe.quant != AUTO:
        method = kinds.load("adapters", recipe.adapter.method)
        if recipe.quant not in method.quants:
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
                f"{facts.architecture} knows no activation checkpointing",
                place="train.checkpointing",
                got="true",
                allowed="false, auto",
                fix="leave train.checkpointing: auto; a smaller train.micro_batch_rows saves memory too",
            )
        )
    asked = () if recipe.adapter.modules == AUTO else recipe.adapter.modules
    barred = [name for name in asked if name == ALL_LINEAR or name in FUSED_MODULES] if _fused(facts) else []
    if barred:
        found.append(
            Problem(
                f"{facts.model_type} reads some weights in a fused kernel, where an adapter would be left out",
                place="adapter.modules",
                got=", ".join(barred),
                allowed=", ".join(_adaptable(facts)),
                fix="leave adapter.modules: auto",
            )
        )
    return found


def _fused(facts: ModelFacts) -> bool:
    return facts.model_type in FUSED_MODEL_TYPES


def _adaptable(facts: ModelFacts) -> tuple[str, ...]:
    """The linear layers that can be adapted, by name; where that is all of them, the word for it."""
    if not _fused(facts):
        return (ALL_LINEAR,)
    return tuple(dict.fromkeys(linear.name for linear in facts.linears if linear.name not in FUSED_MODULES))


# --- one cell --------------------------------------------------------------------------------------------------------


def _plan_cell(
    recipe: Recipe,
    domain: str,
    target: Target,
    trainer: Target,
    facts: ModelFacts,
    work: Work,
    processes: int | None,
    sharing: int,
) -> CellPlan:
    decided = Decisions(recipe)
    length = _settle_data(decided, facts, work)
    _settle_training(decided, recipe, facts, work)
    world = _processes(recipe, trainer, processes, decided.value("train.batch_rows"))
    # Processes on a CPU share its memory; on cards each has its own.
    share = trainer.budget_bytes // world if trainer.on_cpu else trainer.budget_bytes
    budget = int(share * (1 - recipe.memory_margin))
    question = Question(
        recipe=recipe,
        facts=facts,
        target=trainer,
        budget_bytes=budget,
        method=decided.value("adapter.method"),
        rank=decided.value("adapter.rank"),
        modules=tuple(decided.value("adapter.modules")),
        optimizer=decided.value("train.optimizer"),
        length_tokens=min(length, work.longest_tokens),
        labelled_tokens=work.labelled_tokens,
        mean_tokens=min(length, work.mean_tokens),
        rows=max(1, math.ceil(decided.value("train.batch_rows") / world)),
    )
    candidates = search(question)
    fitting = [c for c in candidates if c.peak_bytes <= budget]
    chosen = best(fitting) if fitting else min(candidates, key=lambda one: one.peak_bytes)
    _settle_storage(decided, question, chosen, candidates)
    chosen = _settle_together(decided, question, chosen, sharing)
    chosen = _settle_resident(decided, question, chosen)
    _settle_checkpoints(decided, chosen)
    _settle_evaluation(decided, recipe, facts, chosen, work, budget)
    decided.made.append(
        Decision(
            field="processes",
            value=world,
            asked="processes" in recipe.model_fields_set or processes is not None,
            reason=f"one for each of {trainer.devices} devices" if world > 1 else "one device",
        )
    )
    final = chosen.workload.model_copy(update={"evaluate_rows": decided.value("evaluate.batch_rows")})
    phases = memory.predict(facts, final)
    peak = max(phase.total_bytes for phase in phases)
    fits = peak <= budget
    nearest = () if fits else tuple(alternatives(question, final))
    seconds, rate = _time(chosen, work, decided, world)
    warnings, served = _served(target, facts)
    if trainer.on_cpu and not final.settled:
        warnings.append("malloc is not set as hfadapt run sets it, so more memory is needed: see hfadapt doctor")
    if not memory.is_traced(facts, final):
        warnings.append("a step of this model could not be traced: the predicted memory is a rough formula's")
    if trainer.on_cpu and facts.experts:
        warnings.append(
            "experts on a CPU: a kernel is compiled and kept for every number of tokens that an expert gets; these "
            "hundreds of MiB, which grow with the steps, are not predicted"
        )
    if trainer.devices > 1 and world < trainer.devices:
        warnings.append(f"{world} of {trainer.devices} devices are used: the effective batch divides no further")
    return CellPlan(
        domain=domain,
        target=target.name,
        decisions=tuple(decided.made),
        memory=phases,
        merge=memory.predict_merge(facts, final),
        budget_bytes=budget,
        margin=recipe.memory_margin,
        fits=fits and served,
        trains_on=trainer.name,
        predicted_seconds=seconds,
        predicted_tokens_per_second=rate,
        data_basis=work.basis,
        alternatives=nearest,
        warnings=tuple(warnings),
    )


def _settle_data(decided: Decisions, facts: ModelFacts, work: Work) -> int:
    cap = min(facts.max_positions or LONGEST_TOKENS, LONGEST_TOKENS)
    longest = min(cap, -(-work.longest_tokens // 8) * 8)
    reason = f"{work.basis}; rounded up to a multiple of 8"
    if longest < work.longest_tokens:
        reason = f"{work.basis}; longer ones are cut, as {cap} tokens is the most that is planned for this model"
    rejected = []
    if work.lengths is not None and work.lengths.p95 + 8 < longest:
        rejected.append(Rejected(value=str(-(-work.lengths.p95 // 8) * 8), reason="would cut 5 % of the rows"))
    length = int(decided.settle("data.max_length", max(8, longest), reason, tuple(rejected)))
    packs = kinds.load("tasks", decided.recipe.task).packs and decided.recipe.train.fast
    reason = "rows stand one after the other without padding, attention stays inside each"
    if not packs:
        reason = "rows are sorted by length and padded to the longest of their micro-batch only"
    decided.settle("data.packing", packs, reason)
    return length


def _settle_training(decided: Decisions, recipe: Recipe, facts: ModelFacts, work: Work) -> None:
    generative = facts.generates
    table = {**DEFAULTS, **(LM_DEFAULTS if generative else ENCODER_DEFAULTS)}
    if not generative and facts.parameters < SMALL_ENCODER_PARAMETERS:
        reason = "as good as 1e-3, at which some domains fall back to their largest class"
        table["train.learning_rate"] = (5e-4, reason)
    if generative and facts.parameters < SMALL_LM_PARAMETERS:
        table["train.learning_rate"] = (5e-4, "language models under 500 M parameters bear a higher rate than 2e-4")
    if "adapter.rank" in table and (rank := decided.asked("adapter.rank")) is not None:
        table["adapter.alpha"] = (2.0 * rank, table["adapter.alpha"][1])
    if _fused(facts):
        reason = f"all linear layers but those that {facts.model_type} reads in a fused kernel"
        table["adapter.modules"] = (_adaptable(facts), reason)
    for name in (
        "adapter.method",
        "adapter.rank",
        "adapter.alpha",
        "adapter.dropout",
        "adapter.modules",
        "train.epochs",
        "train.learning_rate",
        "train.schedule",
        "train.warmup_ratio",
        "train.batch_rows",
        "train.weight_decay",
        "train.optimizer",
    ):
        decided.default(name, table)
    rows = work.rows or ASSUMED_ROWS
    in_all = rows * decided.value("train.epochs")
    steps = recipe.train.max_steps or math.ceil(in_all / decided.value("train.batch_rows"))
    every = max(1, steps // EVALUATIONS)
    basis = f"{steps:,} steps" if work.rows or recipe.train.max_steps else f"{rows:,} rows assumed, so {steps:,} steps"
    decided.settle("train.evaluate_every_steps", every, f"about {EVALUATIONS} times in a run: {basis}")


def _processes(recipe: Recipe, trainer: Target, processes: int | None, batch_rows: int) -> int:
    """As asked, else one per device of a catalogued target; always a divisor of the effective batch."""
    if processes is not None:
        return processes
    if "processes" in recipe.model_fields_set or trainer.name == THIS_MACHINE:
        return recipe.processes
    return max(n for n in range(1, trainer.devices + 1) if batch_rows % n == 0)


def _settle_storage(decided: Decisions, question: Question, chosen: Candidate, candidates: list[Candidate]) -> None:
    """Records quant, dtype, micro-batch and checkpointing with what was rejected for each."""
    work, budget, trainer = chosen.workload, question.budget_bytes, question.target

    def others(key: Any) -> tuple[Rejected, ...]:
        """For every other value of a field, the best candidate with it, and why it lost."""
        found: dict[Any, Candidate] = {}
        for candidate in candidates:
            value = key(candidate.workload)
            if value == key(work):
                continue
            rank = (candidate.peak_bytes > budget, candidate.cost)
            best = found.get(value)
            if best is None or rank < (best.peak_bytes > budget, best.cost):
                found[value] = candidate
        return tuple(
            Rejected(value=_value(value), reason=_why(candidate, chosen, budget)) for value, candidate in found.items()
        )[:4]

    fits = chosen.peak_bytes <= budget
    figures = f"peak {show_bytes(chosen.peak_bytes)} of {show_bytes(budget)} usable"
    verdict = "an unquantised base needs more than there is, or is slower" if work.quant != "none" else "it fits"
    if not fits:
        verdict = "nothing that was looked at fits; this needs the least"
    decided_on = (*others(lambda w: w.quant), *_not_tried(question, work, {c.workload.quant for c in candidates}))
    decided.settle("quant", work.quant, f"{verdict}: {figures}", decided_on)
    decided.settle("dtype", work.dtype, _dtype_reason(work, trainer), others(lambda w: (w.quant, w.dtype)))
    decided.settle(
        "train.micro_batch_rows",
        work.micro_batch_rows,
        f"about the fastest that fits; accumulated to the effective batch of {decided.value('train.batch_rows')} rows",
        others(lambda w: w.micro_batch_rows),
    )
    rejected = others(lambda w: w.checkpointing)
    if not question.facts.recomputes:
        rejected = (Rejected(value="True", reason=f"{question.facts.architecture} cannot"),)
    elif not rejected and not work.checkpointing:
        rejected = (Rejected(value="True", reason="not needed: every layer would be computed once more"),)
    reason = "activations of all layers do not fit at this speed" if work.checkpointing else "all activations fit"
    decided.settle("train.checkpointing", work.checkpointing, reason, rejected)


def _settle_checkpoints(decided: Decisions, chosen: Candidate) -> None:
    """With validations, but not more often than every minute: writing one takes about a second."""
    every = decided.value("train.evaluate_every_steps")
    seconds = (chosen.seconds_per_step or CHECKPOINT_SECONDS) * every
    times = max(1, math.ceil(CHECKPOINT_SECONDS / max(seconds, 1e-9)))
    reason = "together with each validation" if times == 1 else "with a validation, about once a minute"
    decided.settle("train.checkpoint_every_steps", every * min(times, EVALUATIONS + 1), reason)


def _settle_together(decided: Decisions, question: Question, chosen: Candidate, sharing: int) -> Candidate:
    """Whether the target's domains are trained at the same time on one base; returns the candidate for that."""
    recipe, budget = question.recipe, question.budget_bytes
    able = kinds.load("adapters", question.method).shares_base and recipe.train.fast
    able = able and not decided.value("adapter.dropout")
    # On CUDA the products of 8-bit layers are peft's, which knows one active adapter.
    able = able and (chosen.workload.quant != "int8" or question.target.on_cpu)
    together = shared(question, chosen, sharing) if able and sharing > 1 else None
    if together is None:
        alone = "there is one domain" if sharing < 2 else f"{question.method} with these settings is trained alone"
        decided.settle("train.together", False, alone)
        return chosen
    gain = (chosen.seconds_per_step or 1.0) / (together.seconds_per_step or 1.0)
    fits = together.peak_bytes <= budget
    peak = show_bytes(together.peak_bytes)
    worth = fits and gain >= TOGETHER_GAIN
    reason = f"{sharing} domains on one base are {gain:.2f} times as fast as one after the other, in {peak}"
    rejected: tuple[Rejected, ...] = ()
    if not worth:
        why = f"only {gain:.2f} times as fast, in {peak}" if fits else f"does not fit: {peak} of {show_bytes(budget)}"
        rejected = (Rejected(value="True", reason=why),)
        reason = "one domain after the other: their batches fill the processor already"
        if not fits:
            reason = "one domain after the other: together they do not fit"
    return together if decided.settle("train.together", worth, reason, rejected) else chosen


def _settle_resident(decided: Decisions, question: Question, chosen: Candidate) -> Candidate:
    """How many layers of a quantised base are kept unpacked beside it while training."""
    work, trainer = chosen.workload, question.target
    # On CUDA the products of 8-bit layers are made in integers, without unpacking.
    unpacks = work.quant in ("nf4", "fp4") or (work.quant == "int8" and trainer.on_cpu)
    method = kinds.load("adapters", question.method)
    if not (unpacks and question.recipe.train.fast and method.has_rank and "use_dora" not in method.options):
        decided.settle("train.resident_layers", 0, "nothing is unpacked for each use")
        return chosen
    asked = decided.asked("train.resident_layers")
    found = resident(question, chosen) if chosen.peak_bytes <= question.budget_bytes else chosen
    count = found.workload.resident_layers
    extra = found.peak_bytes - chosen.peak_bytes
    words = f"unpacked copies of {count} linear layers fit ({show_bytes(extra)}), so steps need not unpack them"
    decided.settle("train.resident_layers", count, words if count else "there is no room for unpacked copies")
    if asked is None:
        return found
    given = chosen.workload.model_copy(update={"resident_layers": asked})
    return replace(chosen, workload=given, phases=memory.predict(question.facts, given))


def _not_tried(question: Question, work: Workload, tried: set[str]) -> list[Rejected]:
    """Storages that the search could leave out."""
    plain, found = stored_bytes(question, work.quant, work.dtype), []
    for quant in dict.fromkeys(quant for quant, _ in storages_of(question)):
        size = min(stored_bytes(question, q, d) for q, d in storages_of(question) if q == quant)
        if quant in tried:
            continue
        reason = f"not needed: it would save {show_bytes(plain - size)} of weights, and each use would unpack them"
        if size > plain:
            reason = f"does not fit: the weights alone need {show_bytes(size)} of {show_bytes(question.budget_bytes)}"
        found.append(Rejected(value=quant, reason=reason))
    return found


def _dtype_reason(work: Workload, trainer: Target) -> str:
    if work.quant != "none":
        return f"of what is not quantised and of all products: {work.matmul_dtype} is the fastest on {trainer.name}"
    if work.dtype == "float32" and trainer.fast_dtype != "float32":
        return (
            "a small model: kept in float32, so the adapter gives the same numbers wherever it is loaded; "
            f"products of adapted layers run in {work.matmul_dtype}"
        )
    return (
        f"the fastest matrix products of {trainer.name}, in half the memory"
        if work.dtype != "float32"
        else (f"the fastest dtype of {trainer.name}")
    )


def _value(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _why(other: Candidate, chosen: Candidate, budget: int) -> str:
    if other.peak_bytes > budget:
        return f"does not fit: {show_bytes(other.peak_bytes)} of {show_bytes(budget)}"
    seconds, best = other.seconds_per_step, chosen.seconds_per_step
    peak = show_bytes(other.peak_bytes)
    if seconds is None or best is None:
        return f"fits in {peak}, but gives more up"
    if seconds > best * 1.005:
        return f"slower: {show_seconds(seconds)} a step instead of {show_seconds(best)}, in {peak}"
    return f"not faster ({show_seconds(seconds)} a step), in {peak}"


def _settle_evaluation(
    decided: Decisions, recipe: Recipe, facts: ModelFacts, chosen: Candidate, work: Work, budget: int
) -> None:
    names = tuple(kinds.load("tasks", recipe.task).metrics)
    reason = "the task's usual metrics"
    if facts.generates and work.small_label_set:
        names = ("label_accuracy", "macro_f1", "calibration_error", *names)
        reason = "completions come from a small label set, so the choice among them is scored as well"
    elif facts.generates and recipe.evaluate.generate_rows:
        names = (*names, "exact_match", "rouge_l", "chrf", "bleu")
        reason = f"loss on every row; the texts of {recipe.evaluate.generate_rows} rows are generated and compared"
    decided.settle("evaluate.metrics", names, reason)
    rows = 64
    while rows > 1:
        phases = memory.predict(facts, chosen.workload.model_copy(update={"evaluate_rows": rows}))
        if next(p for p in phases if p.phase == "evaluate").total_bytes <= min(budget, chosen.peak_bytes):
            break
        rows //= 2
    decided.settle("evaluate.batch_rows", rows, "the most, up to 64, that needs no more memory than training")


def _time(chosen: Candidate, work: Work, decided: Decisions, world: int) -> tuple[float | None, float | None]:
    """Rough seconds of the whole training and tokens per second over all processes."""
    if not chosen.seconds_per_step:
        return None, None
    rows = decided.value("train.batch_rows")
    tokens = min(work.mean_tokens, chosen.workload.length_tokens)
    rate = rows * tokens / chosen.seconds_per_step
    steps = decided.recipe.train.max_steps
    if steps is None and work.rows is not None:
        steps = math.ceil(work.rows * decided.value("train.epochs") / rows)
    return (steps * chosen.seconds_per_step if steps else None), rate


def _served(target: Target, facts: ModelFacts) -> tuple[list[str], bool]:
    """For a serve-only target: where it trains, and whether the exported model fits there."""
    if target.trains:
        return [], True
    # Weights in 4 bits with their scales, everything else in 16 bits: llama.cpp's Q4_K_M is 4.85 bits a weight.
    size = int(facts.linear_parameters * 4.85 / 8 + (facts.parameters - facts.linear_parameters) * 2)
    fits = size * 1.2 <= target.budget_bytes
    words = "fits" if fits else "DOES NOT FIT"
    return [
        f"{target.name} only serves: training runs on this machine, the result leaves as {target.export}; about "
        f"{show_bytes(size)} in 4 bits {words} in the {show_bytes(target.budget_bytes)} one program has there"
    ], fits
