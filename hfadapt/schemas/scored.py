"""A text with a number."""

from __future__ import annotations

from hfadapt.schemas import LABEL_NAMES, SCORE_NAMES, TEXT_NAMES
from hfadapt.schemas._labels import OfNumbers
from hfadapt.schemas.labelled import Labelled


class Scored(OfNumbers, Labelled):
    """Rows of `text` and `label`, a number."""

    name = "scored"
    rank = 21
    names = {"text": TEXT_NAMES, "label": (*SCORE_NAMES, *LABEL_NAMES)}


KIND = Scored()
