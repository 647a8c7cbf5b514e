"""Which student would fit, by configs alone; how it is trained, and what that takes at most: it is as large as its base
before anything was cut.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.known import remembered
from hfadapt.core.show import show_bytes, show_seconds
from hfadapt.hardware.catalogue import Target
from hfadapt.models.facts import ModelFacts, load_config, model_facts
from hfadapt.models.smaller import cut_config, narrowed, sayable, width_of
from hfadapt.plan.device import export_format, multiply_adds, served
from hfadapt.quants import PLAIN
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.names import AUTO
from hfadapt.recipe.schema import Adapter, Canaries, Recipe
from hfadapt.records.plan import CellPlan, PlannedExport
from hfadapt.records.student import Considered

RATES = ((50_000_000, 1e-4), (float("inf"), 5e-5))
"""Learning rates of whole models up to so many parameters, in 32 bits; a tenth and less of what LoRA takes."""

FASTER = 3.0
"""How much higher rates are where whole vectors are learned (`Task.alone`). MiniLM with 69 % of its parameters on 961
pairs about licenses, 122 steps: a validation loss of 1.56 at 3e-4, after half of the steps the 1.74 that 1e-4 ended
with; on 800 test rows 2.2 points of nDCG@10 were lost at both."""

ROWS = 16
"""Rows of a step, of every task: a teacher's answer says something of each row alone. With the 64 of an adapter that
searches there were 32 steps for 1,000 rows."""

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Of the units of a feed-forward part, what a student may keep."""
FEW_TOKENS = 1024
"""As few as a vocabulary of a domain ever was here; fewer are not promised."""
SHORT = 0.25
"""Share of the training after which shapes are compared."""
HALVINGS = 5
"""By which the size of a vocabulary that fits is found: to a part in 32."""


@remembered(ModelFacts)
def cut_facts(config: str, task: str, labels: int, layers: int, ffn: float, tokens: int | None) -> ModelFacts:
    """Facts of a model that is cut so.

    Args:
        config: Of the whole model, as JSON.
        ffn: Share of the units of a feed-forward part.
        tokens: Size of the vocabulary, where it becomes smaller.

    Raises:
        RequestError: the config cannot say it.
    """
    with tempfile.TemporaryDirectory() as place:
        Path(place, "config.json").write_text(config, encoding="utf-8")
        smaller = load_config(place)
        cut_config(smaller, layers, narrowed(width_of(smaller), ffn) if ffn < 1.0 else None)
        if tokens:
            smaller.get_text_config().vocab_size = tokens
        smaller.save_pretrained(place)
        return model_facts(place, task, labels)


def weighed(
    recipe: Recipe, target: Target, whole: ModelFacts, length: int, layers: int, ffn: float, tokens: int | None
) -> tuple[Considered, int]:
    """A shape against the target's budget, and its multiply-adds.

    Args:
        whole: Facts of the model that is cut.
        length: Units of a row.
        tokens: Size of the vocabulary, where it becomes smaller.

    Raises:
        RequestError: the config cannot say it.
    """
    facts = cut_facts(json.dumps(whole.config, sort_keys=True), whole.task, whole.labels, layers, ffn, tokens)
    planned = served(target, recipe.budgets.get(target.name), facts, length)
    forms = written(planned, export_format(recipe, target, facts), recipe.export.storage)
    fitting = [each for each in forms if each.verdict == "fits"] or [each for each in forms if each.fits]
    best = min(fitting or forms, key=lambda each: each.bytes)
    considered = Considered(layers=layers, ffn=ffn, bytes=best.bytes, seconds=best.seconds, fits=bool(fitting))
    return considered, multiply_adds(facts, length) or facts.parameters


def written(forms: Sequence[PlannedExport], format: str | None, storage: str | None) -> list[PlannedExport]:
    """Those of the planned forms that would be written: of one format, and of one form where it is asked for."""
    return [each for each in forms if each.format == format and storage in (None, each.form)]


