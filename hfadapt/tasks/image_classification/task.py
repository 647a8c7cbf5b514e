"""One class per image: vision transformers and convolutional nets with a classification head."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hfadapt.modalities.image import INTERPOLATE
from hfadapt.tasks._media import MediaClassification


class ImageClassification(MediaClassification):
    """Rows of `image` and `label`; cross-entropy over C classes; compared with a linear probe."""

    name = "image-classification"
    title = "image classification"
    pipeline_tag = "image-classification"
    peft_task_type = None
    auto_class = "AutoModelForImageClassification"
    modality = "image"
    schemas = frozenset({"pictured"})
    assumed_tokens = 256
    # A new head and features of other pictures take about so many steps; fewer end below the linear probe.
    least_steps = 100
    folder = Path(__file__).parent

    def options(self, model: Any) -> dict[str, Any]:
        """Models with an embedding for each place of a picture interpolate these where they can."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return {INTERPOLATE: True} if INTERPOLATE in inspect.signature(base.forward).parameters else {}


KIND = ImageClassification()
