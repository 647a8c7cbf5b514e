"""An image with any number of classes, also none."""

from __future__ import annotations

from hfadapt.schemas._labels import OfClasses
from hfadapt.schemas.pictured import Pictured


class PicturedSeveral(OfClasses, Pictured):
    """Rows of `image` and `label`, a list of classes."""

    name = "pictured-several"
    rank = 42


KIND = PicturedSeveral()
