"""Label-safe changes of training rows, a fresh draw each epoch, the same draw again after a resume.

An operation of the rows' modality changes one value with a random generator of its own, seeded by (seed, epoch, source,
row, operation, place), so neither the order of rows nor the number of processes matters. What a row's schema calls
shown is changed; what a model has to produce never is. Where a task takes soft labels, a row may be blended with
another training row, drawn likewise, and its label with that row's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.hashing import stable_hash
from hfadapt.modalities import Example
from hfadapt.recipe.schema import Augment

CHUNK_ROWS = 512


def apply(
    rows: Sequence[Mapping[str, Any]],
    form: str,
    settings: Augment,
    seed: int,
    epoch: int,
    among: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Changes training rows for one epoch; rows of the other splits must not come here.

    Args:
        rows: Prepared rows with `source` and `row`; they are not changed themselves.
        form: Name of their schema.
        settings: How much of which operation.
        seed: The data seed.
        epoch: The 0-based epoch.
        among: All training rows, with which others may be blended; by default `rows`.

    Returns:
        As many rows in the same order; in chats only the user's turns change.
    """
    shares = settings.shares
    if not shares:
        return [dict(row) for row in rows]
    among = rows if among is None else among
    return [_blended(row, among, form, shares, (seed, epoch)) for row in rows]


def examples(
    rows: Sequence[Mapping[str, Any]],
    plain: Sequence[Example],
    form: str,
    settings: Augment,
    draw: tuple[int, int],
    encode: Callable[[Sequence[Mapping[str, Any]]], Sequence[Example]],
) -> list[Example]:
    """The encoded training rows of one epoch: changed rows are encoded again, the others are those of `plain`.

    A change that would push labels of a row beyond the longest length is left out for this epoch.

    Args:
        rows: Prepared rows with `source` and `row`.
        plain: The same rows as they are, encoded.
        form, settings: As in `apply`.
        draw: Seed and epoch.
        encode: Encodes rows, cut at the longest length.
    """
    found = list(plain)
    for start in range(0, len(rows), CHUNK_ROWS):
        before = rows[start : start + CHUNK_ROWS]
        after = apply(before, form, settings, *draw, among=rows)
        changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        for i, example in zip(changed, encode([after[i] for i in changed]), strict=True):
            old = found[start + i]
            if example.label_count >= old.label_count:
                found[start + i] = replace(example, row=old.row)
    return found


def _blended(
    row: Mapping[str, Any],
    among: Sequence[Mapping[str, Any]],
    form: str,
    shares: Mapping[str, float],
    draw: tuple[int, int],
) -> dict[str, Any]:
    """A changed row, blended with another changed one where the draw says so: each way has its share of the rows."""
    changed, schema = _changed(row, form, shares, *draw), registry.schema(form)
    chance = random.Random(stable_hash(*draw, row.get("source", ""), row.get("row", 0), "blend"))
    place = chance.random()
    for name, mixture in registry.modality(schema.modality).mixtures.items():
        share = shares.get(name, 0.0)
        if 0 <= place < share:
            other = _changed(chance.choice(among), form, shares, *draw)
            return schema.blended(changed, other, lambda one, two, mixture=mixture: mixture(one, two, chance))  # type: ignore[misc]
        place -= share
    return changed


def _changed(row: Mapping[str, Any], form: str, shares: Mapping[str, float], seed: int, epoch: int) -> dict[str, Any]:
    schema = registry.schema(form)
    operations = registry.modality(schema.modality).operations

    def change(value: Any, place: int) -> Any:
        for name, operation in operations.items():
            if name in shares:
                key = stable_hash(seed, epoch, row.get("source", ""), row.get("row", 0), name, place)
                value = operation(value, shares[name], random.Random(key))
        return value

    return schema.changed(row, change)
