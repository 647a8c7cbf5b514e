"""What the data ask of a plan: rows, labels and lengths, as far as they are known; what is assumed, is said."""

from __future__ import annotations

import math
from dataclasses import replace

from hfadapt.core import registry
from hfadapt.models.facts import ModelFacts
from hfadapt.plan.reasons import ASSUMED_ROWS, Work
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import DataRecord

ASSUMED_LABELS = 2


def work_of(recipe: Recipe, domain: str, record: DataRecord | None) -> Work:
    """Lengths and rows of a domain.

    Args:
        record: Of its rows as they were prepared; without a fingerprint, as its sources were looked at; None where
            nothing is known of them.
    """
    plain = record.lengths.get("train") if record is not None else None
    if record is None or plain is None:
        return _assumed(recipe, domain, record)
    unit = registry.modality_of(recipe.task).unit
    lengths = record.augmented.lengths if record.augmented else plain
    longest = max(plain.longest, lengths.longest)
    labelled = lengths.mean
    if record.completions:
        # At most two characters a token, with the end token and one to spare.
        labelled = max(len(text) for text in record.completions.values()) / 2 + 2
    if record.audit is not None and record.audit.rows:
        labelled = record.audit.labelled_tokens / record.audit.rows / lengths.parts
    rows = record.splits.get("train", lengths.rows)
    sample = f" in a sample of {plain.rows:,}" if plain.sample else ""
    texts = "" if lengths.parts == 1 else f"{lengths.parts:.3g} texts of "
    return Work(
        basis=f"{_rows(rows, record)} of {texts}{lengths.mean:.0f} {unit} on average, {longest} max"
        f"{', as augmented' if record.augmented else ''}{sample}",
        longest_tokens=longest,
        mean_tokens=lengths.mean,
        labelled_tokens=math.ceil(labelled),
        rows=rows + (record.canaries.rows if record.canaries else 0),
        labels=len(record.labels) or ASSUMED_LABELS,
        names=record.labels,
        texts=record.unlabelled.lengths if record.unlabelled else None,
        small_label_set=bool(record.labels),
        lengths=lengths,
        parts=lengths.parts,
        validation_rows=record.splits.get("validation", 0),
    )


def of_model(work: Work, facts: ModelFacts, record: DataRecord | None) -> Work:
    """With the length of rows that the model makes of what it is given, where no rows were measured."""
    usual = registry.modality_of(facts.task).usual(facts.config)
    if usual is None or work.lengths is not None:
        return work
    basis = _basis(work.rows, record, f"{usual} positions")
    return replace(work, basis=basis, longest_tokens=usual, mean_tokens=usual, labelled_tokens=1)


def _assumed(recipe: Recipe, domain: str, record: DataRecord | None) -> Work:
    """Lengths as they usually are; rows and labels too, where they are not known."""
    asked, task, held = recipe.domains[domain], registry.task(recipe.task), recipe.data.validation
    longest, unit = task.assumed_tokens, registry.modality(task.modality).unit
    names = record.labels if record is not None else tuple(asked.labels or ())
    template = recipe.template_of(domain)
    from_label = bool(template and template.completion and "{label}" in template.completion)
    rows = record.splits["train"] if record is not None else recipe.data.train_rows
    validation = int(held if held >= 1 else held * (rows or ASSUMED_ROWS))
    return Work(
        basis=_basis(rows, record, f"up to {longest} {unit}"),
        longest_tokens=longest,
        mean_tokens=longest / 2,
        labelled_tokens=longest // 2 if task.per_token and not from_label else 8,
        rows=rows,
        labels=len(names) or ASSUMED_LABELS,
        names=names,
        small_label_set=bool(names) or from_label,
        parts=task.assumed_parts,
        validation_rows=record.splits["validation"] if record is not None else validation,
    )


def _basis(rows: int | None, record: DataRecord | None, length: str) -> str:
    """What is known of rows whose lengths are not."""
    if record is None or rows is None:
        return f"not prepared yet: rows of {length} assumed"
    return f"{_rows(rows, record)}; {length} each assumed"


def _rows(rows: int, record: DataRecord) -> str:
    """How many rows there are, and whether they were only counted."""
    return f"{rows:,} training rows" if record.fingerprint else f"not prepared yet: about {rows:,} training rows"
