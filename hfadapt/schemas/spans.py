"""A text and where its entities stand, by characters: as tools for annotation write them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hfadapt.schemas import LABEL_NAMES, TEXT_NAMES, Columns, Layout, Unusable, plain, read_list
from hfadapt.schemas._label_studio import layout_of
from hfadapt.schemas._words import words_in
from hfadapt.schemas.tokens import Tokens

_START, _END, _LABEL = ("start", "start_offset", "begin"), ("end", "end_offset"), ("label", "tag", "type", "labels")
OUTSIDE = "O"


class Spans(Tokens):
    """Rows of `text` and `label`, a list of spans: `[start, end, label]` as of doccano and spaCy, or objects with these
    as of Prodigy. They become words and tags: words as when a text is asked, and cut where spans begin and end."""

    name = "spans"
    rank = 26
    parts = ("text", "label")
    names = {"text": TEXT_NAMES, "label": ("spans", "entities", *LABEL_NAMES)}
    files = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the words and tags that they become."""
        return Tokens.parts

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """An export of Label Studio."""
        return layout_of(head, said, self.label_kind)

    def reread(self, values: Columns) -> tuple[str, dict[str, Any]] | None:
        """Words, each with the tag of the span in which it lies or begins. Raises Unusable where two overlap."""
        text, spans = plain(values["text"]), sorted(_spans(values["label"]))
        words = [*_cut(words_in(text), {edge for start, end, _ in spans for edge in (start, end)})]
        tags = [OUTSIDE] * len(words)
        for start, end, label in spans:
            over = [at for at, word in enumerate(words) if word[0] < end and start < word[1]]
            if not over:
                raise Unusable("span-outside", f" has the span {start} to {end} of a text of {len(text):,} characters")
            for at in over:
                if tags[at] != OUTSIDE:
                    raise Unusable("shared-word", f" has two spans in the word {text[slice(*words[at])][:40]!r}")
                tags[at] = f"{'B' if at == over[0] else 'I'}-{label}"
        return "tokens", {"tokens": [text[start:end] for start, end in words], "tags": tags}

    def likely(self, labels: list[Any]) -> bool:
        """Whether these labels are lists of spans."""
        try:
            found = [_spans(label) for label in labels]
        except Unusable:
            return False
        return any(found)


def _cut(words: Iterable[tuple[int, int]], edges: Collection[int]) -> Iterator[tuple[int, int]]:
    """Words, and parts of those in which spans begin or end."""
    for start, end in words:
        inner = sorted(edge for edge in edges if start < edge < end)
        yield from itertools.pairwise((start, *inner, end))


def _spans(value: Any) -> list[tuple[int, int, str]]:
    found = read_list(value)
    if not isinstance(found, list):
        raise Unusable("no-spans", f" has {str(value)[:40]!r} where a list of spans is needed")
    return [_span(each) for each in found]


def _span(value: Any) -> tuple[int, int, str]:
    if isinstance(value, Mapping):
        value = [next((value[name] for name in names if name in value), None) for names in (_START, _END, _LABEL)]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise Unusable("no-spans", f" has {str(value)[:40]!r} where a span is needed")
    start, end, label = value
    label = label[0] if isinstance(label, list) and len(label) == 1 else label
    if any(not isinstance(each, int) or isinstance(each, bool) for each in (start, end)) or not isinstance(label, str):
        raise Unusable("no-spans", f" has {str(value)[:40]!r} where a span is needed")
    return start, end, label


KIND = Spans()
