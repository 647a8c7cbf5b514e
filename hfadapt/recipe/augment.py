"""Changes of training rows that leave their labels right: the recipe's `data.augment`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hfadapt.core.spec import Section
from hfadapt.recipe.names import AUTO, Auto, Share

RowShare = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Section):
    """Label-safe changes of training rows, drawn anew for each epoch from `data.seed`; `false` makes none.

    Of a prompt and completion only the prompt is changed, of a chat only the user's turns. Plain text without a label,
    which is itself what is learned, stays as it is. `auto` leaves the choice to a trial on the validation rows, where
    there are few training rows.
    """

    word_dropout: Share = 0.0
    """Share of words that are left out.

    Example: 0.1
    """
    word_swap: Share = 0.0
    """Share of words that change places with the next.

    Example: 0.1
    """
    typos: Share = 0.0
    """Share of words that get a typing error.

    Example: 0.1
    """
    punctuation: Share = 0.0
    """Share of gaps between words that get a mark (AEDA).

    Example: 0.1
    """
    case: Share = 0.0
    """Share of rows whose letters change between capitals and small ones.

    Example: 0.1
    """
    noise: RowShare = 0.0
    """Share of recordings that get noise 5 to 20 dB below them.

    Example: 0.1
    """
    gain: RowShare = 0.0
    """Share of recordings made louder or softer by up to 12 dB.

    Example: 0.1
    """
    shift: RowShare = 0.0
    """Share of recordings shifted by up to 0.3 s.

    Example: 0.1
    """
    speed: RowShare = 0.0
    """Share of recordings played at 0.9 to 1.1 of their speed.

    Example: 0.1
    """
    spec_augment: RowShare = 0.0
    """Share of recordings of which a band and a span of time are silent.

    Example: 0.1
    """
    trivial: RowShare = 0.0
    """Share of images changed by one operation of any strength (TrivialAugment).

    Example: 0.1
    """
    crop: RowShare = 0.0
    """Share of images of which 35 to 100 % of the area is shown.

    Example: 0.1
    """
    flip: RowShare = 0.0
    """Share of images mirrored left to right, which digits and letters do not bear.

    Example: 0.1
    """
    mixup: RowShare = 0.0
    """Share of images blended with another one, and their labels in the same shares.

    Example: 0.1
    """
    cutmix: RowShare = 0.0
    """Share of images with a patch of another one, and their labels in the same shares.

    Example: 0.1
    """
    auto: bool = False
    """Whether a trial on the validation rows chooses the changes; the same as `augment: auto`.

    Cost: a few short trainings before the real one.
    """

    @property
    def shares(self) -> dict[str, float]:
        """How much of each change, by name; those that are off are left out."""
        return {name: share for name, share in self.model_dump(exclude={"auto"}).items() if share}

    @property
    def on(self) -> bool:
        """Whether anything is changed for certain."""
        return bool(self.shares)

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.auto and self.on:
            raise ValueError("auto chooses the shares itself: leave them out, or leave auto out")
        if self.mixup + self.cutmix > 1:
            raise ValueError("mixup and cutmix are shares of the same rows: together at most 1")
        return self


def augment_settings(value: Any) -> Any:
    """The settings that `auto` and `false` stand for; anything else as it is."""
    return {"auto": True} if value == AUTO else {} if value is False else value


AnyAugment = Annotated[
    Augment, BeforeValidator(augment_settings, json_schema_input_type=Augment | Auto | Literal[False])
]
