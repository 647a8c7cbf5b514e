"""Every field of a plan: its value, why, and what was rejected for it.

What is learned (data, adapter, hyper-parameters, effective batch) is settled before the search over configurations and
never depends on the target; how it is run (storage, checkpointing, micro-batch) is read off the configuration that the
search found (plan_search.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.show import show_bytes, show_seconds
from hfadapt.hardware.catalogue import Target
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.augment import to_try
from hfadapt.plan.learning_rate import RATE, learning_rate
from hfadapt.plan.memory import predict
from hfadapt.plan.memory.predict import Workload
from hfadapt.plan.modules import adaptable
from hfadapt.plan.search import (
    Candidate,
    Question,
    cached,
    compile_seconds,
    compiled,
    resident,
    shared,
    storages_of,
    stored_bytes,
)
from hfadapt.recipe.names import metric_names
from hfadapt.recipe.schema import AUTO, FIND, Recipe
from hfadapt.recipe.search import PLACES
from hfadapt.records.plan import Decision, Rejected
from hfadapt.records.stages import Lengths

DEFAULTS: dict[str, tuple[Any, str]] = {
    "adapter.method": ("lora", "close to full fine-tuning, with under 1% of the weights trained"),
    "adapter.rank": (16, "higher ranks rarely gain on data sets of this size"),
    "adapter.alpha": (32.0, "twice the rank: one learning rate suits every rank"),
    "adapter.dropout": (0.0, "short runs with few trained weights rarely overfit"),
    "adapter.modules": (("all-linear",), "all linear layers beat a higher rank on fewer"),
    "train.schedule": ("linear", "decays to zero, so the last weights are settled"),
    "train.warmup_ratio": (0.06, "the optimizer's second moments settle before full steps"),
    "train.weight_decay": (0.0, "low-rank adapters are small already"),
    "train.optimizer": ("adamw", "its states are small: trained weights only"),
}
ENCODER_DEFAULTS: dict[str, tuple[Any, str]] = {
    "train.batch_rows": (16, "on small data many steps matter more than a large batch"),
    "train.epochs": (2.0, "one pass undertrains a new head, more than two gain little"),
}
LM_DEFAULTS: dict[str, tuple[Any, str]] = {
    "train.batch_rows": (16, "on small data many steps matter more than a large batch"),
    "train.epochs": (1.0, "language models memorise repeated rows quickly"),
}
AUGMENT = "data.augment"
MAX_STEPS = "train.max_steps"
MOST_EPOCHS = 10.0
"""Of few rows, where the plan repeats them."""
ASSUMED_ROWS = 2000
EVALUATIONS = 4
CHECK_COST = 0.5
"""What a validation row costs, in rows of a step: a forward pass, and nothing backward."""
CHECKPOINT_SECONDS = 60.0
FEW_ROWS = 8
"""So few rows are evaluated at once even if that needs more memory than training, as of a very small model."""
COMPILED_KINDS = ("cuda", "rocm")
CACHED_EPOCHS = 1.5
"""Outputs of frozen layers are kept where every row is met this often on average."""
TOGETHER_GAIN = 1.1
"""Domains are trained together when that is faster than one after the other by this much."""
LONGEST_TOKENS = 4096
"""An automatic length never exceeds this; longer ones must be asked for."""


@dataclass(frozen=True)
class Work:
    """What the data asks for: token lengths, rows, labels and their names, and where these figures come from; `texts`
    are those without labels, where the adapter is adapted to some first.

    Lengths are those of the `parts` sequences as which a row goes through the model.
    """

    basis: str
    longest_tokens: int
    mean_tokens: float
    labelled_tokens: int
    rows: int | None
    labels: int
    small_label_set: bool
    lengths: Lengths | None = None
    names: tuple[str, ...] = ()
    texts: Lengths | None = None
    parts: float = 1.0
    validation_rows: int = 0


@dataclass
class Decisions:
    """Collects decisions in order; a field that the user set is taken over as it is.

    `tries` says that changes of the training rows are tried before training, and may be taken.
    """

    recipe: Recipe
    made: list[Decision] = field(default_factory=list)
    tries: bool = False

    def asked(self, name: str) -> Any:
        """The value in the recipe, or None when it is `auto`."""
        value: Any = self.recipe
        for part in name.split("."):
            value = getattr(value, part)
        return None if value in (AUTO, FIND) else value

    def settle(
        self, name: str, value: Any, reason: str, rejected: tuple[Rejected, ...] = (), if_asked: str = ""
    ) -> Any:
        """Records and returns the value of a field; `if_asked` is added where the recipe sets it."""
        asked = self.asked(name)
        if asked is not None:
            reason = "; ".join(filter(None, ("set in the recipe", if_asked)))
            self.made.append(Decision(field=name, value=asked, asked=True, reason=reason))
            return asked
        self.made.append(Decision(field=name, value=value, asked=False, reason=reason, rejected=rejected))
        return value

    def settle_value(self, name: str, value: Any, reason: str) -> None:
        """Records what no recipe sets."""
        self.made.append(Decision(field=name, value=value, asked=False, reason=reason))

    def revise(self, name: str, value: Any, reason: str) -> None:
        """Decides a field anew, unless the recipe sets it."""
        if self.asked(name) is None:
            self.made = [made for made in self.made if made.field != name]
            self.settle(name, value, reason)

    def because(self, name: str, more: str) -> None:
        """Adds to the reason of a field settled before."""
        self.made = [
            made.model_copy(update={"reason": f"{made.reason}: {more}"}) if made.field == name else made
            for made in self.made
        ]

    def default(self, name: str, table: Mapping[str, tuple[Any, str]]) -> Any:
        """Settles a field from a table of defaults."""
        value, reason = table[name]
        return self.settle(name, value, reason)

    def value(self, name: str) -> Any:
        """A value settled before."""
        return next(decision.value for decision in self.made if decision.field == name)


def longest_planned(recipe: Recipe, facts: ModelFacts) -> int:
    """The most tokens of a row, asked for or planned for the model."""
    return _most_tokens(facts) if recipe.data.max_length == AUTO else recipe.data.max_length


def _most_tokens(facts: ModelFacts) -> int:
    return min(facts.max_positions or LONGEST_TOKENS, LONGEST_TOKENS)


def settle_augment(decided: Decisions, work: Work) -> None:
    """Whether changes of the training rows are tried before training; until then there are none."""
    if decided.recipe.data.augment.auto:
        settings, why = to_try(decided.recipe, work.rows, work.names)
        decided.settle_value(AUGMENT, {}, why)
        decided.tries = bool(settings)


def settle_data(decided: Decisions, facts: ModelFacts, work: Work) -> int:
    """Changes of rows, the longest row, and packing; returns the length in tokens."""
    settle_augment(decided, work)
    longest = min(_most_tokens(facts), -(-work.longest_tokens // 8) * 8)
    reason = "the longest row, rounded up to a multiple of 8"
    if longest < work.longest_tokens:
        reason = f"the most that is planned for this model; rows of up to {work.longest_tokens:,} tokens are cut"
    rejected = []
    if work.lengths is not None and work.lengths.p95 + 8 < longest:
        rejected.append(Rejected(value=str(-(-work.lengths.p95 // 8) * 8), reason="would cut 5% of the rows"))
    length = int(decided.settle("data.max_length", max(8, longest), reason, tuple(rejected)))
    packs = registry.task(decided.recipe.task).packs and decided.recipe.train.fast.attention
    reason = "packed sequences need no padding; attention stays within each"
    if not packs:
        reason = "sorted by length and padded to the longest of each micro-batch"
    decided.settle("data.packing", packs, reason)
    return length


def settle_training(decided: Decisions, recipe: Recipe, facts: ModelFacts, work: Work) -> None:
    """Adapter and hyper-parameters, which are the same on every target."""
    generative = facts.generates
    table = {**DEFAULTS, **(LM_DEFAULTS if generative else ENCODER_DEFAULTS)}
    if "adapter.rank" in table and (rank := decided.asked("adapter.rank")) is not None:
        table["adapter.alpha"] = (2.0 * rank, table["adapter.alpha"][1])
    task = registry.task(recipe.task)
    table |= task.defaults
    tried = recipe.search.lists if recipe.search else {}
    table |= {PLACES[name]: (max(values), "the largest of the values that are tried") for name, values in tried.items()}
    if "rank" in tried and "alpha" not in tried:
        table["adapter.alpha"] = (2.0 * max(tried["rank"]), table["adapter.alpha"][1])
    # Where the number of steps is given, few rows are met as often as that takes.
    few = work.rows if not recipe.train.max_steps else None
    if few and (epochs := _epochs_for(task.least_steps, decided, table, few)) > table["train.epochs"][0]:
        table["train.epochs"] = (epochs, f"about {task.least_steps} steps, which few rows do not make in two epochs")
    able = adaptable(facts)
    if not able.names:
        whole = (name for name in registry.names("adapters") if registry.adapter(name).whole_model)
        table["adapter.method"] = (next(whole), able.reason)
    method = registry.adapter(decided.asked("adapter.method") or table["adapter.method"][0])
    started = task.head_start(work.rows or ASSUMED_ROWS, work.labels) > 0
    trained_head = started and registry.modality(task.modality).tokens
    table = {RATE: learning_rate(facts, method, _steps(decided, table, work), trained_head), **table}
    table["adapter.layers"] = (facts.layers, "all layers; fewer means the last ones")
    if able.names and (able.left_out or facts.pointwise):
        table["adapter.modules"] = (able.names, able.reason)
    for name in (
        "adapter.method",
        "adapter.rank",
        "adapter.alpha",
        "adapter.dropout",
        "adapter.modules",
        "adapter.layers",
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
    steps = optimizer_steps(recipe, work, decided)
    every = max(1, steps // EVALUATIONS)
    basis = f"{steps:,} steps" if work.rows or recipe.train.max_steps else f"{rows:,} rows assumed, so {steps:,} steps"
    decided.settle("train.evaluate_every_steps", every, f"about {EVALUATIONS} validations a run: {basis}")


def _epochs_for(steps: int, decided: Decisions, table: Mapping[str, tuple[Any, str]], rows: int) -> float:
    """Epochs that make so many steps, up to a limit: rows that are met too often are learned by heart."""
    batch = decided.asked("train.batch_rows") or table["train.batch_rows"][0]
    return min(MOST_EPOCHS, float(math.ceil(steps / math.ceil(rows / batch))))


def _steps(decided: Decisions, table: Mapping[str, tuple[Any, str]], work: Work) -> int:
    """Of the training, before epochs and batch are settled."""
    epochs, batch = (decided.asked(name) or table[name][0] for name in ("train.epochs", "train.batch_rows"))
    return int(decided.recipe.train.max_steps or math.ceil((work.rows or ASSUMED_ROWS) * epochs / batch))


def optimizer_steps(recipe: Recipe, work: Work, decided: Decisions) -> int:
    """Of the whole training, once epochs and batch are settled; rows that are not known yet are assumed."""
    most = next((made.value for made in decided.made if made.field == MAX_STEPS), recipe.train.max_steps)
    rows = (work.rows or ASSUMED_ROWS) * decided.value("train.epochs")
    return int(most or math.ceil(rows / decided.value("train.batch_rows")))


def settle_storage(decided: Decisions, question: Question, chosen: Candidate, candidates: list[Candidate]) -> None:
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

    verdict = "unquantised does not fit, or is slower" if work.store.quantised else "fits unquantised"
    if chosen.peak_bytes > budget:
        verdict = "nothing fits; this needs the least memory"
    decided_on = (*others(lambda w: w.quant), *_not_tried(question, work, {c.workload.quant for c in candidates}))
    decided.settle("quant", work.quant, verdict, decided_on)
    decided.settle("dtype", work.dtype, _dtype_reason(work, trainer), others(lambda w: (w.quant, w.dtype)))
    parts = question.rows // work.micro_batch_rows
    decided.settle(
        "train.micro_batch_rows",
        work.micro_batch_rows,
        "about the fastest that fits" + (f", accumulated {parts} times" if parts > 1 else ""),
        others(lambda w: w.micro_batch_rows),
    )
    rejected = others(lambda w: w.checkpointing)
    if not question.facts.recomputes:
        rejected = (Rejected(value="True", reason=f"{question.facts.architecture} cannot"),)
    elif not rejected and not work.checkpointing:
        rejected = (Rejected(value="True", reason="not needed: every layer would be computed twice"),)
    reason = "all activations do not fit at this speed" if work.checkpointing else "all activations fit"
    decided.settle("train.checkpointing", work.checkpointing, reason, rejected)


def settle_checkpoints(decided: Decisions, chosen: Candidate) -> None:
    """With validations, but not more often than every minute: writing one takes about a second."""
    every = decided.value("train.evaluate_every_steps")
    seconds = (chosen.seconds_per_step or CHECKPOINT_SECONDS) * every
    times = max(1, math.ceil(CHECKPOINT_SECONDS / max(seconds, 1e-9)))
    reason = "with each validation" if times == 1 else "with a validation, about once a minute"
    decided.settle("train.checkpoint_every_steps", every * min(times, EVALUATIONS + 1), reason)


def can_share(question: Question, chosen: Candidate) -> bool:
    """Whether several adapters can be trained on one base at the same time."""
    able = registry.adapter(question.method).shares_base and question.recipe.train.fast.low_rank
    # Rows of several adapters go through hfadapt's own low-rank layers alone.
    able = able and not question.facts.pointwise
    # On CUDA the products of integer layers are peft's, which knows one active adapter.
    store = chosen.workload.store
    return able and (not store.quantised or store.unpacks(question.target.on_cpu))


def settle_together(decided: Decisions, question: Question, chosen: Candidate, sharing: int) -> Candidate:
    """Whether the target's domains are trained at the same time on one base; returns the candidate for that."""
    budget = question.budget_bytes
    together = shared(question, chosen, sharing) if can_share(question, chosen) and sharing > 1 else None
    if together is None:
        alone = "only one domain" if sharing < 2 else f"{question.method} with these settings trains alone"
        decided.settle("train.together", False, alone)
        return chosen
    gain = (chosen.seconds_per_step or 1.0) / (together.seconds_per_step or 1.0)
    fits = together.peak_bytes <= budget
    peak = show_bytes(together.peak_bytes)
    worth = fits and gain >= TOGETHER_GAIN
    reason = f"{sharing} domains on one base, faster than one by one"
    rejected = (Rejected(value="False", reason=f"one by one takes {gain:.2f}x the time"),)
    if not worth:
        why = f"only {gain:.2f}x as fast, in {peak}" if fits else f"does not fit: {peak} of {show_bytes(budget)}"
        rejected = (Rejected(value="True", reason=why),)
        reason = "one by one: a single batch fills the processor already"
        if not fits:
            reason = "one by one: co-training does not fit"
    return together if decided.settle("train.together", worth, reason, rejected) else chosen


