"""The Objective contract: what training minimises, and what it needs for that beside the model. One file per objective.

Shapes: B rows, L labels that carry a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.core.spec import Spec

if TYPE_CHECKING:
    import torch

    from hfadapt.tasks import Task


class Objective:
    """What an objective has to say. The module-level instance is called `KIND`; what it keeps while training is in
    what `begin` returns.

    Attributes:
        name: Name in recipes (`train.objective`).
        title: What is minimised, in words for the plan and the card.
        own_loss: Whether it is the task's own loss at the task's own labels, which may be made in pieces.
        further_passes: Forward passes of the base that a step needs beside the trained one, as a teacher's.
        further_models: Copies of the base's weights in memory beside the trained one.
    """

    name: str
    title: str
    own_loss: bool = False
    further_passes: float = 0.0
    further_models: float = 0.0

    class Options(Spec):
        """What `train.objective_options` may say."""

    def begin(self, model: Any, task: Task, options: Any) -> Any:
        """Called once before step 1: further models, or whatever `losses` is given again in every step.

        Args:
            model: With its adapters attached.
            options: `Options` as the recipe has them.
        """
        return options

    def losses(
        self, task: Task, model: Any, batch: Mapping[str, torch.Tensor], started: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each of L labels (L,), in float32, and the row it belongs to (L,).

        Args:
            started: What `begin` returned.
        """
        raise NotImplementedError
