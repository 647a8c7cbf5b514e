"""The Modality contract: what rows are made of, and the example as which one reaches a model. One file per modality."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfadapt.files import Blob, Doubt
from hfadapt.files.nested import FILE
from hfadapt.files.stored import Stored

IGNORED = -100
"""A label that carries no loss."""

Row = Mapping[str, Any]
"""A prepared row."""

Operation = Callable[[Any, float, random.Random], Any]
"""Changes one value: the value, how much of it, and a random generator of its own."""

Mixture = Callable[[Any, Any, random.Random], tuple[Any, float]]
"""Blends a value with another one, by a random generator: the blend, and the share of the first in it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as a model takes it.

    Args:
        inputs: What the model is given, without a batch dimension: for texts `input_ids`. A row of several texts has an
            example of each in `parts`; its own size is that of the longest.
        labels: One entry per token for tasks that learn tokens (`IGNORED` where nothing is learned), else the targets
            of the row, or nothing where it has none.
        size: What batches are measured by: tokens of a text.
        length: The size before any cut.
        row: Number of the row.
        known: What a model that is not trained says of it (`objectives.Objective.known`), arrays by name.
    """

    inputs: Mapping[str, Any]
    labels: tuple[Any, ...]
    size: int
    length: int
    row: int
    known: Mapping[str, Any] | None = None

    @property
    def parts(self) -> tuple[Example, ...]:
        """The sequences as which the row goes through the model: itself, or one for each of its texts."""
        return self.inputs.get("parts") or (self,)

    @property
    def tokens(self) -> int:
        """What its sequences measure together."""
        return sum(part.size for part in self.parts)

    @property
    def truncated(self) -> bool:
        """Whether the row was cut."""
        return self.length > self.size

    @property
    def label_count(self) -> int:
        """Labels that carry a loss."""
        # A number may be -100.0.
        return sum(label != IGNORED or isinstance(label, float) for label in self.labels)


@dataclass(frozen=True)
class Taken:
    """A value as it is kept: read once, safely, and written so that whoever opens it again meets no surprise.

    Args:
        data: The bytes of its file.
        look: What it is compared by: equal for equal content, and with what `Modality.vector` makes of it.
        facts: Measures of it, by the names of `Modality.facts`.
        notes: What is to be said of it, the same words for all values of the kind.
    """

    data: bytes
    look: str
    facts: Mapping[str, float]
    notes: tuple[str, ...] = ()


class Modality:
    """What a modality has to say, with what texts need. The module-level instance is called `KIND`.

    Attributes:
        name: Name that tasks use, and of the column that holds a value.
        operations: Changes that leave a label right, by the name of the setting in `data.augment`.
        mixtures: Ways to blend the values of two rows, likewise; only for tasks with `soft_labels`.
        trials: Settings of `data.augment` that are worth trying (`auto`), each with its shares.
        perturbations: Careless input as users give it, with how much of it is changed.
        tokens: Whether its processor is a tokenizer, each of whose ids needs an embedding of the model.
        noun, nouns: What one value is called, and several.
        reader: What its processor is called.
        unit: What the size of an example counts, in words.
        cut, longer: What is done with a value that is too long, and what such a one is.
        one_size: Whether all examples of a batch must have the same size, as pictures must.
        suffixes: Endings of files each of which holds one value, in lower case; none for texts, which stand in tables.
        unread: Endings of files that hold one value too, in formats that are not read: each is said, none passed over.
        refusals: Reasons for which `take` refuses bytes.
        facts: Measures of a value that test rows are sliced by, each with its unit.
        imports, reading: Python that makes `inputs`, arrays of numpy by name, of `example` with the files of a folder
            of a whole model, and what it imports; `{max_length}` and `{arguments}` are filled in.
        component: What Gradio asks for a value with; a file is given by its path.
        played_as: Media type as which a browser plays a value that is kept; '' for what is seen, not heard.
    """

    name: str
    operations: Mapping[str, Operation]
    perturbations: Mapping[str, tuple[Operation, float]]
    mixtures: Mapping[str, Mixture] = {}
    trials: Sequence[Mapping[str, float]] = ()
    tokens: bool = False
    noun: str = "text"
    nouns: str = "texts"
    reader: str = "tokenizer"
    unit: str = "tokens"
    cut: str = "cut off"
    longer: str = "longer"
    one_size: bool = False
    suffixes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    facts: Mapping[str, str] = {}
    imports: str = ""
    reading: str = ""
    component: str = 'gr.Textbox(label="LABEL", lines=3)'
    played_as: str = ""

    def load_processor(self, path: str, revision: str | None) -> Any:
        """What turns values into a model's inputs: the tokenizer of texts."""
        raise NotImplementedError

    def sized(self, processor: Any, max_length: int) -> Any:
        """The processor for examples of at most `max_length` units."""
        return processor

    def arguments(self, config: Any, max_length: int) -> Mapping[str, Any]:
        """What transformers' processor or model is given beside a value, for examples of `max_length` units; the task's
        snippet says which."""
        return {}

    def identity(self, processor: Any) -> Any:
        """What two processors differ in, as JSON."""
        return sorted(processor.get_vocab().items())

    def usual(self, config: Mapping[str, Any]) -> int | None:
        """Units of a row of a model with this config, before any data was seen; None where the task says so."""
        return None

    def shaped(self, config: Mapping[str, Any], length: int) -> Mapping[str, Any]:
        """A model's config for examples of so many units, from which its inputs are known (`traced`)."""
        return config

    def traced(self, config: Any, rows: int, length: int) -> dict[str, Any]:
        """Inputs of a model with this config as zeros: `rows` rows of `length` units."""
        import torch

        ids = torch.zeros(rows, length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @property
    def argument(self) -> str:
        """What stands for a value on a command line: a text, or the name of a file."""
        return f"example{self.suffixes[0]}" if self.suffixes else '"text"'

    accepted: str = "str, or a list of str"
    """What `given` takes, in words."""

    def given(self, value: Any) -> Any:
        """A value as callers in Python give it, as tasks answer it; None for what is none, such as a list of values.

        Raises:
            Unusable: it is the address of a file on the web, or no name at all.
        """
        if not self.suffixes:
            return value if isinstance(value, str) else None
        value = str(value) if isinstance(value, Path) else value
        if callable(read := getattr(value, "read", None)) and not isinstance(value, Blob):
            value = read()
        one = isinstance(value, (str, bytes, bytearray, Blob)) or (isinstance(value, Mapping) and FILE & value.keys())
        return Blob.of(value) if one else None

    def clipped(self, processor: Any, row: Row) -> tuple[float, float, str] | None:
        """How long a value is, how much of it a model is given, and the unit; None where it is given all."""
        return None

    def brought(self, processor: Any, rows: Sequence[Row]) -> str:
        """What is done with values so that each has the size that the model takes, counted over prepared rows; '' where
        they are cut, at most."""
        return ""

    def mislabels(self, operation: str, labels: Sequence[str]) -> str:
        """Why a change of `data.augment` may make labels wrong, by the names of the classes; or nothing."""
        return ""

    def opening_bytes(self, config: Mapping[str, Any], rows: int, length: int) -> int:
        """Main memory that making a model's inputs of so many rows of `length` units takes beside these."""
        return 0

    # --- values that come as files -----------------------------------------------------------------------------------

    def take(self, data: bytes) -> Taken:
        """A value as it is kept. Raises Unusable for bytes that are none."""
        raise NotImplementedError

    def doubts(self, row: Row) -> list[Doubt]:
        """What may be wrong with a prepared row, by its measures; the same words for all rows of the kind."""
        return []

    def vector(self, look: str) -> Any:
        """(D,) float32 of length 1 for a `look`: what is nearly the same has a product close to 1."""
        raise NotImplementedError

    def nearness(self, similarity: float) -> float:
        """The product from which two values count as nearly the same, for `data.dedupe.similarity`."""
        raise NotImplementedError

    def random(self, chance: random.Random) -> bytes:
        """The bytes of a value that means nothing, for canaries."""
        raise NotImplementedError

    def filling(self, processor: Any) -> dict[str, Any]:
        """How a processor fills up rows that are read together, by name, which a row alone does not show."""
        return {}

    def probes(self) -> list[Any]:
        """Values in which two processors may differ that read usual ones alike."""
        return [self.random(random.Random(0))]

    def preview(self, data: bytes | Stored, side: int) -> tuple[bytes, str]:
        """A small picture of a value and its media type, at most `side` pixels high."""
        raise NotImplementedError
