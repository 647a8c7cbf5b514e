"""Texts without labels, which the adapted model answers and its student learns beside the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.data import lengths, read_split
from hfadapt.data.rows import SPLITS, as_row
from hfadapt.data.sources import Opened
from hfadapt.data.split_files import rewrite
from hfadapt.data.unlabelled import Held, read_apart
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.records.stages import Lengths, SourceRecord
from hfadapt.run_folder import Cell
from hfadapt.schemas import Answers, Unusable
from hfadapt.serve.adapted import load_adapted
from hfadapt.serve.rows import text_of


def add_answered(
    cell: Cell,
    student: Cell,
    sources: Sequence[Opened],
    held: Held,
    say: Callable[[str], None],
) -> int:
    """Adds the texts with their answers to the training rows in the student's folder, and to its data record.

    Args:
        cell: Whose adapter answers.
        student: With the rows and the record of the cell.

    Returns:
        How many there are.

    Raises:
        DataError: a source cannot be read, or no text is left.
        RequestError: the task does not answer a text with a class or a vector.
    """
    record = student.data
    schema, answers = registry.schema(record.form), Answers(record.completions, labels=record.labels)
    rows = {split: read_split(student.folder, split) for split in SPLITS}
    alone = registry.task(cell.lock.task).alone
    known = [as_row(row, record.form) for row in rows["train"]]
    if alone:
        # Each text of a pair goes through the model by itself.
        known = [replace(row, text=str(row.columns[part])) for row in known for part in schema.parts]
    found, ledger = read_apart(cell.lock, cell.domain, sources, held, known, say)
    adapted = load_adapted(cell.folder)
    try:
        asked = [text_of(adapted, {"text": row.text}) for row in found]
    except Unusable as fault:
        raise _none(f"{fault.detail.lstrip(': ')} in the template") from None
    if alone:
        # Its answers are asked for when the student begins to learn, as those of all rows.
        made, got = [schema.alone(text) for text in asked], f"rows with a number, as {record.form} have"
    else:
        say(f"{cell.domain}: the adapted model answers {len(found):,} texts without labels")
        # What is asked has been filled into the recipe's template.
        said = replace(adapted, prompt=None).predict(asked)
        made = [schema.answered(text, answer.label or "", answers) for text, answer in zip(asked, said, strict=True)]
        got = f"answers such as {str(said[0])[:80]!r}"
    added = [{**columns, **row.where.columns} for row, columns in zip(found, made, strict=True) if columns is not None]
    if not added:
        raise _none(got)
    tokenizer = adapted.tokenizer
    del adapted
    release_memory()
    counts = Counter(row.source for row in found)
    named = [SourceRecord(source=each.name, rows=counts[each.name], **each.about) for each in sources]
    task, rows["train"] = registry.task(cell.lock.task), [*rows["train"], *added]
    sizes = lengths(rows["train"], task, tokenizer, labels=record.labels)
    append(student, rows, len(added), sizes, named, [each.as_json() for each in ledger.dropped])
    return len(added)


def append(
    student: Cell,
    rows: dict[str, list[dict[str, Any]]],
    added: int,
    sizes: Lengths,
    sources: Sequence[SourceRecord],
    dropped: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes the rows of a student's cell, which has further training rows, and its data record.

    Args:
        rows: Of each split.
        added: How many of those of training are new.
        sizes: Of the rows of training.
        sources: Where the new ones are from.
        dropped: Of what could have been added.
    """
    record = student.data
    changed = record.model_copy(
        update={
            "sources": (*record.sources, *sources),
            "rows_in": record.rows_in + added + len(dropped),
            # `rewrite` takes off what was dropped.
            "rows_kept": record.rows_kept + added + len(dropped),
            "lengths": record.lengths | {"train": sizes},
        }
    )
    rewrite(student.folder, changed, rows, [*dropped])


def _none(got: str) -> RequestError:
    return RequestError(
        "the adapted model's answers to texts make no rows that a student could learn",
        place="student.texts",
        got=got,
        allowed="texts that are answered with a class or, where pairs are learned, with a vector",
        fix="delete `texts`",
    )