def settle_resident(decided: Decisions, question: Question, chosen: Candidate) -> Candidate:
    """How many layers of a quantised base are kept unpacked beside it while training."""
    work, trainer = chosen.workload, question.target
    if work.shards > 1 or not (work.store.unpacks(trainer.on_cpu) and predict.own_layers(work)):
        name, why = "train.resident_layers", "no weights are unpacked at each use"
        if work.shards > 1:
            why = "a divided base is to take less memory"
        decided.settle(name, 0, why, if_asked=f"without effect, as {why}" if decided.asked(name) else "")
        return chosen
    asked = decided.asked("train.resident_layers")
    found = resident(question, chosen) if chosen.peak_bytes <= question.budget_bytes else chosen
    count = found.workload.resident_layers
    extra = found.peak_bytes - chosen.peak_bytes
    words = f"unpacked copies of {count} linear layers fit ({show_bytes(extra)}) and save time"
    decided.settle("train.resident_layers", count, words if count else "no room for unpacked copies")
    if asked is None:
        return found
    given = chosen.workload.model_copy(update={"resident_layers": asked})
    return replace(chosen, workload=given, phases=predict.predict(question.facts, given))


def settle_compile(decided: Decisions, question: Question, chosen: Candidate, steps: int) -> Candidate:
    """Whether torch.compile saves more than it takes."""
    name = "train.fast.compile"
    if why := _nothing_to_compile(question, chosen.workload):
        asked = decided.settle(name, False, why)
        return compiled(question, chosen) if asked else chosen
    found = compiled(question, chosen)
    takes = compile_seconds(found.workload)
    saves = steps * ((chosen.seconds_per_step or 0.0) - (found.seconds_per_step or 0.0))
    fits = found.peak_bytes <= question.budget_bytes
    words = f"saves about {show_seconds(saves)} in {steps:,} steps; compiling takes {show_seconds(takes)}"
    if not fits:
        words = f"needs {show_bytes(found.peak_bytes)} of {show_bytes(question.budget_bytes)}"
    if fits and saves > takes:
        return found if decided.settle(name, True, words) else chosen
    reason = "too few steps to pay off" if fits else "does not fit"
    return found if decided.settle(name, False, reason, (Rejected(value="True", reason=words),)) else chosen


