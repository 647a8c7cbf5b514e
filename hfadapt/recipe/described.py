"""What the text below a field of a recipe says of it (`core.spec.Section`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hfadapt.recipe.yaml_lines import Tree, read_into

LINES = ("Auto", "Cost", "Example")


@dataclass(frozen=True)
class Described:
    """What a field does, who answers its `auto`, what it costs, and a value as YAML; "" where nothing is said."""

    what: str
    auto: str = ""
    cost: str = ""
    example: str = ""

    @property
    def words(self) -> str:
        """All but the example, as one text."""
        more = [f"{name}: {text}" for name, text in (("Auto", self.auto), ("Cost", self.cost)) if text]
        return "\n\n".join([self.what, *more])


def described(text: str | None) -> Described:
    """Takes the text below a field apart."""
    what, *rest = re.split(rf"^({'|'.join(LINES)}): ", text or "", flags=re.MULTILINE)
    said = {name.lower(): " ".join(part.split()) for name, part in zip(rest[::2], rest[1::2], strict=True)}
    return Described(" ".join(what.split()), **said)


def value_of(example: str) -> Any:
    """The value that an example stands for."""
    return read_into(Tree(""), example)
