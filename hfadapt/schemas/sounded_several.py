"""A sound with any number of classes, also none."""

from __future__ import annotations

from hfadapt.schemas._labels import OfClasses
from hfadapt.schemas.sounded import Sounded


class SoundedSeveral(OfClasses, Sounded):
    """Rows of `audio` and `label`, a list of classes."""

    name = "sounded-several"
    rank = 44


KIND = SoundedSeveral()
