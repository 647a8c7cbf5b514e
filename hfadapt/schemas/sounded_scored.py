"""A sound with a number."""

from __future__ import annotations

from hfadapt.schemas import SCORE_NAMES
from hfadapt.schemas._labels import OfNumbers
from hfadapt.schemas.sounded import Sounded


class SoundedScored(OfNumbers, Sounded):
    """Rows of `audio` and `label`, a number."""

    name = "sounded-scored"
    rank = 45
    names = {**Sounded.names, "label": (*SCORE_NAMES, *Sounded.names["label"])}


KIND = SoundedScored()