def settle_frozen_cache(decided: Decisions, question: Question, chosen: Candidate, work: Work) -> Candidate:
    """Whether layers below the first trained one run once for each row, and their outputs are kept."""
    facts, name = question.facts, "train.fast.frozen_cache"
    layers = predict.frozen_layers(facts, chosen.workload)
    task = registry.task(facts.task)
    changes = decided.recipe.data.augment.on or decided.tries
    divided = chosen.workload.shards > 1
    if not layers or task.without or changes or task.redraws or divided:
        why = "no layer lies below the first trained one"
        if task.without:
            why = "it is for models of text"
        elif layers and divided:
            why = "the base is divided over the processes, which run its layers together"
        elif layers:
            which = "the task" if task.redraws else "data.augment"
            which += " may change" if decided.tries else " changes"
            why = f"{which} the rows in every epoch, so their outputs are not seen again"
        decided.settle(name, False, why, if_asked=f"without effect, as {why}" if decided.asked(name) else "")
        return chosen
    rows = work.rows or ASSUMED_ROWS
    met = optimizer_steps(decided.recipe, work, decided) * decided.value("train.batch_rows") / rows
    size = rows * question.parts * question.mean_tokens * facts.hidden_size * predict.DTYPE_BYTES[chosen.workload.dtype]
    which = "all layers are frozen" if layers == facts.layers else f"{layers} of {facts.layers} layers are frozen"
    worth = met >= CACHED_EPOCHS
    words = f"{which}: outputs ({show_bytes(int(size))} on disk) are computed once, used {met:.0f} times"
    if not worth:
        words = f"{which}, but a row is seen {met:.1f} times: nothing to keep"
    kept = decided.settle(name, worth, words, if_asked=words if decided.asked(name) else "")
    return cached(question, chosen, min(1.0, 1 / met)) if kept else chosen


