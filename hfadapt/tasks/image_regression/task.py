"""A number for each image: models with a head of one output."""

from __future__ import annotations

from hfadapt.tasks._number import ANumber
from hfadapt.tasks.image_classification.task import ImageClassification


class ImageRegression(ANumber, ImageClassification):
    """Rows of `image` and a number."""

    name = "image-regression"
    title = "image regression"
    schemas = frozenset({"pictured-scored"})


KIND = ImageRegression()
