"""Texts without labels, to which an adapter is adapted before its task: the recipe's `pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hfadapt.core.spec import Spec
from hfadapt.recipe.names import (
    AUTO,
    Auto,
    AutoSelfSupervised,
    LearningRate,
    Positive,
    SelfSupervised,
    Share,
)


class TextSource(Spec):
    """One place texts come from, as the source of a domain; `column` holds the text where its name does not say so."""

    source: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    column: str | None = None
    rows: Positive | None = None


def _source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping)) else value


AnyTextSource = Annotated[TextSource, BeforeValidator(_source)]
TextSources = Annotated[tuple[AnyTextSource, ...], BeforeValidator(_sources)]


class Pretrain(Spec):
    """Self-supervised adaptation of the adapter to texts without labels, before the task is trained.

    `sources` are the texts, by default those of the domain's own training rows; none is like a validation or test row
    of any domain. `objective` is how they are learned from. `general_share` of the texts come from `general`, so that a
    language model keeps what it knew. `skip` leaves it out in a domain, where the recipe asks for it.
    """

    sources: TextSources = ()
    objective: AutoSelfSupervised = AUTO
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    max_steps: Positive | None = None
    learning_rate: LearningRate | Auto = AUTO
    batch_rows: Positive | Auto = AUTO
    general: TextSources = ()
    general_share: Share = 0.1
    skip: bool = False


class LockedPretrain(Pretrain):
    """The adaptation, resolved; `micro_batch_rows` go through the model together."""

    objective: SelfSupervised
    epochs: float
    learning_rate: float
    batch_rows: int
    micro_batch_rows: int


def pretrain_settings(value: Any) -> Any:
    """The settings that `true`, `false` or sources alone stand for; anything else as it is."""
    if isinstance(value, bool):
        return {} if value else {"skip": True}
    return {"sources": value} if isinstance(value, (str, list, tuple)) else value


AnyPretrain = Annotated[Pretrain, BeforeValidator(pretrain_settings)]