def _nothing_to_compile(question: Question, work: Workload) -> str:
    """Why torch.compile is of no use, or nothing."""
    trainer = question.target
    if not work.fast:
        return "elementwise operations are left to the libraries"
    if trainer.on_cpu:
        return "hfadapt's own kernels do what it would fuse"
    if trainer.kind not in COMPILED_KINDS:
        return f"not known to work on {trainer.name}"
    if not predict.own_passes(question.facts, work):
        return f"nothing to fuse in {question.facts.architecture}"
    return ""


def _not_tried(question: Question, work: Workload, tried: set[str]) -> list[Rejected]:
    """Storages that the search could leave out."""
    plain, found = stored_bytes(question, work.quant, work.dtype), []
    for quant in dict.fromkeys(quant for quant, _ in storages_of(question)):
        size = min(stored_bytes(question, q, d) for q, d in storages_of(question) if q == quant)
        if quant in tried:
            continue
        reason = f"not needed: saves {show_bytes(plain - size)} of weights, unpacked at each use"
        if size > plain:
            reason = f"does not fit: the weights alone need {show_bytes(size)} of {show_bytes(question.budget_bytes)}"
        found.append(Rejected(value=quant, reason=reason))
    return found


def _dtype_reason(work: Workload, trainer: Target) -> str:
    if work.store.quantised:
        return f"{work.matmul_dtype} has the fastest matmuls on {trainer.name}"
    if work.dtype == "float32" and trainer.fast_dtype != "float32":
        return f"small model: same results wherever it is loaded; adapted layers multiply in {work.matmul_dtype}"
    if work.dtype == "float32":
        return f"the fastest dtype of {trainer.name}"
    return f"the fastest matmuls of {trainer.name}, in half the memory"


