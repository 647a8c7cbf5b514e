"""A number for each image: models with a head of one output."""

from __future__ import annotations

from hfadapt.tasks._numbers import Regression
from hfadapt.tasks.image_classification.task import ImageClassification


class ImageRegression(Regression, ImageClassification):
    """Rows of `image` and a number."""

    name = "image-regression"
    title = "image regression"
    schemas = frozenset({"pictured-scored"})


KIND = ImageRegression()
