"""How a row of columns becomes what a language model learns: the recipe's `template`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from hfadapt.core.spec import Spec


class Turn(Spec):
    """One chat turn of a template; `{column}` is replaced by the row's value."""

    role: Literal["system", "user", "assistant"]
    content: str


class Template(Spec):
    """Turns a row of columns into prompt and completion, or into chat messages.

    `{column}` stands for the value of that column; a label is given by name.
    """

    prompt: str | None = None
    completion: str | None = None
    messages: tuple[Turn, ...] | None = None

    @property
    def makes(self) -> str:
        """The row schema that it makes."""
        return "completion" if self.messages is None else "messages"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        pair = (self.prompt is not None, self.completion is not None)
        if self.messages is not None:
            if any(pair):
                raise ValueError("a template has either messages, or prompt and completion, not both")
            if not any(turn.role == "assistant" for turn in self.messages):
                raise ValueError("a template of messages needs at least one assistant turn to learn from")
        elif not all(pair):
            raise ValueError("a template needs both prompt and completion, or messages")
        return self
