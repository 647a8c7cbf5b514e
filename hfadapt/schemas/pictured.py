"""An image with one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfadapt.schemas import Columns, Layout, _media, _pixels


class Pictured(_media.Labelled):
    """Rows of `image` and `label`."""

    name = "pictured"
    rank = 40
    modality = "image"
    parts = ("image", "label")
    names = _media.names_of("image", "img", "picture", "photo", "pixels")

    def layout(self, head: Sequence[Columns], said: Mapping[str, str]) -> Layout | None:
        """A table of the numbers of pixels, too."""
        return super().layout(head, said) or _pixels.layout_of(head, said, self.names)

    def held(self, values: Columns) -> Any:
        """The numbers of pixels, as an image."""
        pixels = _pixels.Pixels.of([values])
        return None if pixels is None else pixels.image(values)


KIND = Pictured()