def promised(recipe: Recipe, target: Target, facts: ModelFacts, length: int) -> tuple[bool, str]:
    """Whether the smallest student that the recipe allows would fit a target, and that in words for the plan.

    Where the vocabulary becomes smaller, rows that are not read yet decide by how much: then it may fit, and the words
    say how many tokens there is room for.
    """
    asked = recipe.student
    assert asked is not None
    if asked.base is not None:
        other = model_facts(asked.base, recipe.task, facts.labels)
        forms = served(target, recipe.budgets.get(target.name), other, length)
        fits = any(each.fits for each in written(forms, export_format(recipe, target, other), recipe.export.storage))
        return fits, f"no export of the adapted model fits; its student, {asked.base}, {'does' if fits else 'neither'}"
    layers = facts.layers if asked.layers is None else 1 if asked.layers == AUTO else int(asked.layers)

    def least(tokens: int | None) -> Considered:
        return weighed(recipe, target, facts, length, layers, share, tokens)[0]

    try:
        share = _least_share(facts) if asked.ffn == AUTO else float(asked.ffn)
        whole = least(None)
        if whole.fits:
            return True, "no export of the adapted model fits: a student is cut out of it that does"
        shape = f"{layers} layer{'s' if layers > 1 else ''} and {share:.0%} of the units"
        size = f"with {shape} it still has {show_bytes(whole.bytes)}"
        if asked.vocabulary == "all" or facts.vocab_size <= FEW_TOKENS or not least(FEW_TOKENS).fits:
            return False, f"no export of the adapted model fits, and no student either: {size}"
        few, many = FEW_TOKENS, facts.vocab_size
        for _ in range(HALVINGS):
            middle = (few + many) // 2
            few, many = (middle, many) if least(middle).fits else (few, middle)
    except RequestError:
        # The stage that makes it says what the model cannot be.
        return True, "no export of the adapted model fits: a student is cut out of it"
    return True, (
        f"no export of the adapted model fits. A student may: {size}, so that there is room for about {few:,} of its "
        f"{facts.vocab_size:,} tokens, and the rows decide how many they need (student.vocabulary)"
    )


def _least_share(facts: ModelFacts) -> float:
    """The smallest of SHARES that the model's config can say."""
    with tempfile.TemporaryDirectory() as place:
        Path(place, "config.json").write_text(json.dumps(facts.config), encoding="utf-8")
        config = load_config(place)
    return next((each for each in reversed(SHARES[1:]) if sayable(config, narrowed(width_of(config), each))), 1.0)


def learning(recipe: Recipe, parameters: int, options: dict[str, Any]) -> Recipe:
    """The recipe by which a student of so many parameters learns: whole, in float32, from the adapted model's answers.

    Args:
        options: Of its objective.
    """
    settings = recipe.student
    assert settings is not None
    rate = next(rate for most, rate in RATES if parameters <= most)
    rate *= FASTER if registry.task(recipe.task).alone else 1.0
    train = {
        "objective": next(name for name in registry.names("objectives") if registry.objective(name).teaches),
        "objective_options": options,
        "epochs": settings.epochs,
        "max_steps": None if settings.epochs != "auto" else recipe.train.max_steps,
        "batch_rows": ROWS if recipe.train.batch_rows == AUTO else recipe.train.batch_rows,
        "learning_rate": rate if settings.learning_rate == "auto" else settings.learning_rate,
        "together": False,
        "shard": False,
        "time": None,
    }
    return recipe.model_copy(
        update={
            "quant": PLAIN,
            "dtype": "float32",
            "adapter": Adapter(method="full"),
            "data": recipe.data.model_copy(update={"augment": Augment(), "canaries": Canaries(count=0)}),
            "train": recipe.train.model_copy(update=train),
            "pretrain": None,
            "student": None,
            "search": None,
        }
    )


def seconds(cell: CellPlan, tries: int, *, again: bool) -> float | None:
    """About how long it takes at most, from the arguments of `said`; to write answers of its own is not counted."""
    if cell.predicted_seconds is None:
        return None
    return cell.predicted_seconds * (1 + (SHORT * tries if tries > 1 else 0.0) + (2 if again else 0))


def said(cell: CellPlan, tries: int, *, again: bool, rounds: bool = False) -> str:
    """What the plan of a student's training takes, for a reader.

    Args:
        cell: Of a model as large as the base.
        tries: Shapes that are trained for a while before.
        again: Whether it is trained once more, on as many answers of its own beside the rows.
        rounds: Whether it is trained once more where rounding to 8 bits costs too much.
    """
    most = max(phase.total_bytes for phase in cell.memory)
    time = f" and {show_seconds(cell.predicted_seconds)}" if cell.predicted_seconds else ""
    before = f", and up to {tries} shapes for a quarter of that before" if tries > 1 else ""
    after = "; with answers of its own up to twice that again, and the time to write them" if again else ""
    after += "; as long once more where rounding to 8 bits costs too much" if rounds else ""
    room = f", more than the {show_bytes(cell.budget_bytes)} there are" if most > cell.budget_bytes else ""
    return (
        f"training the student on {cell.trains_on} takes at most {show_bytes(most)}{room}{time}, as a model as large "
        f"as the base{before}{after}"
    )
