"""The task's own loss at the labels of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.objectives import Objective

if TYPE_CHECKING:
    import torch

    from hfadapt.tasks import Task


class Supervised(Objective):
    """Cross-entropy, or whatever the task learns by."""

    name = "supervised"
    title = "the task's own loss"
    own_loss = True
    joint = True

    def losses(
        self, task: Task, model: Any, batch: Mapping[str, torch.Tensor], started: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Task.losses`."""
        return task.losses(model, batch)


KIND = Supervised()
