"""What classifiers of files have in common: values that are opened when a batch is made, and one size for all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError
from hfadapt.files import Blob, Unusable
from hfadapt.modalities import Example, Row, Taken
from hfadapt.tasks import Answer, Served
from hfadapt.tasks._answers import Cut
from hfadapt.tasks._classes import OneClass, class_targets

if TYPE_CHECKING:
    import torch


class MediaClassification(OneClass):
    """Rows of a value, which is opened when a batch is made, and `label`; compared with a linear probe."""

    soft_labels = True
    # What a row is inside the model, its own code decides: patches, frames, and what it adds to them.
    without = ("attention",)

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Values with the processor that will read them. Raises DataError for an unknown label.

        All have the size that the processor gives within `max_length`; `length` is what the value itself would need.
        """
        kind = registry.modality(self.modality)
        sized = kind.sized(tokenizer, max_length)
        size = sized.positions

        def needed(row: Row) -> int:
            if (found := kind.clipped(sized, row)) is None:
                return min(size, sized.natural(row))
            whole, shown, _ = found
            return math.ceil(size * whole / shown)

        return [
            Example(
                {"value": row[self.modality], "processor": sized},
                self.target(row, labels, number),
                size,
                needed(row),
                number,
            )
            for number, row in enumerate(rows)
        ]

    def prompt(self, example: Example) -> Any:
        """A hash of the value."""
        return hashlib.sha256(repr(bytes(example.inputs["value"])).encode()).hexdigest()[:32]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """The model's inputs (B, …) as the processor makes them, and labels (B,) or, of blends, (B, C)."""
        import torch

        made = examples[0].inputs["processor"].inputs([example.inputs["value"] for example in examples])
        batch = {name: torch.from_numpy(values) for name, values in made.items()}
        if all(example.labels for example in examples):
            batch["labels"] = class_targets(examples)
        return batch

    def options(self, model: Any) -> dict[str, Any]:
        """Further arguments of the model."""
        return {}

    def outputs_of(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Any:
        """The model's outputs, `logits` (B, C) among them."""
        return model(**_given(batch, model), **self.options(model))

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, C)."""
        logits: torch.Tensor = self.outputs_of(model, batch).logits
        return logits

    def fault(self, value: Any) -> Problem | None:
        """Why a file cannot be read."""
        found = self._taken(value)
        return found if isinstance(found, Problem) else None

    def _cut(self, example: Example, row: Row) -> Cut | None:
        found = registry.modality(self.modality).clipped(example.inputs["processor"], row)
        return None if found is None else Cut.of(*found)

    def _taken(self, value: Any) -> tuple[Blob, Taken] | Problem:
        kind = registry.modality(self.modality)
        try:
            blob = Blob.of(value)
            return blob, kind.take(blob.read())
        except Unusable as fault:
            name = value if isinstance(value, str) else getattr(value, "name", "")
            if name and Path(name).is_dir():
                fix = f"hfadapt predict CELL --file FOLDER, which asks about all {kind.nouns} in it"
                return Problem(f"this is a folder, and no {kind.noun}", name, fix=fix)
            got = fault.detail.removeprefix(" has ").removeprefix(f"{name}: ").strip()
            return Problem(f"this {kind.noun} cannot be read", name, got=got)

    def answer(
        self, served: Sequence[Served], texts: Sequence[Any], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The head's outputs for each value, as `Modality.given` makes it. Raises RequestError, naming broken files."""
        import torch

        model = served[0].model
        found = [self._taken(text) for text in texts]
        if problems := [each for each in found if isinstance(each, Problem)]:
            raise RequestError(problems[0].what, problems=problems)
        blobs, taken = zip(*(each for each in found if not isinstance(each, Problem)), strict=True)
        rows = [{self.modality: each.data, **each.facts} for each in taken]
        examples = [
            self.encode([row], each.tokenizer, max_length=each.max_length, labels=each.labels)[0]
            for each, row in zip(served, rows, strict=True)
        ]
        batch = self.collate(examples, served[0].pad_token_id)
        named = {"adapter_names": list(names)} if names else {}
        with torch.inference_mode():
            logits = model(**_given(batch, model), **self.options(model), **named).logits
        return [
            self.read(blob.name, row, each.labels).model_copy(
                update={"cut": self._cut(example, value), "of_file": True}
            )
            for each, blob, row, example, value in zip(served, blobs, logits.float().cpu(), examples, rows, strict=True)
        ]


def _given(batch: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """What a model is given of a batch: where it is, numbers in its dtype."""
    inputs = {name: values.to(model.device) for name, values in batch.items() if name != "labels"}
    return {name: values.to(model.dtype) if values.is_floating_point() else values for name, values in inputs.items()}
