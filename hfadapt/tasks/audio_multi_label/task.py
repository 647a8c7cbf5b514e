"""Any number of classes for each sound: models with a head of one yes-or-no output per class."""

from __future__ import annotations

from hfadapt.tasks._several import SeveralClasses
from hfadapt.tasks.audio_classification.task import AudioClassification


class AudioMultiLabel(SeveralClasses, AudioClassification):
    """Rows of `audio` and a list of classes."""

    name = "audio-multi-label"
    title = "multi-label audio classification"
    schemas = frozenset({"sounded-several"})


KIND = AudioMultiLabel()
