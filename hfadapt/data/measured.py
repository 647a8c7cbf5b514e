"""What is known of a domain's rows before a run prepares them, for a plan: from what was measured before, or a sample.

Whoever tokenises the rows of a preparation keeps their lengths in the cache, by the preparation, the tokenizer, and the
settings that rows are fitted by; other data or another tokenizer finds nothing there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfadapt.core import cache, registry
from hfadapt.core.errors import DataError
from hfadapt.core.hashing import json_sha256
from hfadapt.data.audit.supervision import augmented, lengths
from hfadapt.data.columns import one_form, settle_labels
from hfadapt.data.fit import fits
from hfadapt.data.labels import Labels
from hfadapt.data.reading import SourceReader
from hfadapt.data.rows import Dropped, Row, as_line
from hfadapt.data.sources import Opened, Reading
from hfadapt.files import Read
from hfadapt.models.folders import inputs_sha256, model_folder
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import DataRecord, Finding, SourceRecord
from hfadapt.schemas import Unusable

VERSION = 1
"""Raised whenever the same rows and settings would give other lengths."""
SAMPLE_ROWS, SAMPLE_FILES = 1_000, 64
"""Rows that are tokenised for a plan, and recordings or pictures that are opened for it."""
SAMPLE_CHARACTERS = 2_000_000
"""Of these rows: about a second of tokenising."""


def keep_lengths(record: DataRecord, recipe: Recipe, model: str, fingerprint: str | None = None) -> None:
    """Keeps the lengths of rows, and the counts of splits as they were fitted, unless the model has no folder.

    Args:
        record: Of a domain, with lengths.
        model: Whose tokenizer measured them.
        fingerprint: Of rows that are not prepared; the record has that of those that are.
    """
    if (place := _place(fingerprint or record.fingerprint, record.domain, recipe, model)) is not None:
        cache.write(place, record)


def kept_lengths(fingerprint: str, domain: str, recipe: Recipe) -> DataRecord | None:
    """The record that `keep_lengths` kept for these rows of a domain and the recipe's model, or None."""
    place = _place(fingerprint, domain, recipe, recipe.model)
    return None if place is None else cache.read(place, DataRecord)


def _place(fingerprint: str, domain: str, recipe: Recipe, model: str) -> Path | None:
    if (folder := model_folder(model)) is None:
        return None
    settings = recipe.data.model_dump(mode="json", include={"max_length", "too_long", "augment", "allow"})
    what = [VERSION, fingerprint, domain, recipe.task, settings, inputs_sha256(folder)]
    return cache.folder() / "lengths" / f"{json_sha256(what)[:24]}.json"


def sampled(
    record: DataRecord, rows: Sequence[Mapping[str, Any]], recipe: Recipe, tokenizer: Any, most: int
) -> DataRecord:
    """The record with the lengths of some of its training rows; their number too, where fitting changes it.

    Args:
        rows: Training rows of the domain, prepared.
        most: The most tokens of a row, by which longer ones are divided.

    Raises:
        DataError: the task refuses all of them.
    """
    task, chosen = registry.task(recipe.task), _some(rows, record.form)
    fitted: list[Mapping[str, Any]] = list(chosen)
    if fits(task, record.form):
        fitted = []
        for row in chosen:
            try:
                fitted += task.fitted(dict(row), tokenizer, None if recipe.data.too_long == "drop" else most)
            except (Unusable, DataError):
                continue
    found = lengths(fitted, task, tokenizer, labels=record.labels)
    known = {"train": found.model_copy(update={"sample": len(chosen) < record.splits["train"]})}
    splits = {name: round(count * len(fitted) / len(chosen)) for name, count in record.splits.items()}
    changed = augmented([dict(row) for row in fitted], record.form, recipe.data, task, tokenizer, labels=record.labels)
    return record.model_copy(update={"lengths": known, "splits": splits, "augmented": changed})


def _some(rows: Sequence[Mapping[str, Any]], form: str) -> list[Mapping[str, Any]]:
    """So many rows, drawn at random, that they are tokenised within about a second."""
    schema = registry.schema(form)
    order = random.Random(0).sample(range(len(rows)), min(len(rows), SAMPLE_FILES if schema.media else SAMPLE_ROWS))
    characters = 0
    for count, number in enumerate(order):
        characters += 0 if schema.media else len(schema.words(dict(rows[number])))
        if count and characters > SAMPLE_CHARACTERS:
            return [rows[each] for each in sorted(order[:count])]
    return [rows[each] for each in sorted(order)]


def estimated(recipe: Recipe, domain: str, opened: Sequence[Opened]) -> tuple[DataRecord, list[dict[str, Any]]]:
    """What the rows of a domain will be about, and some of them: those that can be read, before any is compared.

    Returns:
        A record without a fingerprint, as nothing is prepared, and rows as they would be prepared.

    Raises:
        DataError: the sources cannot be read, or nothing in them can be learned from.
    """
    asked = recipe.domains[domain]
    forms, labels = registry.task(recipe.task).schemas, Labels(asked.labels, asked.no_label)
    counts, rows, sources = {"train": 0, "validation": 0, "test": 0}, [], []
    noticed = [each for source in opened for each in source.noticed]
    for source in opened:
        count, some = _counted(source.read(), source.settings.rows, noticed)
        reader = SourceReader(recipe, domain, replace(source, read=_again(some)), forms, labels)
        usable = [item for item in reader if isinstance(item, Row)]
        for split, own in Counter(row.split for row in usable).items():
            counts[split or "train"] += round(count * own / max(1, len(some)))
        sources.append(SourceRecord(source=source.name, rows=count))
        rows += [row for row in usable if not row.split]
    if not rows:
        raise DataError("there is no row to learn from", place=f"domains.{domain}", fix="hfadapt check RECIPE")
    form = one_form(rows, domain)
    names = settle_labels(rows, form, labels, domain)
    whole = counts["train"]
    for split in ("test", "validation"):
        if not counts[split]:
            share = getattr(recipe.data, split)
            counts[split] = min(counts["train"] - 1, round(share if share >= 1 else share * whole))
            counts["train"] -= counts[split]
    counts["train"] = min(counts["train"], recipe.data.train_rows or counts["train"])
    completions = {row.label: row.columns["completion"] for row in rows if row.label and "completion" in row.columns}
    total = sum(counts.values())
    record = DataRecord(
        **{"domain": domain, "form": form, "sources": tuple(sources), "rows_in": total, "rows_kept": total},
        **{"dropped": {}, "splits": counts, "labels": names, "fingerprint": "", "seconds": 0.0},
        completions=dict(sorted(completions.items())),
        noticed=tuple(noticed),
    )
    return record, [as_line(row) for row in rows]


def _counted(items: Reading, limit: int | None, noticed: list[Finding]) -> tuple[int, list[Read | Dropped]]:
    """How many rows there are, and some of them from beginning to end: files are often sorted by label.

    Args:
        noticed: What is found beside rows goes here.
    """
    every, count = 1, 0
    some: list[Read | Dropped] = []
    for item in items:
        if isinstance(item, Finding):
            noticed.append(item)
            continue
        if count == limit:
            break
        if count % every == 0:
            some.append(item)
            if len(some) == 2 * SAMPLE_ROWS:
                some, every = some[::2], 2 * every
        count += 1
    return count, some


def _again(items: Sequence[Read | Dropped]) -> Any:
    return lambda: iter(items)
