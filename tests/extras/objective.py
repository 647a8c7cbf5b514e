"""Cross-entropy against labels of which a share is spread over all classes (Szegedy et al. 2016, arXiv 1512.00567)."""

import torch

from hfadapt.core.spec import Spec
from hfadapt.objectives import Objective


class Smoothed(Objective):
    """Label smoothing."""

    name = "smoothed"
    title = "cross-entropy with label smoothing"

    class Options(Spec):
        smoothing: float = 0.1

    def losses(self, task, model, batch, started):
        _, targets, rows = task.targets(batch)
        logits = task.label_logits(model, batch).float()
        share = started.smoothing
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=share), rows


KIND = Smoothed()
