"""Rows that cannot be read: what they have in common, what helps, and how many stop a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data.labels import tasks_with
from hfadapt.data.rows import Dropped
from hfadapt.files.opening import NAME_IT
from hfadapt.files.places import name_rows
from hfadapt.schemas import LabelKind

UNREADABLE_LIMIT = 0.1
_OWN_COLUMN = "write what is to be read into a column of its own, as text, and name it in columns"
_UNREADABLE = {
    "not-json": None,
    "not-utf8": (
        "are not UTF-8",
        f"name the encoding that it was saved in, {NAME_IT}: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    ),
    "damaged-member": ("are damaged inside their archive", "fetch or pack it again"),
    "wrong-fields": None,
    "header-again": None,
    "open-quote": (
        "open a quotation mark that is not closed",
        'write "" for a mark inside a quoted field, and quote fields that begin with one',
    ),
    "huge": None,
    "repeated-key": ("have a key more than once, with different values", "keep the one that is right"),
    "missing-field": (
        "lack columns that the others have: values are missing, or formats are mixed",
        "repair these rows, name the right columns, or make each format a source of its own; where rows are not "
        "labelled yet, no_label: [''] of the domain leaves them out",
    ),
    "no-match": (
        "have nothing that label_pattern finds",
        "correct columns.label_pattern: its first bracket stands round the class; or take these files out",
    ),
    "no-class": (
        "are files in folders of no class: beside the class folders, or in one called like a split",
        "move them into the folder of their class, or out of the data; rename a folder that is a class; a split of its "
        "own is a folder test with class folders in it, beside a folder train with class folders",
    ),
    "no-split": (
        "say no split in the column of splits",
        "write train, validation or test there; or take columns.split out, so that hfadapt makes splits",
    ),
    "no-classes": (
        "have nothing where their classes stand",
        "write [] in rows that have none of them, and leave out rows of which that is not known",
    ),
    "several-labels": ("have several labels", "set task: {task}, which learns any number of classes for a text"),
    "several-of-file": (
        "have several labels",
        "set the task that learns any number of classes: {task}; or write the class that counts",
    ),
    "masked-tag": (
        "have tags of -100, as text has that is cut into tokens already",
        "give the words themselves and a tag for each: hfadapt cuts them into tokens",
    ),
    "no-flag": (
        "have something else than 0 and 1 in the column of a class",
        "write 0 or 1 there; no_label of the domain, such as no_label: ['', '-1'], leaves out rows of which it is not "
        "known",
    ),
    "label-is-scores": (
        "have numbers with decimals for the classes, such as probabilities",
        "write the class with the largest number, or those above a limit, into a column of their own",
    ),
    # Those that are left are no fair share of all, as where only large numbers have marks between thousands.
    "not-a-number": (
        "have no number where one is needed",
        "write plain numbers, such as 0.85, without %, units or marks between thousands; or, where these are classes, "
        "set task: {task}, with all that it is about in one column, text",
    ),
    "no-spans": (
        "have no spans of characters",
        'write each as [start, end, "label"]; or, where a text has classes, set task: {task}, which learns these',
    ),
    "shared-word": ("have spans that overlap", "leave out one of them"),
    "span-outside": ("have spans outside of their text", "count characters from 0, and line breaks as one"),
    "no-prompt": (
        "have no prompt, and their answers do not begin alike",
        "name the column of what is asked: columns: {{prompt: NAME}}",
    ),
    "label-is-object": ("have an object as their label", _OWN_COLUMN),
    "text-is-object": ("have an object where text is needed", _OWN_COLUMN),
    "text-is-bytes": ("have bytes where text is needed", _OWN_COLUMN),
}
"""What rows that were dropped for a reason have in common, and what helps."""
_FILES = ("file-not-read", "file-too-large", "not-a-file", "address-not-read")


def unreadable() -> Mapping[str, tuple[str, str] | None]:
    """Reasons for which rows are dropped that cannot be read, with what such rows have in common, and what helps."""
    kinds = [registry.modality(name) for name in registry.names("modalities")]
    fault = ("have files that cannot be read", "replace these files, or leave them out")
    lost = "files are looked for in the folder of their table and those below it: name the folder that holds both, or "
    lost += "move the files; where several have one name, write it as seen from the table"
    found = dict.fromkeys([*_FILES, *(reason for kind in kinds for reason in kind.refusals)], fault)
    return {**_UNREADABLE, **found, "file-not-read": ("name files that cannot be read", lost)}


_LEARNS_THEM: Mapping[str, LabelKind] = {"several-labels": "classes", "no-spans": "class", "not-a-number": "class"}
"""What a task of texts learns that such rows are for."""
_LEARNS_FILES: Mapping[str, LabelKind] = {"several-of-file": "classes"}
"""Likewise a task of files."""


def check_unreadable(split: str, rows: int, bad: list[Dropped]) -> None:
    """Raises DataError when more than a tenth of a source's rows cannot be read, naming the lines.

    Args:
        split: As which the source is given, or "".
    """
    reasons = unreadable()
    unread = [each for each in bad if each.reason in reasons]
    if len(unread) <= UNREADABLE_LIMIT * rows:
        return
    reason = Counter(each.reason for each in unread).most_common(1)[0][0]
    what, fix = reasons[reason] or (
        "cannot be read",
        "repair these rows, name the right columns, or make each format a source of its own",
    )
    if reason == "missing-field" and split:
        fix = f"give rows that have them, or leave {split} out so that hfadapt makes one"
    raise DataError(
        f"{len(unread):,} of {rows:,} rows {what}",
        place=name_rows(each.where for each in unread),
        got="; ".join(each.said for each in unread[:3] if each.detail) or reason,
        allowed=f"at most {UNREADABLE_LIMIT:.0%}",
        fix=fix.format(task=_learns(reason)),
    )


def _learns(reason: str) -> str:
    """The tasks that rows are for which were dropped for this reason."""
    if reason in _LEARNS_FILES:
        return " or ".join(tasks_with(_LEARNS_FILES[reason], of_files=True))
    return tasks_with(_LEARNS_THEM[reason])[0] if reason in _LEARNS_THEM else ""
