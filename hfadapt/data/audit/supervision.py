"""The audit before step 1: tokenises as training will, counts what will be learned, and collects findings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, Problem
from hfadapt.data import augment
from hfadapt.data.audit import findings as found
from hfadapt.data.audit import rows as row_checks
from hfadapt.data.audit import tokens as token_checks
from hfadapt.data.audit.findings import CUT_OFF, WITHOUT_CUT, finding, weighed
from hfadapt.data.columns import form_of
from hfadapt.data.rows import SPLITS, Dropped
from hfadapt.data.split_files import DROPPED, RECORD, file_hashes, read_split, rewrite
from hfadapt.files.places import Place, name_rows
from hfadapt.modalities import IGNORED, Example
from hfadapt.modalities.text import token_ids
from hfadapt.recipe.schema import Data
from hfadapt.records.stages import Audit, Augmented, DataRecord, Finding, Lengths, LongRow
from hfadapt.tasks import Task

CHECKS = (*row_checks.CHECKS, *token_checks.CHECKS)
OF_FILES = (*row_checks.CHECKS, token_checks.truncated)
"""Of rows that are files, which no tokenizer reads."""
ENCODE_ROWS = 512
LONGEST_ROWS = 5
AUDIT_ROWS = 200_000
ASKED = found.Asked()


def audit(
    cell_folder: Path,
    task: Task,
    tokenizer: Any,
    *,
    max_length: int,
    most_tokens: int | None = None,
    labels: Sequence[str] = (),
    asked: found.Asked = ASKED,
) -> Audit:
    """Looks at a cell's data as training will see it.

    Args:
        cell_folder: Holds data/ with the three splits and, usually, data.json.
        task: The Task; its `encode` and `collate` are what training uses.
        tokenizer: The model's tokenizer.
        max_length: Tokens an example may have.
        most_tokens: As many as the model can read, when known.
        labels: Class names, in the model's order.
        asked: What the recipe says of faults.

    Returns:
        Counts, findings and a decoded sample; nothing is raised for a finding, see `require_clean`. Of a split of more
        than 200,000 rows it looks at about that many, spread evenly.

    Raises:
        RunError: the cell has no prepared data.
    """
    rows = {split: read_split(cell_folder, split, limit=AUDIT_ROWS) for split in SPLITS}
    record = DataRecord.read(cell_folder / RECORD) if (cell_folder / RECORD).exists() else None
    form = record.form if record else _form(rows)
    examples: dict[str, list[Example]] = {}
    encoded: dict[str, list[dict[str, Any]]] = {}
    refused: Refused = {}
    for split in SPLITS:
        examples[split], encoded[split] = _encode(rows[split], task, tokenizer, max_length, labels, refused)
    view = found.View(
        schema=registry.schema(form),
        rows=rows,
        examples=examples,
        encoded=encoded,
        tokenizer=tokenizer,
        task=task,
        labels=labels,
        max_length=max_length,
        most_tokens=most_tokens,
        record=record,
        dropped=_first_dropped(cell_folder),
        intact=record is not None and bool(record.files) and record.files == file_hashes(cell_folder),
        asked=asked,
        stop_ids=found.stop_ids(tokenizer),
    )
    # A file has no tokens, whose masks and ends could be wrong.
    checks = OF_FILES if view.schema.media else CHECKS
    findings = [each for check in checks for each in check(view)]
    if not any(each.code == "no-chat-template" for each in findings):
        findings += _refusals(refused, sum(map(len, rows.values())))
    findings += record.noticed if record else ()
    findings = [weighed(each, asked.allow) for each in findings]
    findings.sort(key=lambda each: each.level)
    trained = examples["train"]
    longest = sorted(zip(encoded["train"], trained, strict=True), key=lambda pair: -pair[1].length)[:LONGEST_ROWS]
    labelled = [sum(1 for label in example.labels if label != IGNORED) for example in trained]
    return Audit(
        rows=len(rows["train"]),
        tokens=sum(example.tokens for example in trained),
        labelled_tokens=sum(labelled),
        truncated_rows=sum(1 for example in trained if example.truncated),
        unlabelled_rows=sum(1 for count in labelled if count == 0),
        learns_to_stop=token_checks.learns_to_stop(view),
        findings=tuple(findings),
        sample=_sample(view),
        dropped=dict(view.dropped),
        brought=_brought(view),
        longest=tuple(LongRow(**Place.of(row).columns, tokens=example.length) for row, example in longest),
    )


def _brought(view: found.View) -> str:
    """What is done with training rows that come as files, so that each has the size that the model takes."""
    if not view.schema.media:
        return ""
    kind = registry.modality(view.task.modality)
    return kind.brought(kind.sized(view.tokenizer, view.max_length), view.rows["train"])


def _first_dropped(cell_folder: Path) -> dict[str, str]:
    """Source, row and detail of the first dropped row of each reason that has details."""
    found: dict[str, str] = {}
    if (path := cell_folder / DROPPED).exists():
        with path.open(encoding="utf-8") as file:
            for each in map(json.loads, file):
                if each.get("detail") and each["reason"] not in found:
                    found[each["reason"]] = each["detail"]
    return found


def _form(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    first = next((row for split in SPLITS for row in rows[split]), {"text": ""})
    return form_of({name: value for name, value in first.items() if value is not None})


Refused = dict[str, tuple[DataError, list[dict[str, Any]]]]
"""Rows that the task refuses, by what it says of them."""


def _encode(
    rows: Sequence[dict[str, Any]], task: Task, tokenizer: Any, max_length: int, labels: Sequence[str], refused: Refused
) -> tuple[list[Example], list[dict[str, Any]]]:
    """Tokenises in chunks, and returns examples and their rows; rows that the task refuses are added to `refused`."""
    examples: list[Example] = []
    encoded: list[dict[str, Any]] = []
    for start in range(0, len(rows), ENCODE_ROWS):
        chunk = list(rows[start : start + ENCODE_ROWS])
        try:
            examples.extend(task.encode(chunk, tokenizer, max_length=max_length, labels=labels))
            encoded.extend(chunk)
            continue
        except (DataError, TypeError, AttributeError):
            pass
        for row in chunk:
            try:
                examples.extend(task.encode([row], tokenizer, max_length=max_length, labels=labels))
                encoded.append(row)
            except DataError as error:
                refused.setdefault(error.what, (error, []))[1].append(row)
            except (TypeError, AttributeError) as error:
                what = "the row has not the form that the task learns from"
                wrong = DataError(what, got=str(error), fix="bring all rows to one form")
                refused.setdefault(what, (wrong, []))[1].append(row)
    return examples, encoded


def _refusals(refused: Refused, total: int) -> list[Finding]:
    found = []
    for what, (error, rows) in refused.items():
        got = f" ({error.problems[0].got})" if error.problems[0].got else ""
        found.append(finding("refused", "hard", f"{what}{got}", rows, error.problems[0].fix or "", total))
    return found


def _sample(view: found.View) -> tuple[tuple[str, bool], ...]:
    """One row of middle length, decoded; each piece with whether it is trained."""
    pairs = sorted(view.pairs(), key=lambda pair: pair[1].size)
    if not pairs:
        return ()
    row, example = pairs[len(pairs) // 2]
    if view.schema.media:
        return ((str(row["file"]), False), (f" -> {view.schema.label(row)}", True))
    if not view.task.per_token:
        label, shown = view.schema.label(row), str(view.tokenizer.decode(list(token_ids(example))))
        return ((shown, label is None), *(((f" -> {label}", True),) if label is not None else ()))
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(token_ids(example), example.labels, strict=True):
        if not pieces or pieces[-1][1] != (label != IGNORED):
            pieces.append(([], label != IGNORED))
        pieces[-1][0].append(token)
    return tuple((str(view.tokenizer.decode(ids)), trained) for ids, trained in pieces)


def require_clean(audit: Audit, place: str) -> None:
    """Stops the run when the audit has hard findings.

    Args:
        audit: What `audit` returned.
        place: The cell or domain, for messages.

    Raises:
        DataError: lists every hard finding with its rows and the fix.
    """
    hard = [each for each in audit.findings if each.level == "hard"]
    if hard:
        problems = [Problem(f"{each.message} [{each.code}]", place, fix=each.fix or None) for each in hard]
        raise DataError(f"the audit found {len(hard)} fault(s) that training would not show", problems=problems)


def token_lengths(rows: Sequence[Sequence[int]]) -> Lengths:
    """What is kept of the token counts of rows, of which there is at least one; each has one for each of its parts."""
    import numpy as np

    counts = [count for row in rows for count in row]
    return Lengths(
        rows=len(rows),
        tokens=int(np.sum(counts)),
        mean=round(float(np.mean(counts)), 2),
        median=int(np.percentile(counts, 50, method="higher")),
        p95=int(np.percentile(counts, 95, method="higher")),
        longest=int(np.max(counts)),
        parts=round(len(counts) / len(rows), 3),
    )


def lengths(rows: Sequence[Mapping[str, Any]], task: Task, tokenizer: Any, *, labels: Sequence[str] = ()) -> Lengths:
    """Token lengths of rows as the task encodes them, before any cut; rows that the task refuses are left out.

    Of models that take one length alone, whatever they are given, it is that.

    Raises:
        DataError: there are no rows, or the task refuses all of them.
    """
    if not rows:
        raise DataError("there are no rows to measure", fix="check the source")
    # Rows that the task refuses are named by the audit, unless there are no others.
    refused: Refused = {}
    encoded, _ = _encode(list(map(dict, rows)), task, tokenizer, WITHOUT_CUT, labels, refused)
    if not encoded:
        first = _refusals(refused, len(rows))[0]
        raise DataError(first.message, fix=first.fix or None)
    return token_lengths([[min(part.length, part.size) for part in example.parts] for example in encoded])


def augmented(
    rows: Sequence[Mapping[str, Any]],
    form: str,
    settings: Data,
    task: Task,
    tokenizer: Any,
    *,
    labels: Sequence[str] = (),
) -> Augmented | None:
    """What `data.augment` makes of training rows in the first epoch; None where it is off.

    Raises:
        DataError: there are no rows, or the task refuses them.
    """
    if not settings.augment.on:
        return None
    changed = augment.apply(rows, form, settings.augment, settings.seed, 0)
    return Augmented(
        rows=len(rows),
        changed=sum(old != new for old, new in zip(rows, changed, strict=True)),
        lengths=lengths(changed, task, tokenizer, labels=labels),
    )


def drop_too_long(
    cell_folder: Path, task: Task, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
) -> DataRecord:
    """For `data.too_long: drop`: takes rows that the tokenizer finds longer than `max_length` out of a cell's splits.

    They are added to dropped.jsonl with the reason `over-max-length`, and data.json counts them. A second call with
    the same length changes nothing.

    Raises:
        RunError: the cell has no prepared data.
        DataError: a split would be empty.
    """

    def too_long(split: str, rows: list[dict[str, Any]]) -> dict[int, int]:
        whole, measured = _encode(rows, task, tokenizer, WITHOUT_CUT, labels, {})
        long = {id(row): each.length for row, each in zip(measured, whole, strict=True) if each.length > max_length}
        if rows and all(id(row) in long for row in rows):
            raise DataError(
                f"every row of the {split} split is longer than max_length",
                place=name_rows(map(Place.of, rows)),
                got=f"max_length {max_length}",
                fix="raise data.max_length, or set data.too_long: truncate",
            )
        return long

    return _drop(cell_folder, too_long, "over-max-length")


def drop_cut_off(
    cell_folder: Path, task: Task, tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
) -> DataRecord:
    """Takes rows of whose answer nothing is left within `max_length` out of a cell's splits: none is learned or scored.

    They are added to dropped.jsonl with the reason `answer-cut-off`. A split of which none would be left stays, for the
    audit to refuse.

    Raises:
        RunError: the cell has no prepared data.
    """

    def cut_off(split: str, rows: list[dict[str, Any]]) -> dict[int, int]:
        shown, measured = _encode(rows, task, tokenizer, max_length, labels, {})
        cut = {
            id(row): each.length
            for row, each in zip(measured, shown, strict=True)
            if each.truncated and all(label == IGNORED for label in each.labels)
        }
        return cut if len(cut) < len(rows) else {}

    return _drop(cell_folder, cut_off, CUT_OFF)


def _drop(
    cell_folder: Path, lengths_of: Callable[[str, list[dict[str, Any]]], Mapping[int, int]], reason: str
) -> DataRecord:
    """Takes rows out of a cell's splits: those with a length, by id, as one chat may be several rows."""
    record = DataRecord.read(cell_folder / RECORD)
    kept: dict[str, list[dict[str, Any]]] = {}
    dropped: list[dict[str, Any]] = []
    for split in SPLITS:
        rows = read_split(cell_folder, split)
        lengths = lengths_of(split, rows)
        kept[split] = [row for row in rows if id(row) not in lengths]
        for row in rows:
            if id(row) in lengths:
                detail = f" has {lengths[id(row)]:,} tokens"
                dropped.append(Dropped(Place.of(row), reason, detail=detail).as_json())
    return rewrite(cell_folder, record, kept, dropped) if dropped else record
