"""An image with one class."""

from __future__ import annotations

from hfadapt.schemas import _media


class Pictured(_media.Labelled):
    """Rows of `image` and `label`."""

    name = "pictured"
    rank = 40
    modality = "image"
    parts = ("image", "label")
    names = _media.names_of("image", "img", "picture", "photo", "pixels")


KIND = Pictured()
