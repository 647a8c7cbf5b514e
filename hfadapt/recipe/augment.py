"""Changes of training rows that leave their labels right: the recipe's `data.augment`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from hfadapt.core.spec import Spec
from hfadapt.recipe.names import AUTO, Share

RowShare = Annotated[float, Field(ge=0.0, le=1.0)]


class Augment(Spec):
    """Label-safe changes of training rows: the share of words (for `case`, images and sounds, of rows) that is changed.

    Drawn anew for each epoch, from `data.seed`; of a prompt and completion only the prompt, of a chat only the user's
    turns. Plain text without a label, which is itself what is learned, stays as it is. `punctuation` puts marks between
    words (AEDA). Of sounds: `noise` 5 to 20 dB below them, `gain` by up to 12 dB, `shift` by up to 0.3 s, `speed` of
    0.9 to 1.1, `spec_augment` (a band and a span of time are silent). Of images: `trivial` (TrivialAugment: one
    operation of any strength), `crop` of 35 to 100 % of the area, `flip` of left and right, which digits and letters do
    not bear; `mixup` and `cutmix` blend a row with another one, and their labels in the same shares.

    `auto` leaves the choice to a trial on the validation rows, where there are few training rows.
    """

    word_dropout: Share = 0.0
    word_swap: Share = 0.0
    typos: Share = 0.0
    punctuation: Share = 0.0
    case: Share = 0.0
    noise: RowShare = 0.0
    gain: RowShare = 0.0
    shift: RowShare = 0.0
    speed: RowShare = 0.0
    spec_augment: RowShare = 0.0
    trivial: RowShare = 0.0
    crop: RowShare = 0.0
    flip: RowShare = 0.0
    mixup: RowShare = 0.0
    cutmix: RowShare = 0.0
    auto: bool = False

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


AnyAugment = Annotated[Augment, BeforeValidator(augment_settings)]
