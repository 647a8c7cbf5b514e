"""Columns of a source that are not read although a user may count on them: another label, or more text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfadapt.core import registry
from hfadapt.data.columns import Shape
from hfadapt.data.labels import some
from hfadapt.data.rows import tokens
from hfadapt.records.stages import Finding

Values = Mapping[str, Any]
WORDS = 3
"""A value of so many words is text rather than a name, a date or a category."""
OFTEN = 0.1


def noticed(head: Sequence[Values], shape: Shape, unread: Sequence[str], place: str) -> list[Finding]:
    """What is to be said of the columns that are not read; the recipe names none of those that are.

    Args:
        head: The first rows of the source.
        shape: How its columns are read.
        unread: The other columns.
        place: The source, for messages.
    """
    schema = registry.schema(shape.form)
    rivals = {
        part: [each for each in unread if each.lower() in schema.names.get(part, ())]
        for part in schema.parts
        if part in shape.parts
    }
    found = []
    for part, others in rivals.items():
        if others:
            what = f"{place}: {shape.parts[part]!r} is read as the {part}, though {some(map(repr, others))} may be it"
            fix = f"nothing, or name the right one: columns: {{{part}: {others[0]}}}"
            found.append(Finding(code="column-choice", level="soft", message=what, fix=fix))
    # What any schema knows beside a chat, such as a system prompt, is counted on however short it is.
    known = {name for each in registry.schemas() for part in each.optional for name in each.names.get(part, ())}
    rest = [each for each in unread if not any(each in others for others in rivals.values())]
    texts = [each for each in rest if (schema.writes and each.lower() in known) or _holds_text(head, each, shape.used)]
    if texts:
        what = f"{place}: {some(map(repr, texts))} {'is' if len(texts) == 1 else 'are'} not read"
        fix = f"nothing, if only {some(map(repr, shape.used))} shall be learned from; else join them in one column"
        if "completion" in schema.parts:
            shown = "\\n".join(f"{{{each}}}" for each in (*texts[:2], shape.parts["prompt"]))
            fix += f", or give the recipe a template that names them, such as prompt: '{shown}'"
        elif schema.label_kind == "none" and not schema.chat:
            # What stands first asks, as tables are written.
            order = [*dict.fromkeys(name for values in head for name in values)]
            asked, answer = sorted((shape.used[0], texts[0]), key=order.index)
            fix += f", or set columns: {{prompt: {asked}, completion: {answer}}}"
        found.append(Finding(code="columns-left-out", level="soft", message=what, fix=fix))
    return found


def without_label(shape: Shape, unread: Sequence[str], place: str) -> list[Finding]:
    """What is to be said of pairs whose label is not read, whoever named the columns: some may not belong together."""
    schema = registry.schema(shape.form)
    if schema.writes or schema.label_kind != "none" or len(schema.parts) == 1:
        return []
    # Another schema of the same parts and a label knows what that is called.
    others = [each for each in registry.schemas() if {*each.parts} == {*schema.parts, "label"}]
    names = {name for each in others for name in each.names["label"]}
    found = [each for each in unread if each.lower() in names]
    able = [task for task in registry.names("tasks") for each in others if each.name in registry.task(task).schemas]
    what = f"{place}: {some(map(repr, found))} is not read, and all pairs are learned as belonging together"
    fix = f"leave out the pairs that do not; or, if it holds numbers, set task: {' or '.join(able)} to learn from them"
    return [Finding(code="label-not-read", level="soft", message=what, fix=fix)] if found else []


def _holds_text(head: Sequence[Values], column: str, used: Sequence[str]) -> bool:
    """Whether a column often holds words that stand in no column that is read."""
    new = 0
    for values in head:
        text = " ".join(_texts(values.get(column)))
        words = sum(any(map(str.isalpha, word)) for word in tokens(text))
        own = [each for name in used if (each := " ".join(_texts(values.get(name))))]
        new += words >= WORDS and not any(text in each for each in own) and not all(each in text for each in own)
    return new > OFTEN * len(head)


def _texts(value: Any) -> Iterator[str]:
    """The texts of a value and of what it holds, without white space around them."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)
