"""Texts without labels, which the adapted model answers and its student learns beside the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.data import lengths, read_split
from hfadapt.data.rows import SPLITS, as_row
from hfadapt.data.sources import Opened
from hfadapt.data.split_files import rewrite
from hfadapt.data.unlabelled import Held, read_apart
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.records.stages import SourceRecord
from hfadapt.run_folder import Cell
from hfadapt.schemas import Answers, Unusable
from hfadapt.serve.adapted import load_adapted
from hfadapt.serve.asked import text_of


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
        RequestError: the task does not answer a text with a class.
    """
    record = student.data
    schema, answers = registry.schema(record.form), Answers(record.completions, labels=record.labels)
    rows = {split: read_split(student.folder, split) for split in SPLITS}
    known = [as_row(row, record.form) for row in rows["train"]]
    found, ledger = read_apart(cell.lock, cell.domain, sources, held, known, say)
    say(f"{cell.domain}: the adapted model answers {len(found):,} texts without labels")
    adapted = load_adapted(cell.folder)
    try:
        asked = [text_of(adapted, {"text": row.text}) for row in found]
    except Unusable as fault:
        raise _none(cell, f"{fault.detail.lstrip(': ')} in the template") from None
    # What is asked has been filled into the recipe's template.
    said = replace(adapted, prompt=None).predict(asked)
    added = [
        {**made, **row.where.columns}
        for row, text, answer in zip(found, asked, said, strict=True)
        if (made := schema.answered(text, answer.label or "", answers)) is not None
    ]
    if not added:
        raise _none(cell, f"answers such as {str(said[0])[:80]!r}")
    tokenizer = adapted.tokenizer
    del adapted
    release_memory()
    rows["train"] += added
    counts = Counter(row.source for row in found)
    named = (SourceRecord(source=each.name, rows=counts[each.name], **each.about) for each in sources)
    changed = record.model_copy(
        update={
            "sources": (*record.sources, *named),
            "rows_in": record.rows_in + len(added) + len(ledger.dropped),
            # `rewrite` takes off what was dropped.
            "rows_kept": record.rows_kept + len(added) + len(ledger.dropped),
            "lengths": record.lengths
            | {"train": lengths(rows["train"], registry.task(cell.lock.task), tokenizer, labels=record.labels)},
        }
    )
    rewrite(student.folder, changed, rows, [each.as_json() for each in ledger.dropped])
    return len(added)


def _none(cell: Cell, got: str) -> RequestError:
    return RequestError(
        "the adapted model's answers to texts make no rows that a student could learn",
        place="student.texts",
        got=got,
        allowed="texts that are answered with a class",
        fix="delete `texts`",
    )
