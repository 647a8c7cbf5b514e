"""Rows as Label Studio exports them: `data`, and lists of annotations with the results of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfadapt.files.media import kind_of
from hfadapt.schemas import TEXT_NAMES, Columns, LabelKind, Layout, Unusable
from hfadapt.schemas._layouts import columns_of, each, filled, listed, named, without

_DATA, _ANNOTATIONS, _CHOICES, _LABELS = "data.", ("annotations", "completions"), "choices", "labels"
_READ: Mapping[str, tuple[LabelKind, ...]] = {"classes": ("classes", "class")}
"""A text with one class may have several."""


def layout_of(head: Sequence[Columns], said: Mapping[str, str], kind: LabelKind, part: str = "text") -> Layout | None:
    """How rows with labels of a kind are read of such an export, where that is its kind.

    Args:
        said: The column of each part that the recipe names.
        part: What is labelled: texts, or files of a modality of this name.
    """
    columns = columns_of(head)
    annotations = next((name for name in _ANNOTATIONS if name in columns), None)
    files = {name: {*map(kind_of, filled(head, name))} for name in columns if name.startswith(_DATA)}
    text = said.get(part) or next((name for name, kinds in files.items() if kinds == {part}), None)
    if part == "text":
        fields = [name for name in files if all(map(_is_text, filled(head, name)))]
        text = said.get(part) or named(fields, TEXT_NAMES) or (fields[0] if len(fields) == 1 else None)
    if annotations is None or text not in columns or not said.keys() <= {part}:
        return None
    found = [own for row in head if (own := _results(row.get(annotations))) is not None]
    if _kind(found) not in _READ.get(kind, (kind,)):
        return None

    def made(values: Columns) -> Iterator[dict[str, Any]]:
        results = _results(values.get(annotations))
        if results is None:
            raise Unusable("no-annotation", f" has nothing in {annotations}")
        label: Any = [choice for own in results for choice in listed(own.get(_CHOICES))]
        if kind not in ("class", "classes"):
            label = [[own["start"], own["end"], name] for own in results for name in listed(own.get(_LABELS))]
        elif kind == "class" and len(label) < 2:
            label = label[0] if label else None
        yield {**without(values, annotations), "label": label}

    what = f"an export of Label Studio: what is marked in {annotations!r} is the label, of several people's the first"
    return Layout(what, {part: text, "label": "label"}, (text, annotations), each(made))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _results(value: Any) -> list[Mapping[str, Any]] | None:
    """The values of the first annotation's results; None where nobody annotated the row."""
    for one in listed(value):
        if isinstance(one, Mapping) and isinstance(one.get("result"), list) and not one.get("was_cancelled"):
            values = [each.get("value") for each in one["result"] if isinstance(each, Mapping)]
            return [value for value in values if isinstance(value, Mapping)]
    return None


def _kind(found: Sequence[Sequence[Mapping[str, Any]]]) -> LabelKind:
    """What the results are: spans, one choice a row, or several; "none" for others."""
    results = [result for own in found for result in own]
    if results and all({"start", "end", _LABELS} <= result.keys() for result in results):
        return "tokens"
    if results and all(_CHOICES in result for result in results):
        counts = [sum(len(listed(result[_CHOICES])) for result in own) for own in found]
        return "class" if max(counts) == 1 else "classes"
    return "none"
