"""Tables that hold small images as numbers: a column for each pixel, or all of a row in one text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfadapt.files import Blob, Unusable
from hfadapt.schemas import Columns, Layout
from hfadapt.schemas._layouts import columns_of, each, filled, named

_PIXEL = re.compile(r"(pixel|px)[\W_]*\d+|\d+x\d+", re.IGNORECASE)
_NUMBERS = re.compile(r"\d{1,3}([ ,]+\d{1,3})+")
_NUMBER = re.compile(r"\d+")
_TOGETHER = ("pixels",)
LEAST_SIDE = 8


@dataclass(frozen=True)
class Pixels:
    """Where rows have the numbers of an image, row by row from its upper left corner.

    Args:
        columns: One of a text with all numbers, or one of each.
        side, colours: Of the square image: its height and width, and numbers for each pixel.
    """

    columns: tuple[str, ...]
    side: int
    colours: int

    @classmethod
    def of(cls, head: Sequence[Columns], said: str | None = None) -> Pixels | None:
        """Of the first rows of a source; None where they have none.

        Args:
            said: The column with all numbers, where the recipe names it.
        """
        columns = columns_of(head)
        text = filled(head, together) if (together := named(columns, _TOGETHER, said)) else []
        if text and all(isinstance(value, str) and _NUMBERS.fullmatch(value.strip()) for value in text):
            found: tuple[str, ...] = (str(together),)
            count = len(_NUMBER.findall(text[0]))
        else:
            found = tuple(column for column in columns if _PIXEL.fullmatch(column))
            count = len(found)
        for colours in (1, 3):
            side = math.isqrt(count // colours)
            if side >= LEAST_SIDE and side * side * colours == count:
                return cls(found, side, colours)
        return None

    def image(self, values: Columns) -> Blob:
        """The image of a row. Raises Unusable where numbers are missing, or are none of a pixel."""
        first = values.get(self.columns[0])
        own = _NUMBER.findall(str(first)) if len(self.columns) == 1 else [values.get(name) for name in self.columns]
        try:
            content = bytes(int(float(str(value))) for value in own)
        except ValueError:
            raise Unusable("not-an-image", " has a pixel that is no number from 0 to 255") from None
        wanted = self.side * self.side * self.colours
        if len(content) != wanted:
            raise Unusable("not-an-image", f" has {len(content):,} numbers for the {wanted:,} of its image")
        return Blob("", f"P{5 if self.colours == 1 else 6} {self.side} {self.side} 255\n".encode() + content)


def layout_of(head: Sequence[Columns], said: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> Layout | None:
    """How images with a class are made of such rows; None for others.

    Args:
        said: The column of each part that the recipe names.
        names: Names by which the parts are recognised; the first is that of the image.
    """
    part = next(iter(names))
    label, pixels = named(columns_of(head), names["label"], said.get("label")), Pixels.of(head, said.get(part))
    if label is None or pixels is None or said.keys() - {part, "label"}:
        return None
    used = {*pixels.columns}

    def made(values: Columns) -> Iterator[dict[str, Any]]:
        yield {**{name: value for name, value in values.items() if name not in used}, part: pixels.image(values)}

    what = f"images of {pixels.side} x {pixels.side} pixels in {'colour' if pixels.colours > 1 else 'grey'}, "
    what += "a column each" if len(used) > 1 else f"as numbers in {pixels.columns[0]!r}"
    return Layout(what, {part: part, "label": label}, (*pixels.columns, label), each(made))
