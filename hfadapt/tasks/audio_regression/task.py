"""A number for each sound: models with a head of one output."""

from __future__ import annotations

from hfadapt.tasks._numbers import Regression
from hfadapt.tasks.audio_classification.task import AudioClassification


class AudioRegression(Regression, AudioClassification):
    """Rows of `audio` and a number."""

    name = "audio-regression"
    title = "audio regression"
    schemas = frozenset({"sounded-scored"})


KIND = AudioRegression()
