"""An image with a number."""

from __future__ import annotations

from hfadapt.schemas import SCORE_NAMES
from hfadapt.schemas._labels import OfNumbers
from hfadapt.schemas.pictured import Pictured


class PicturedScored(OfNumbers, Pictured):
    """Rows of `image` and `label`, a number."""

    name = "pictured-scored"
    rank = 43
    names = {**Pictured.names, "label": (*SCORE_NAMES, *Pictured.names["label"])}


KIND = PicturedScored()
