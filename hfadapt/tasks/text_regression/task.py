"""A number for each text: encoders and decoders with a head of one output."""

from __future__ import annotations

from pathlib import Path

from hfadapt.tasks._numbers import Regression
from hfadapt.tasks.text_classification.task import TextClassification


class TextRegression(Regression, TextClassification):
    """Rows of `text` and a number."""

    name = "text-regression"
    title = "regression"
    schemas = frozenset({"scored"})
    folder = Path(__file__).parent


KIND = TextRegression()
