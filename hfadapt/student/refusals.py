"""What a recipe's student cannot be, as recipe, configs and the tokenizers that are at hand say it: before a plan as
before a run. The parts that cut a model ask the same questions again, of the model with its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, Problem, RequestError
from hfadapt.core.known import known
from hfadapt.core.progress import quiet_libraries
from hfadapt.hardware import catalogue
from hfadapt.models.activation import swap
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, build, config_of, load_config, model_facts
from hfadapt.models.load import check_base, load_processor, source_of
from hfadapt.models.smaller import narrowed, width_of
from hfadapt.objectives.distill import KIND as DISTILL
from hfadapt.recipe.names import AUTO
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.sources import expanded
from hfadapt.recipe.student import Student
from hfadapt.schemas import RowSchema
from hfadapt.student import shape, vocabulary
from hfadapt.tasks import Task

CUT = frozenset({"layers", "ffn", "vocabulary", "activation", "tries"})
"""Settings of a student that is cut out of the adapted model."""


def require_possible(recipe: Recipe) -> None:
    """Sees to it that a student of this recipe's adapted models can be made and can learn. Of tokenizers those are
    looked at that lie in folders on this machine.

    Raises:
        RequestError: it cannot; all that speaks against it.
    """
    asked = recipe.student
    assert asked is not None
    facts = model_facts(BaseRef.of(recipe).location, recipe.task)
    problems = [*_of_task(recipe, asked), *_of_targets(recipe, asked, facts.layers)]
    problems += _of_cutting(recipe, asked, facts) if asked.base is None else _of_base(recipe, asked, asked.base)
    tokenized = _tokenized(recipe)
    # A config alone is enough for a plan.
    if not problems and tokenized and all(any(expanded(each.location).glob("tokenizer*")) for each in tokenized):
        with quiet_libraries():
            problems += _of_tokenizers(recipe)
    _refuse(problems)


@quiet_libraries()
def require_tokenizers(recipe: Recipe) -> None:
    """Sees to it that the tokenizers of base and student suit each other, or can be cut; fetches them.

    Raises:
        RequestError: they do not.
    """
    _refuse(list(_of_tokenizers(recipe)))


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise RequestError("there can be no such student", problems=problems)


def as_large(asked: Student, layers: int, *, tokens: bool) -> Problem | None:
    """Why a student is none: nothing of the adapted model goes.

    Args:
        layers: Of the adapted model.
        tokens: Whether its vocabulary becomes smaller.
    """
    smaller = tokens or asked.layers not in (None, layers) or asked.ffn != 1.0
    if asked.base is not None or smaller or asked.activation or asked.int8 is True:
        return None
    what = "the student is to be as large as the adapted model"
    return Problem(what, "student", fix=f"say what is to go, such as {_example(layers)}")


def _example(layers: int) -> str:
    return f"student: {{layers: {layers // 2}, ffn: 0.75}}" if layers > 1 else "student: {ffn: 0.5}"


def _of_task(recipe: Recipe, asked: Student) -> Iterator[Problem]:
    """What the task does not have."""
    task = registry.task(recipe.task)
    if why := DISTILL.unfit(task):
        what = f"a student of {recipe.task} cannot learn from the adapted model's answers"
        yield Problem(what, "student", got=why, fix="delete `student`")
    answered = any(type(registry.schema(each)).answered is not RowSchema.answered for each in task.schemas)
    if asked.texts and not (answered or task.alone):
        what, got = f"texts that {recipe.task} answers make no rows to learn", "student.texts"
        yield Problem(what, "student.texts", got=got, fix="delete `texts`")
    if asked.on_policy and not task.writes:
        what = f"a model for {recipe.task} writes no answers of its own"
        yield Problem(what, "student.on_policy", got="true", allowed="language models", fix="delete `on_policy`")


def _of_targets(recipe: Recipe, asked: Student, layers: int) -> Iterator[Problem]:
    """What is open has a budget to go by."""
    if asked.base is None and asked.open and not any(map(catalogue.only_serves, recipe.targets)):
        yield Problem(
            "nothing says how small the student is to be",
            place="student",
            got=f"auto, for {', '.join(recipe.targets)}",
            allowed="auto for targets that only serve, whose budget decides",
            fix=_example(layers),
        )


def _of_base(recipe: Recipe, asked: Student, other: str) -> Iterator[Problem]:
    """What another model cannot be."""
    if cut := sorted(asked.model_fields_set & CUT):
        got, fix = f"base and {', '.join(cut)}", "delete `base`, or the others"
        yield Problem("a student is another model, or cut out of the adapted one", "student", got=got, fix=fix)
    own = replace(BaseRef.of(recipe), model=other, made=None)
    with quiet_libraries():
        problems = _told(lambda: model_facts(other, recipe.task)) or _told(lambda: check_base(own))
    yield from problems


def _of_cutting(recipe: Recipe, asked: Student, facts: ModelFacts) -> Iterator[Problem]:
    """What cannot be taken out of the base."""
    base, task = BaseRef.of(recipe), registry.task(recipe.task)
    if nothing := as_large(asked, facts.layers, tokens=asked.vocabulary != "all" and facts.vocab_size > 0):
        yield nothing
    # What a config cannot be cut to is found by building the model, which takes the libraries.
    key = ["cutting", config_of(base.location), task.name, asked.model_dump(mode="json")]
    yield from known(tuple[Problem, ...], key, lambda: _uncut(base, task, asked, facts))


@quiet_libraries()
def _uncut(base: BaseRef, task: Task, asked: Student, facts: ModelFacts) -> tuple[Problem, ...]:
    """What the model without its weights says against these cuts."""
    return tuple(_uncuttable(base, task, asked, facts))


def _uncuttable(base: BaseRef, task: Task, asked: Student, facts: ModelFacts) -> Iterator[Problem]:
    def model() -> Any:
        return build(load_config(base.location), task.auto_class, base.location)

    if isinstance(asked.layers, int):
        yield from _told(lambda keep=asked.layers: shape.require_layers(model(), keep))  # type: ignore[misc]
    elif asked.layers == AUTO:
        yield from _told(lambda: shape.layers_of(model()))
    if isinstance(asked.ffn, float) and asked.ffn < 1.0:
        yield from _told(lambda share=asked.ffn: _require_share(model(), share))  # type: ignore[misc]
    if asked.vocabulary not in ("all", AUTO) and not facts.vocab_size:
        yield Problem("the base has no tokens", "student.vocabulary", got=str(asked.vocabulary), fix="delete it")
    elif asked.vocabulary != "all" and facts.vocab_size:
        yield from _told(lambda: vocabulary.require_tables(model()))
    if asked.activation:
        yield from _told(lambda name=asked.activation: swap(model(), name))  # type: ignore[misc]


def _tokenized(recipe: Recipe) -> tuple[BaseRef, ...]:
    """The models whose tokenizers matter: the base, of which tokens go, or both, where one learns the other's."""
    asked, base, task = recipe.student, BaseRef.of(recipe), registry.task(recipe.task)
    assert asked is not None
    if asked.base is not None:
        return (base, replace(base, model=asked.base, made=None)) if task.writes or task.per_token else ()
    return (base,) if asked.vocabulary != "all" and registry.modality(task.modality).tokens else ()


def _of_tokenizers(recipe: Recipe) -> Iterator[Problem]:
    """What tokenizers say against it."""
    kind = registry.modality_of(recipe.task)
    found = [load_processor(source_of(each), kind.name) for each in _tokenized(recipe)]
    if len(found) == 1:
        yield from _told(lambda: vocabulary.rules_of(found[0]))
    elif found and kind.identity(found[0]) != kind.identity(found[1]):
        yield Problem(
            "the student cuts texts into other tokens than the adapted model, so it cannot learn what that says of "
            "each of them",
            place="student.base",
            got=recipe.student.base if recipe.student else None,
            allowed=f"a model with the tokenizer of {recipe.model}",
            fix="choose a base of the same family, or delete `base` to cut a student out of the adapted model",
        )


def _require_share(model: Any, share: float) -> None:
    width = width_of(model.config)
    if (left := narrowed(width, share)) < width:
        shape.require_width(model, left)


def _told(question: Callable[[], Any]) -> tuple[Problem, ...]:
    """What speaks against something, from what raises where it cannot be."""
    try:
        question()
    except HfadaptError as error:
        return error.problems
    return ()
