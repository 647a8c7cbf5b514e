"""What a recipe can say of a smaller model that is made of the adapted one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import AUTO, Auto, LearningRate, Positive
from hfadapt.recipe.pretrain import TextSources

Activation = Literal["relu", "relu6", "hardswish"]


class Student(Section):
    """A smaller model of the adapted one, which learns from its answers; `auto` fits it to the target's budget."""

    layers: Positive | Auto | None = None
    """Layers that are kept; by default all.

    Auto: as many as the target's budget allows.
    Example: 3
    """
    ffn: Annotated[float, Field(gt=0.0, le=1.0)] | Auto = 1.0
    """Share of the units of every feed-forward part that are kept.

    Auto: as many as the target's budget allows.
    Example: 0.5
    """
    vocabulary: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["all", "data"] | Auto = "all"
    """Tokens that are kept: `all`, those of the training rows (`data`), or these and a share of the first and so most
    frequent ones.

    Auto: the smallest that cuts validation rows as before.
    Example: data
    """
    activation: Activation | None = None
    """Takes the place of GELU or SiLU, for hardware that computes in whole numbers.

    Example: relu6
    """
    int8: bool | Auto = AUTO
    """Whether weights learn in the last epoch how they will be rounded.

    Auto: where the target's form of 8 bits loses more than `export.limits`.
    Cost: the last epoch is slower.
    """
    base: str | None = None
    """Another model that learns, in the place of one that is cut out.

    Example: sample:minilm-l6
    """
    texts: TextSources = ()
    """Texts without labels, which the adapted model answers and the student learns beside the training rows. Those like
    a validation or test row of any domain are left out.

    Cost: the adapted model answers each once.
    Example: [texts.txt]
    """
    on_policy: bool = False
    """Whether a language model then learns on answers of its own: it answers the prompts of the training rows,
    and learns by what the adapted model says of each of its words (Agarwal et al. 2024). That stays where the loss of
    validation rows is no higher after it.

    Cost: an answer to each of up to 1,000 prompts is written, and the training is done again over these and the rows.
    """
    tries: Annotated[int, Field(ge=1)] = 3
    """Fitting shapes that are trained for a while, of which the best goes on.

    Cost: each takes up to a quarter of the student's training.
    """
    limit: Annotated[float, Field(ge=0.0)] = 1.0
    """Points of the leading metric that may be lost; a student that loses more is refused."""
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the adapted model's answers in the loss; the labels have the rest."""
    epochs: Annotated[float, Field(gt=0.0)] | Auto = AUTO
    """Passes over the training rows.

    Auto: the plan, as for a training of all weights.
    Cost: time grows in proportion.
    Example: 5
    """
    learning_rate: LearningRate | Auto = AUTO
    """Highest learning rate of its training.

    Auto: by the number of its parameters.
    Example: 1.0e-4
    """

    @property
    def open(self) -> bool:
        """Whether its shape hangs on the target's budget."""
        return AUTO in (self.layers, self.ffn)


def student_settings(value: Any) -> Any:
    """The settings that `auto` stands for; anything else as it is."""
    return dict.fromkeys(("layers", "ffn", "vocabulary"), AUTO) if value == AUTO else value


AnyStudent = Annotated[Student, BeforeValidator(student_settings, json_schema_input_type=Student | Auto)]
