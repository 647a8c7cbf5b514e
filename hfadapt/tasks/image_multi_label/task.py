"""Any number of classes for each image: models with a head of one yes-or-no output per class."""

from __future__ import annotations

from hfadapt.tasks._several import SeveralClasses
from hfadapt.tasks.image_classification.task import ImageClassification


class ImageMultiLabel(SeveralClasses, ImageClassification):
    """Rows of `image` and a list of classes."""

    name = "image-multi-label"
    title = "multi-label image classification"
    schemas = frozenset({"pictured-several"})


KIND = ImageMultiLabel()
