"""Texts without labels, to which an adapter is adapted before its task: the recipe's `pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import (
    AUTO,
    SOURCE_WORDS,
    Auto,
    AutoSelfSupervised,
    Encoding,
    HubConfig,
    HubRevision,
    HubSplit,
    LearningRate,
    MostRows,
    Positive,
    SelfSupervised,
    Share,
    Switch,
    as_source,
)


class TextSource(Section):
    """One place texts come from, as the source of a domain."""

    source: Annotated[str, Field(description=SOURCE_WORDS)]
    config: HubConfig = None
    split: HubSplit = None
    revision: HubRevision = None
    encoding: Encoding = None
    column: str | None = None
    """Column that holds the text, where its name does not say so.

    Example: body
    """
    rows: MostRows = None


def _sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping)) else value


AnyTextSource = Annotated[TextSource, BeforeValidator(as_source, json_schema_input_type=TextSource | str)]
TextSources = Annotated[
    tuple[AnyTextSource, ...],
    BeforeValidator(_sources, json_schema_input_type=tuple[AnyTextSource, ...] | AnyTextSource),
]


class Pretrain(Section):
    """Self-supervised adaptation of the adapter to texts without labels, before the task is trained.

    `true` takes the texts of the training rows, `false` leaves it out; sources may stand in the place of settings.
    """

    sources: TextSources = ()
    """Texts to learn; by default those of the domain's own training rows. Those like a validation or test row of any
    domain are left out.

    Example: [texts.txt]
    """
    objective: AutoSelfSupervised = AUTO
    """How texts are learned from.

    Auto: the plan, by the base: hidden words where it has a layer for them, the next token where it generates, else
    denoising.
    """
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    """Passes over the texts.

    Auto: the plan; more of few texts, so that some steps are made.
    Cost: time grows in proportion.
    Example: 3
    """
    max_steps: Positive | None = None
    """The most optimizer steps, in the place of epochs.

    Example: 200
    """
    learning_rate: LearningRate | Auto = AUTO
    """Highest learning rate.

    Auto: that of the training that follows.
    Example: 5.0e-4
    """
    batch_rows: Positive | Auto = AUTO
    """Texts of an optimizer step.

    Auto: the plan, as in training or more.
    Example: 32
    """
    general: TextSources = ()
    """General texts that are mixed in, so that a language model keeps what it knew.

    Example: [general.txt]
    """
    general_share: Share = 0.1
    """Share of the texts that come from `general`.

    Example: 0.2
    """
    skip: bool = False
    """Leaves it out in a domain, where the recipe asks for it."""


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


AnyPretrain = Annotated[
    Pretrain,
    BeforeValidator(pretrain_settings, json_schema_input_type=Pretrain | Switch | str | tuple[AnyTextSource, ...]),
]
