"""The Objective contract: what training minimises, and what it needs for that beside the model. One file per objective.

Shapes: B rows, L labels that carry a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfadapt.core.progress import Progress
    from hfadapt.modalities import Example, Row
    from hfadapt.models.base import BaseRef
    from hfadapt.models.facts import ModelFacts
    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.tasks import Task


KNOWN = "known."
"""Begins the names in a batch of what is known of its rows."""


@dataclass(frozen=True)
class Beginning:
    """What is there before step 1.

    Args:
        model: As training begins with it, in evaluation mode; of several adapters on it the job's own is active.
        labels: Names of the classes.
        folder: The cell's.
        batches: Forms padded batches of examples on the device: their numbers and the batch. Its second argument is
            what texts are padded with, where that is another model's.
    """

    task: Task
    model: Any
    base: Base
    lock: Lock
    labels: Sequence[str]
    options: Any
    folder: Path
    batches: Callable[..., Iterator[tuple[Sequence[int], Mapping[str, torch.Tensor]]]]
    device: torch.device
    progress: Progress


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
        teaches: Whether a smaller model of an adapted one learns by it: its options name a `teacher`.
        knows: Whether it learns from what a model that is not trained says of each row (`known`).
        refers: Whether that model is the trained one as it stands before step 1. It is then asked on the very path on
            which it is trained, so that nothing but training can make a difference.
        whole_rows: Whether the loss is of all sequences of a row together (`Task.whole_rows`).
        joint: Whether it has a loss of rows that are learned from whole batches (`Task.joint`).
    """

    name: str
    title: str
    own_loss: bool = False
    further_passes: float = 0.0
    further_models: float = 0.0
    self_supervised: bool = False
    teaches: bool = False
    knows: bool = False
    refers: bool = False
    whole_rows: bool = False
    joint: bool = False

    class Options(Spec):
        """What `train.objective_options` may say."""

    def begin(self, model: Any, task: Task, options: Any) -> Any:
        """Called once before step 1: further models, or whatever `losses` is given again in every step.

        Args:
            model: With its adapters attached.
            options: `Options` as the recipe has them.
        """
        return options

    def asked(self, options: Any) -> BaseRef | None:
        """The base of the model that is asked for what is `known`, where that is another one.

        Raises:
            HfadaptError: there is none.
        """
        return None

    def known(
        self, beginning: Beginning, rows: Sequence[Row], examples: Sequence[Example]
    ) -> list[Mapping[str, np.ndarray]]:
        """What a model that is not trained says of each example, of objectives that `knows`: arrays by name.

        It is asked once before step 1, without gradients, of training and validation rows; the answers are kept on
        disk until training is done. `losses` finds those of a batch in it, one after the other along their first
        dimension, under `KNOWN` and their name.
        """
        raise NotImplementedError

    def count(self, example: Example) -> int:
        """How many losses an example has: the labels that carry one."""
        return example.label_count

    def before(self, started: Any) -> tuple[Any, float] | None:
        """What in place of `started` gives a mean loss that is known before anything was learned, and that loss; None
        where there is no such."""
        return None

    def known_from(self, options: Any, folder: Path = Path()) -> Any:
        """What its answers, and so the training, depend on beside rows, base and options: a teacher's hashes.

        Args:
            folder: Where paths in the options begin.
        """
        return None

    def check(self, options: Any, task: Task) -> None:
        """Looks, before anything is done, whether it can be had so. Raises RequestError."""

    def check_labels(self, options: Any, labels: Sequence[str]) -> None:
        """Looks, once rows are prepared and before anything is trained, whether it suits their labels. Raises
        RequestError."""

    def moves(self, options: Any) -> bool:
        """Whether the model itself changes with the steps (`at`), so that nothing it says may be kept for later steps,
        and no step but the last leaves what is saved."""
        return False

    def at(self, started: Any, done: float) -> None:
        """Called before each step and validation of objectives that move the model.

        Args:
            done: Share of the steps that came before: 0 at the first, 1 after the last.
        """

    def end(self, started: Any) -> None:
        """Called after the last step of objectives that move the model; what is saved is what is left then."""

    def losses(
        self, task: Task, model: Any, batch: Mapping[str, torch.Tensor], started: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each of L labels (L,), in float32, and the row it belongs to (L,).

        Args:
            started: What `begin` returned.
        """
        raise NotImplementedError

    def joint_losses(
        self,
        task: Task,
        outputs: torch.Tensor,
        examples: Sequence[Example],
        places: Sequence[Sequence[int]],
        started: Any,
    ) -> torch.Tensor:
        """As `Task.joint_losses`, of objectives that are `joint`; what is known of an example it carries itself."""
        return task.joint_losses(outputs, examples, places)


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
