"""The Objective contract: what training minimises, and what it needs for that beside the model. One file per objective.

Shapes: B rows, L labels that carry a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.core.spec import Spec

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
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
        self_supervised: Whether it learns from texts without labels (`SelfSupervised`), and not the task.
    """

    name: str
    title: str
    own_loss: bool = False
    further_passes: float = 0.0
    further_models: float = 0.0
    self_supervised: bool = False

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


class SelfSupervised(Objective):
    """An objective that learns from texts without labels, in the stage `pretrain`.

    Attributes:
        rank: `auto` takes the lowest that the base can learn by.
        because: Why it is taken, for the plan.
        passes: How often a text goes through the model in a step.
        labelled_share: Of the tokens of a text, those of which the whole vocabulary is predicted.
        own_decoder: Whether it predicts them by a decoder of its own, and not by the base's output layer.
        text_rows: How many texts an example of its learner holds.
        generates: Whether a language model may forget, so that general text belongs among the texts.
    """

    self_supervised = True
    rank: int
    because: str
    passes: float = 1.0
    labelled_share: float = 0.0
    own_decoder: bool = False
    text_rows: int = 1
    generates: bool = False

    def unfit(self, facts: ModelFacts) -> str | None:
        """Why a base cannot learn by it, or None.

        Args:
            facts: With the head of the recipe's task.
        """
        return None

    def loaded_as(self, task: str) -> str:
        """The task with whose head the base is loaded.

        Args:
            task: The recipe's.
        """
        return task

    def learner(self, base: Base, seed: int) -> Task:
        """What makes examples of rows of `text`, and has their loss (`Task.losses`); it `redraws`.

        Its `module`, where it has one, is trained too and left behind.

        Args:
            base: With an adapter on it.
        """
        raise NotImplementedError
