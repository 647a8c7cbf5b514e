"""What a check of supervision looks at, and how it words a finding."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hfadapt.core import registry
from hfadapt.files.places import Place, name_rows
from hfadapt.modalities import Example
from hfadapt.records.stages import FINDINGS, DataRecord, Finding
from hfadapt.schemas import RowSchema
from hfadapt.tasks import Task

# Ends of a turn that models stop at, beside their eos token.
_ENDS = ("im_end", "eot_id", "eot", "eom_id", "end", "endoftext", "end_of_text")
TURN_ENDS = frozenset({"</s>", "<end_of_turn>", "<turn|>", *(f"<|{name}|>" for name in _ENDS)})
# Markers that are one special token wherever they are used; others (`<|user|>`) are plain text for some models.
ALWAYS_SPECIAL = frozenset(
    f"<|{name}|>" for name in ("im_start", "im_end", "eot_id", "start_header_id", "end_header_id")
)
MARKER = re.compile(r"<\|[^|<>\s{}]{1,40}\|>|<(?:start|end)_of_turn>")
NAMED_ROWS = 50
WITHOUT_CUT = 1 << 30
CUT_OFF = "answer-cut-off"
"""Why rows are dropped of whose answer nothing is left within `max_length`."""


@dataclass(frozen=True)
class Asked:
    """What a recipe says of faults.

    Args:
        similarity: From which two rows are nearly the same (`data.dedupe`).
        named: Parts whose column it names.
        allow: Codes of hard findings that are to be warnings (`data.allow`).
        changes: Names of the changes of training rows (`data.augment`).
    """

    similarity: float = 0.8
    named: frozenset[str] = frozenset()
    allow: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass
class View:
    """What training will see.

    Args:
        schema: What the rows look like.
        rows: Rows of each split.
        examples: Tokenised rows of the splits that were encoded, beside `encoded`, the rows they come from.
        encoded: Rows that could be tokenised, by split.
        tokenizer: The model's tokenizer.
        task: The task.
        labels: Class names.
        max_length: Tokens an example may have.
        most_tokens: As many as the model can read, when known.
        record: data.json, when there is one.
        dropped: Why the first row of each reason was dropped.
        intact: Whether the files are those that were prepared, so that what was measured then still holds.
        asked: What the recipe says of faults.
    """

    schema: RowSchema
    rows: dict[str, list[dict[str, Any]]]
    examples: dict[str, list[Example]]
    encoded: dict[str, list[dict[str, Any]]]
    tokenizer: Any
    task: Task
    labels: Sequence[str]
    max_length: int
    most_tokens: int | None = None
    record: DataRecord | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    intact: bool = False
    asked: Asked = field(default_factory=Asked)
    stop_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def longer(self) -> str:
        """How to have less cut off."""
        unit, most = registry.modality(self.task.modality).unit, self.most
        if most is not None and self.max_length >= most:
            return f"the model reads {most} {unit} at most: shorten these rows, or set data.too_long: drop"
        return f"raise data.max_length (now {self.max_length} {unit}), shorten these rows, or set data.too_long: drop"

    @property
    def most(self) -> int | None:
        """The most that a row can be for the model, where that is known."""
        kind = registry.modality(self.task.modality)
        if self.most_tokens is not None or kind.tokens:
            return self.most_tokens
        most: int = kind.sized(self.tokenizer, WITHOUT_CUT).positions
        return most

    def pairs(self, split: str = "train") -> Iterator[tuple[dict[str, Any], Example]]:
        """Rows beside their tokenised examples."""
        yield from zip(self.encoded.get(split, ()), self.examples.get(split, ()), strict=True)


Check = Callable[[View], Iterable[Finding]]


def finding(
    code: str, level: str, what: str, rows: Sequence[Mapping[str, Any]] = (), fix: str = "", total: int | None = None
) -> Finding:
    """A finding whose message names its rows."""
    where = name_rows(map(Place.of, rows))
    share = f" in {len(rows):,} of {total:,} rows" if total is not None and rows else ""
    return Finding(
        code=code,
        level="hard" if level == "hard" else "soft",
        message=f"{what}{share}" + (f": {where}" if where else ""),
        rows=tuple(Place.of(row).row for row in rows[:NAMED_ROWS]),
        fix=fix,
    )


def weighed(found: Finding, allow: Collection[str]) -> Finding:
    """A hard finding with the way round it in its fix, or as a warning where the recipe goes that way."""
    if found.level != "hard" or found.code not in FINDINGS:
        return found
    if found.code in allow:
        return found.model_copy(update={"level": "soft", "message": f"allowed by data.allow: {found.message}"})
    otherwise = f"set data.allow: [{found.code}] to go on all the same"
    return found.model_copy(update={"fix": f"{found.fix}; or {otherwise}" if found.fix else otherwise})


def level_for(count: int, total: int, hard_from: float) -> str:
    """Hard from a share of the rows on."""
    return "hard" if total and count >= hard_from * total else "soft"


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens at which generation stops."""
    found = {tokenizer.eos_token_id} if getattr(tokenizer, "eos_token_id", None) is not None else set()
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return frozenset(found | {vocabulary[name] for name in TURN_ENDS if name in vocabulary})