def _value(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _why(other: Candidate, chosen: Candidate, budget: int) -> str:
    if other.peak_bytes > budget:
        return f"does not fit: {show_bytes(other.peak_bytes)} of {show_bytes(budget)}"
    seconds, best = other.seconds_per_step, chosen.seconds_per_step
    peak = show_bytes(other.peak_bytes)
    if seconds is None or best is None:
        return f"fits in {peak}, but gives up more"
    if seconds > best * 1.005:
        return f"slower: {show_seconds(seconds)} a step instead of {show_seconds(best)}, in {peak}"
    return f"not faster ({show_seconds(seconds)} a step), in {peak}"


def settle_evaluation(
    decided: Decisions, recipe: Recipe, facts: ModelFacts, chosen: Candidate, work: Work, budget: int
) -> None:
    """Metrics, and as many rows at once as need no more memory than training."""
    names = tuple(registry.task(recipe.task).metrics)
    reason = "the task's usual metrics"
    if facts.generates and work.small_label_set:
        names = ("label_accuracy", "macro_f1", "calibration_error", *names)
        reason = "completions are labels, so the choice among them is scored too"
    elif facts.generates and recipe.evaluate.generate_rows:
        names = (*names, "exact_match", "rouge_l", "chrf", "bleu")
        reason = f"loss on every row, generated texts of {recipe.evaluate.generate_rows} rows"
    if gated := tuple(name for name in recipe.evaluate.gates if name in metric_names() and name not in names):
        names, reason = (*names, *gated), f"{reason}; {', '.join(gated)} for its gate"
    decided.settle("evaluate.metrics", names, reason)
    rows = 64
    while rows > 1:
        phases = predict.predict(facts, chosen.workload.model_copy(update={"evaluate_rows": rows}))
        needs = next(p for p in phases if p.phase == "evaluate").total_bytes
        if needs <= min(budget, chosen.peak_bytes) or (rows <= FEW_ROWS and needs <= budget):
            break
        rows //= 2
    decided.settle("evaluate.batch_rows", rows, "the most, up to 64, in the memory of training")
