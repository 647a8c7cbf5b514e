"""A text with any number of classes, also none."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hfadapt.schemas import LABEL_NAMES, TEXT_NAMES, Answers, Columns, plain, read_list, refuse_scores
from hfadapt.schemas.labelled import Labelled

_SEPARATOR = re.compile(r"\s*[;,|]\s*")
_OFF = frozenset({"0", "0.0", "", "false"})


class Several(Labelled):
    """Rows of `text` and `label`, a list of classes: as a list, as JSON, with `;`, `,` or `|` between them, or as an
    object of flags."""

    name = "several"
    rank = 22
    names = {"text": TEXT_NAMES, "label": (*LABEL_NAMES, "cats")}
    label_kind = "classes"

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`text` and `label`."""
        import pyarrow as pa

        return [("text", pa.string()), ("label", pa.list_(pa.string()))]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Text and the names of its classes, each once, sorted."""
        names = {name for each in _listed(values["label"]) if (name := name_of(each)) is not None}
        return {"text": plain(values["text"]), "label": sorted(names)}

    def label(self, row: Columns) -> str | None:
        """All its classes."""
        return None if row.get("label") is None else ", ".join(row["label"])

    def classes(self, row: Columns) -> tuple[str, ...]:
        """Its classes."""
        return tuple(row.get("label") or ())

    def likely(self, labels: list[Any]) -> bool:
        """Whether these labels are lists, or text with several of the same words again and again, in other company too:
        "Injury, poisoning" is one class where neither word stands anywhere else."""
        lists = [label for label in labels if isinstance(label, (list, tuple, Mapping))]
        if lists:
            # Lists of lists and of objects are something else, such as spans.
            return not any(isinstance(each, (list, tuple, Mapping)) for label in lists for each in label)
        parts = [tuple(_listed(label)) for label in labels if isinstance(label, str)]
        apart = Counter(part for each in {*parts} for part in {*each})
        joined = [any(apart[part] > 1 for part in each) for each in {*parts} if len(each) > 1]
        return sum(joined) > len(joined) / 2 and len(apart) < 0.2 * sum(map(len, parts))

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words and one random class."""
        return {**super().canary(chance, label, answers), "label": [] if label is None else [label]}


def _listed(value: Any) -> list[Any]:
    found = read_list(value)
    if isinstance(found, Mapping):
        # NaN is not itself.
        refuse_scores(found.values())
        said = {name: flag for name, flag in found.items() if flag is not None and flag == flag}
        return [name for name, flag in said.items() if str(flag).strip().lower() not in _OFF]
    if found is not None:
        if len(found) > 1:
            refuse_scores(found)
        return found
    if not isinstance(value, str):
        return [value]
    return [part for part in _SEPARATOR.split(value.strip()) if part]


KIND = Several()
