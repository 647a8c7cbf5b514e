"""Any number of classes for each text: encoders and decoders with a head of one yes-or-no output per class."""

from __future__ import annotations

from pathlib import Path

from hfadapt.tasks._several import SeveralClasses
from hfadapt.tasks.text_classification.task import TextClassification


class MultiLabel(SeveralClasses, TextClassification):
    """Rows of `text` and a list of classes."""

    name = "multi-label-classification"
    title = "multi-label classification"
    schemas = frozenset({"several"})
    folder = Path(__file__).parent


KIND = MultiLabel()
