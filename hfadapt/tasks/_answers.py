"""What is answered, and what answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, overload

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from hfadapt.core.show import Block, Shown, Table
from hfadapt.core.spec import Spec


class Cut(Spec):
    """A row that is longer than the model takes: its length, and how much of it was `read`, in tokens or seconds."""

    length: int | float
    read: int | float
    unit: str = "tokens"

    @classmethod
    def of(cls, length: float, read: float, unit: str = "tokens") -> Cut | None:
        """None where all was read."""
        return cls(length=length, read=read, unit=unit) if read < length else None

    def __str__(self) -> str:
        return f"{self.read:,.4g} of its {self.length:,.4g} {self.unit} were read"


class Answer(Shown, Spec):
    """What an adapter says about one text, or about one file, whose name then stands in `text`, and as `file` in JSON.

    Args:
        label: A class, where one is chosen; several, or one for each token, in words.
        probability: Of `label`, where it has one.
        number: The value of a task that answers with numbers.
        generated: Text that was written.
        parts: Pieces of the text with the class of each, for tasks that answer token by token.
        vector: What stands for the text, for tasks that compare texts; `number` is then how alike it is to the first.
        cut: Where the text was longer than the model takes.
    """

    text: str
    label: str | None = None
    probability: float | None = None
    number: float | None = None
    generated: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    vector: tuple[float, ...] | None = None
    cut: Cut | None = None
    of_file: bool = Field(default=False, exclude=True)

    @model_serializer(mode="wrap")
    def _named(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"file" if self.of_file and name == "text" else name: value for name, value in fields(self).items()}

    def __str__(self) -> str:
        if self.vector is not None and self.number is None:
            return f"{len(self.vector)} numbers: {', '.join(f'{x:.4f}' for x in self.vector[:4])}, …"
        if self.number is not None:
            return f"{self.number:.4g}"
        if self.label is None:
            return str(self.generated)
        sure = f" ({self.probability:.0%})" if self.probability is not None else ""
        return f"{self.label}{sure}"

    def blocks(self) -> list[Block]:
        """The text and what is said about it."""
        return Answers([self]).blocks()


class Answers(list[Answer], Shown):
    """Answers in the order of what was asked; a list that shows itself as a table, and so do parts of it."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> Answer: ...

    @overload
    def __getitem__(self, place: slice) -> Answers: ...

    def __getitem__(self, place: SupportsIndex | slice) -> Answer | Answers:
        """One answer, or some."""
        return Answers(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    def blocks(self) -> list[Block]:
        """A row for each."""
        files = any(answer.of_file for answer in self)
        # What came without a name is known by its place.
        names = [each.text or (f"row {row}" if files and len(self) > 1 else "") for row, each in enumerate(self)]
        rows = [[name, str(answer)] for name, answer in zip(names, self, strict=True)]
        return [Table(["file" if files else "text", "answer"], rows)]

    __str__ = list.__repr__


class Served(Protocol):
    """An adapter that is asked, as `serve.Adapted` is."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    choices: Mapping[str, tuple[int, ...]]
    max_length: int
    form: str | None
    prompt: str | None

    @property
    def pad_token_id(self) -> int:
        """What rows are padded with."""

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[list[int]]:
        """Greedy continuations of token ids."""
