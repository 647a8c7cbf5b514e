"""One class per text, of classes that have an order: being off by one is better than being off by two."""

import numpy as np

from hfadapt.tasks import RowMetric
from hfadapt.tasks.text_classification.task import TextClassification


def steps_off(scores):
    return np.stack([np.abs(scores.gold - scores.predictions), np.ones(len(scores.gold))], axis=1).astype(float)


class Ordinal(TextClassification):
    """Rows with a grade; scored by how many classes an answer is off."""

    name = "ordinal-classification"
    title = "grading"
    schemas = frozenset({"graded"})
    metrics = ("steps_off", "accuracy", "loss")
    own_metrics = (
        RowMetric(
            "steps_off",
            "classes between the right one and the chosen one",
            "classes",
            False,
            steps_off,
            lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12),
            frozenset({"class"}),
        ),
    )


KIND = Ordinal()
