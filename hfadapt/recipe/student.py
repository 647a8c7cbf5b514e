"""What a recipe can say of a smaller model that is made of the adapted one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hfadapt.core.spec import Spec
from hfadapt.recipe.names import AUTO, Auto, LearningRate, Positive
from hfadapt.recipe.pretrain import TextSources

Activation = Literal["relu", "relu6", "hardswish"]


class Student(Spec):
    """A smaller model of the adapted one, which learns from its answers.

    `layers` are kept, and `ffn` of the units of every feed-forward part; `vocabulary: data` keeps the tokens of the
    training rows, a share such as 0.5 also the first and so most frequent ones. `auto` keeps as many layers and units
    as the target's budget allows, of which `tries` shapes are trained for a while, and the smallest vocabulary that
    cuts validation rows as before. `activation` takes the place of GELU or SiLU, for hardware that computes in whole
    numbers. With `int8` weights learn in the last epoch how they will be rounded; `auto` does that where the target's
    form of 8 bits loses more than `export.limits`. `base` is another model that learns, in the place of one that is cut
    out. `texts` are sources of texts without labels, which the adapted model answers and the student learns beside the
    training rows; none is like a validation or test row of any domain. `limit` are the points of the leading metric
    that may be lost, `weight` the share of the adapted model's answers in the loss, `epochs` and `learning_rate` those
    of its training.
    """

    layers: Positive | Auto | None = None
    ffn: Annotated[float, Field(gt=0.0, le=1.0)] | Auto = 1.0
    vocabulary: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["all", "data"] | Auto = "all"
    activation: Activation | None = None
    int8: bool | Auto = AUTO
    base: str | None = None
    texts: TextSources = ()
    tries: Annotated[int, Field(ge=1)] = 3
    limit: Annotated[float, Field(ge=0.0)] = 1.0
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    learning_rate: LearningRate | Auto = AUTO

    @property
    def open(self) -> bool:
        """Whether its shape hangs on the target's budget."""
        return AUTO in (self.layers, self.ffn)


def student_settings(value: Any) -> Any:
    """The settings that `auto` stands for; anything else as it is."""
    return dict.fromkeys(("layers", "ffn", "vocabulary"), AUTO) if value == AUTO else value


AnyStudent = Annotated[Student, BeforeValidator(student_settings)]
