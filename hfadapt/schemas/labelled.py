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

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Text and the name of its class. Raises Unusable where there is no class."""
        label = name_of(values["label"])
        if label is None:
            raise Unusable("missing-field")
        return {"text": plain(values["text"]), "label": label}

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
