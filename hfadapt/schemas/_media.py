"""What rows of files have in common: an image or a recording with a class."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.files import Blob
from hfadapt.modalities import Modality
from hfadapt.schemas import LABEL_NAMES, Answers, Blend, Change, Columns, LabelKind, Layout, RowSchema, Unusable
from hfadapt.schemas._label_studio import layout_of

_OF_FILE = {"several-labels": "several-of-file"}
"""What other tasks learn of files than of texts."""
CLASS_NAMES = ("species", "breed", "genre", "diagnosis", "dx")
"""What else the class of images and recordings is called; of a text it may be something beside it."""
FILE_NAMES = ("file", "file_name", "filename", "path", "filepath", "file_path")


class Labelled(RowSchema):
    """Rows of a value, which is kept as bytes, and `label`.

    Beside them stand the name of the file, what the value is compared by (`look`), and its measures.
    """

    label_kind: LabelKind = "class"

    @property
    def media(self) -> str:  # type: ignore[override]
        """Its value."""
        return self.modality

    @property
    def kind(self) -> Modality:
        """The modality of the value."""
        return registry.modality(self.modality)

    @property
    def columns(self) -> tuple[str, ...]:
        """Value, class, name of the file, and what it is compared by."""
        return (*self.parts, "file", "look")

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """The columns, and the measures."""
        import pyarrow as pa

        types = {self.modality: pa.binary(), "label": self.label_type()}
        own = [(name, types.get(name, pa.string())) for name in self.columns]
        return [*own, *((name, pa.float32()) for name in self.kind.facts)]

    def label_type(self) -> Any:
        """A name."""
        import pyarrow as pa

        return pa.string()

    def target(self, value: Any, name_of: Callable[[Any], str | None]) -> Any:
        """The name of a class. Raises Unusable where there is none, or several."""
        try:
            label = name_of(value)
        except Unusable as fault:
            raise Unusable(_OF_FILE.get(fault.reason, fault.reason), fault.detail) from None
        if label is None:
            raise Unusable("missing-field")
        return label

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """An export of Label Studio."""
        return layout_of(head, said, self.label_kind, self.modality)

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """The value as it is kept. Raises Unusable where it cannot be read, or has no label."""
        label = self.target(values["label"], name_of)
        blob = values[self.modality]
        if isinstance(blob, Unusable):
            raise blob
        blob = Blob.of(blob)
        try:
            taken = self.kind.take(blob.read())
        except Unusable as fault:
            if not blob.name or blob.name in fault.detail:
                raise
            raise Unusable(fault.reason, f", {blob.name},{fault.detail}") from None
        noted = {"notes": "; ".join(taken.notes)} if taken.notes else {}
        return {
            **{self.modality: taken.data, "label": label, "file": blob.name, "look": taken.look},
            **taken.facts,
            **noted,
        }

    def lacks(self, values: Columns, part: str, column: str) -> Unusable:
        """A file of a folder has no class where it is in the folder of none."""
        blob = values.get(self.modality)
        # In a table the cell is empty, and beside a file of a folder there is none.
        if column in values or not isinstance(blob, Blob) or values.get("file") != blob.name:
            return super().lacks(values, part, column)
        folder = blob.name.rpartition("/")[0]
        where = (
            f"in the folder {folder}, which is no class" if folder else "beside the folders of classes, in none of them"
        )
        detail = f", {blob.name}, is {where}"
        return Unusable("no-class", detail)

    def shown(self, row: Columns) -> str:
        """What it is compared by."""
        return str(row["look"])

    def quoted(self, row: Columns) -> tuple[str, ...]:
        """The name of the file."""
        return ("file",)

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The value changed."""
        return {**row, self.modality: change(row[self.modality], 0)}

    def blended(self, row: Columns, other: Columns, blend: Blend) -> dict[str, Any]:
        """The value blended with the other one, and both labels in their shares, where they differ."""
        value, share = blend(row[self.modality], other[self.modality])
        own, its = row["label"], other["label"]
        return {**row, self.modality: value, "label": own if own == its else {own: share, its: 1 - share}}

    def rewritten(self, row: Columns, change: Callable[[str], str]) -> dict[str, Any]:
        """As it is: there is no text in it."""
        return dict(row)

    def stated(self, row: Columns) -> list[str]:
        """Nothing that could be written down."""
        return []

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """A value that means nothing."""
        taken = self.kind.take(self.kind.random(chance))
        return {self.modality: taken.data, "label": label, "file": "", "look": taken.look, **taken.facts}


def names_of(part: str, *others: str) -> dict[str, tuple[str, ...]]:
    """Column names of a modality's part and of its class."""
    return {part: (part, *others, *FILE_NAMES), "label": (*LABEL_NAMES, *CLASS_NAMES)}
