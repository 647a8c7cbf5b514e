"""How a row of columns becomes what a language model learns: the recipe's `template`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from hfadapt.core.spec import Section


class Turn(Section):
    """One chat turn of a template."""

    role: Literal["system", "user", "assistant"]
    """Whose turn it is; the assistant's are learned.

    Example: user
    """
    content: str
    """Its text; `{column}` is replaced by the row's value.

    Example: '{text}'
    """


class Template(Section):
    """Turns a row of columns into prompt and completion, or into chat messages.

    `{column}` stands for the value of that column; a label is given by name.
    """

    prompt: str | None = None
    """What the model is shown.

    Example: 'Text: {text}'
    """
    completion: str | None = None
    """What it learns to write after the prompt.

    Example: ' {label}'
    """
    messages: tuple[Turn, ...] | None = None
    """Turns of a chat, in the place of prompt and completion.

    Example: [{role: user, content: '{text}'}, {role: assistant, content: '{label}'}]
    """

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
