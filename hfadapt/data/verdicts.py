"""Answers that the data itself calls bad: rows marked so, as for KTO, and the worse of a pair, as for DPO.

Whoever learns answers wants the good ones: rows marked as bad are left out, and pairs are not read unasked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.data.rows import Dropped
from hfadapt.records.stages import Finding

NAMES = ("label", "kto_tag", "desirable", "thumbs_up", "accepted", "is_chosen")
"""Columns that say whether an answer is a good one, in lower case."""
BAD = "marked-bad"
_VERDICTS = {"true": True, "false": False}
_BITS = ({"0", "1"}, {"-1", "1"}, {"0.0", "1.0"})
_PAIRS = {"chosen": "rejected", "preferred": "dispreferred", "preferred_output": "non_preferred_output"}
_PAIRS |= {"chosen_messages": "rejected_messages", "chosen_response": "rejected_response"}
"""Columns of the better answer, each with that of the worse."""
PAIRS = ": pairs of a better and a worse answer, as for preference optimisation (DPO)"


def pair(columns: Collection[str]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer, where there are such."""
    lower = {column.lower(): column for column in columns}
    return next(((lower[good], lower[bad]) for good, bad in _PAIRS.items() if {good, bad} <= lower.keys()), None)


def advice(both: tuple[str, str]) -> str:
    """What to do with the columns of a better and a worse answer where the task does not learn from both."""
    able = [name for name in registry.names("tasks") if any(map(_reads_pairs, registry.task(name).schemas))]
    fix = f"set task: {able[0]}, which learns from both; or " if able else ""
    fix += f"learn the better answers alone: columns: {{messages: {both[0]}}} where it holds chats, columns: "
    fix += f"{{prompt: prompt, completion: {both[0]}}} where it holds answers in text, columns: {{text: {both[0]}}} "
    return fix + "where whole texts"


def _reads_pairs(form: str) -> bool:
    known = registry.schema(form).names
    return any({good, bad} <= {name for part in known for name in known[part]} for good, bad in _PAIRS.items())


def verdict_column(head: Sequence[Mapping[str, Any]], used: Collection[str]) -> str | None:
    """The column that says of each row whether its answer is a good one: true or false in the first rows."""
    return next((name for name, values in _candidates(head, used) if all(each in _VERDICTS for each in values)), None)


def is_bad(value: Any) -> bool:
    """Whether a verdict is false; a row without one is not."""
    return _VERDICTS.get(_text(value)) is False


def findings(
    source: str, head: Sequence[Mapping[str, Any]], used: Collection[str], dropped: Sequence[Dropped]
) -> list[Finding]:
    """What is to be said of answers that are marked as bad, or may be.

    Args:
        source: Its name.
        head: Its first rows.
        used: The columns that are read.
        dropped: Rows that are left out.
    """
    found = []
    if bad := [each for each in dropped if each.reason == BAD]:
        what = f"{source}: {len(bad):,} rows are left out: their answers are marked as bad, such as {bad[0].said}"
        fix = "nothing: the good answers are learned; if the column means something else, give it another name"
        found.append(Finding(code=BAD, level="soft", message=what, fix=fix))
    for name, values in _candidates(head, used):
        if set(values) in _BITS:
            what = f"{source}: column {name} is not read, and all answers are learned: it holds "
            what += f"{' and '.join(sorted(set(values)))}, as if it said which are good"
            fix = "write true and false in place of these numbers: rows with false are left out"
            found.append(Finding(code="verdict-not-read", level="soft", message=what, fix=fix))
    both = pair({column for values in head for column in values})
    if both and both[1] in used and both[0] not in used:
        what = f"{source}: the worse answers of pairs are learned, those in column {both[1]}, as the recipe says"
        fix = f"name column {both[0]} to learn the better ones"
        found.append(Finding(code="worse-answers", level="soft", message=what, fix=fix))
    return found


def _candidates(head: Sequence[Mapping[str, Any]], used: Collection[str]) -> list[tuple[str, list[str]]]:
    """Columns that may hold verdicts and are not read for anything else, with the values that they have."""
    columns = {column: column.lower() for values in head for column in values if column not in used}
    named = [column for column, lower in columns.items() if lower in NAMES]
    values = {name: [_text(each[name]) for each in head if each.get(name) is not None] for name in named}
    return [(name, each) for name, each in values.items() if each]


def _text(value: Any) -> str:
    return str(value).strip().lower()
