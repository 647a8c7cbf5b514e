"""Two texts, and a number that says how alike they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hfadapt.schemas import LABEL_NAMES, Answers, Columns, Layout, read_number
from hfadapt.schemas.pairs import Judged, Pairs
from hfadapt.schemas.scored import KIND as SCORED

_SCORES = ("similarity", "similarity_score", "relatedness", "relevance", "rating", "is_duplicate")


class ScoredPairs(Pairs):
    """Rows of `anchor`, `positive` and `label`, a number of any range: only their order is learned."""

    name = "scored-pairs"
    rank = 40
    parts = ("anchor", "positive", "label")
    optional = ()
    names = {**Pairs.names, "label": ("score", *_SCORES, *LABEL_NAMES)}
    label_kind = "number"

    def fields(self, labelled: bool) -> list[tuple[str, Any]]:
        """`anchor`, `positive` and `label`."""
        import pyarrow as pa

        return [("anchor", pa.string()), ("positive", pa.string()), ("label", pa.float64())]

    def make(self, values: Columns, name_of: Callable[[Any], str | None]) -> dict[str, Any]:
        """Texts and number. Raises Unusable for what is no finite number."""
        number = SCORED.make({"text": "", "label": values["label"]}, name_of)["label"]
        return {**super().make(values, name_of), "label": number}

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """A query with lists of texts and of numbers that are more than 0 and 1."""
        judged = Judged.of(head, self, said)
        if judged is None or judged.bits:
            return None
        return judged.layout(judged.scored, "each makes a pair with its number", label=judged.labels)

    def asked(self, row: Columns) -> list[str]:
        """Both texts: what is learned is the number."""
        return [str(row[part]) for part in Pairs.parts]

    def alone(self, text: str) -> dict[str, Any] | None:
        """None: it has no number."""
        return None

    def label(self, row: Columns) -> str | None:
        """The number."""
        return SCORED.label(row)

    def classes(self, row: Columns) -> tuple[str, ...]:
        """None."""
        return ()

    def likely(self, labels: list[Any]) -> bool:
        """Whether these labels are numbers, be they only 0 and 1."""
        try:
            return len({read_number(label) for label in labels}) > 1
        except ValueError:
            return False

    def canary(self, chance: random.Random, label: str | None, answers: Answers) -> dict[str, Any]:
        """Random words and a random number of the data's range."""
        return {**super().canary(chance, label, answers), "label": round(chance.uniform(*answers.numbers), 3)}


KIND = ScoredPairs()
