"""What a recipe says of how rows become splits: the recipe's `data`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hfadapt.core.spec import Section
from hfadapt.recipe.augment import AnyAugment, Augment
from hfadapt.recipe.names import AUTO, Auto, FindingCode, Positive


class Clean(Section):
    """Repairs and filters of single rows."""

    unicode: bool = True
    """Repairs texts that were decoded wrongly, and takes out characters that nobody sees."""
    min_characters: Annotated[int, Field(ge=0)] = 1
    """Shorter texts are left out."""
    max_characters: Positive = 200_000
    """Longer texts are left out."""
    language: str | None = None
    """Only texts of this language stay, a code such as `en`; needs the extra `language`.

    Cost: every text is read once more.
    Example: en
    """
    pii: Literal["off", "redact", "drop"] = "off"
    """What happens to personal data such as addresses and telephone numbers; needs the extra `pii`.

    Cost: every text is read once more.
    """


class Dedupe(Section):
    """Removal of repeated rows."""

    exact: bool = True
    """Removes rows that are the same."""
    near: bool = True
    """Removes rows that are nearly the same."""
    similarity: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8
    """Share of words that two near-duplicates have in common, in order: 1 - edited words / words of the longer row."""
    across_domains: bool = True
    """Compares rows across domains too."""


class Canaries(Section):
    """Random rows planted among the training rows, to measure afterwards how far they are learned by heart."""

    count: Annotated[int, Field(ge=0, le=1000)] = 0
    """Canaries in all; 0 plants none.

    Example: 12
    """
    repeats: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 16)
    """How often each is trained on in an epoch; the canaries are dealt out over these."""


class Data(Section):
    """How rows become splits."""

    train_rows: Positive | None = None
    """The most training rows.

    Cost: time grows in proportion.
    Example: 1000
    """
    validation: Annotated[float, Field(gt=0.0)] = 0.1
    """Validation rows: a share (below 1) or a number (from 1)."""
    test: Annotated[float, Field(gt=0.0)] = 0.1
    """Test rows: a share (below 1) or a number (from 1)."""
    seed: int = 17
    """Which rows go where."""
    max_length: Annotated[int, Field(ge=8)] | Auto = AUTO
    """The most tokens of a row.

    Auto: the plan: the longest row, at most what the model reads and 4,096.
    Cost: memory of activations grows in proportion, that of attention faster.
    Example: 256
    """
    too_long: Literal["drop", "truncate"] = "truncate"
    """What happens to longer rows."""
    conflicts: Literal["drop", "majority", "keep"] = "drop"
    """What happens to equal rows with different labels."""
    allow: tuple[FindingCode, ...] = ()
    """Findings that would stop the run and are to be warnings; `refused` leaves out rows that the task or the model's
    template refuses.

    Example: [identifiers]
    """
    packing: bool | Auto = AUTO
    """Puts several rows into one sequence, with attention inside each.

    Auto: the plan, wherever the task can.
    Cost: without it time and memory go into padding.
    """
    streaming: bool = False
    """Reads the rows as they come, so that data may be larger than memory.

    Cost: slower; no more than a few files are in memory.
    """
    workers: Positive | Auto = AUTO
    """Processes that clean the rows.

    Auto: the cores that this process may use.
    Cost: memory for each.
    Example: 4
    """
    clean: Clean = Clean()
    """Repairs and filters of single rows."""
    dedupe: Dedupe = Dedupe()
    """Removal of repeated rows."""
    augment: AnyAugment = Augment()
    """Label-safe changes of training rows.

    Auto: a trial on the validation rows, where there are few training rows.
    Example: {typos: 0.1}
    """
    canaries: Canaries = Canaries()
    """Random rows that measure what is learned by heart."""
