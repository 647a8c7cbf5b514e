"""A text with any number of classes, also none."""

from __future__ import annotations

from hfadapt.schemas import LABEL_NAMES, TEXT_NAMES
from hfadapt.schemas._labels import OfClasses
from hfadapt.schemas.labelled import Labelled


class Several(OfClasses, Labelled):
    """Rows of `text` and `label`, a list of classes."""

    name = "several"
    rank = 22
    names = {"text": TEXT_NAMES, "label": (*LABEL_NAMES, "cats")}


KIND = Several()
