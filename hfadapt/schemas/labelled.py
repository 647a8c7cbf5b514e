"""A text with one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import LABEL_NAMES, TEXT_NAMES, Answers, Change, Columns, LabelKind, Layout, Unusable, plain
from hfadapt.schemas._label_studio import layout_of
from hfadapt.schemas.text import Text


class Labelled(Text):
    """Rows of `text` and `label`."""

    name = "labelled"
    rank = 20
    parts = ("text", "label")
    names = {"text": TEXT_NAMES, "label": LABEL_NAMES}
    label_kind: LabelKind = "class"

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`text` and `label`."""
        return [*super().fields(False), ("label", self.label_type())]

    def label_type(self) -> Any:
        """A name."""
        import pyarrow as pa

        return pa.string()

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Text and label. Raises Unusable where there is none."""
        label = self.target(values["label"], name_of)
        return {"text": plain(values["text"]), "label": label}

    def target(self, value: Any, name_of: Callable[[Any], str | None]) -> Any:
        """The name of a class. Raises Unusable where there is none."""
        label = name_of(value)
        if label is None:
            raise Unusable("missing-field")
        return label

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """An export of Label Studio."""
        return layout_of(head, said, self.label_kind)

    def answered(self, asked: str, label: str, answers: Answers) -> dict[str, Any] | None:
        """The text with the class."""
        return {"text": asked, "label": label}

    def changed(self, row: Columns, change: Change) -> dict[str, Any]:
        """The text changed."""
        return {**row, "text": change(row["text"], 0)}


KIND = Labelled()
