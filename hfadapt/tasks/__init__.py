"""The Task contract: how rows become examples, what the loss is, what is scored. One file per task.

Shapes: B rows, T tokens, V vocabulary, C classes, N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row.

    `labels` has one entry per input token for token-level tasks (`IGNORED` where nothing is learned) and exactly one
    entry, the class index, for classification. `length` is the number of tokens before any cut.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    length: int
    row: int

    @property
    def truncated(self) -> bool:
        """Whether the row was cut."""
        return self.length > len(self.input_ids)


@dataclass(frozen=True)
class Scores:
    """What a model said about N rows; absent parts are None.

    Args:
        gold: (N,) index of the right class.
        predictions: (N,) index of the chosen class.
        probabilities: (N, C).
        losses: (N,) negative log-likelihood in nats, summed over the row's labels.
        tokens: (N,) number of labels behind each loss.
    """

    gold: np.ndarray | None
    predictions: np.ndarray | None
    probabilities: np.ndarray | None
    losses: np.ndarray
    tokens: np.ndarray


Batches = Callable[[Sequence[Example]], Iterator[tuple[Sequence[int], Mapping[str, "torch.Tensor"]]]]


class Task(Protocol):
    """What a task has to say. Instances are stateless; the module-level instance is called `KIND`."""

    @property
    def name(self) -> str:
        """Name in recipes."""

    @property
    def pipeline_tag(self) -> str:
        """Name of the task on the Hub."""

    @property
    def peft_task_type(self) -> str:
        """Name in `peft.TaskType`."""

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base with this task's head."""

    @property
    def forms(self) -> frozenset[str]:
        """The forms of prepared rows it learns from: `labelled` (text, label), `completion` (prompt, completion),
        `messages`, `text`."""

    @property
    def baseline(self) -> str:
        """What the adapter is compared with: `base` (zero-shot) or `linear probe`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that fit every row of this task, the leading one first."""

    def model_options(self, labels: Sequence[str]) -> dict[str, Any]:
        """Keyword arguments for loading the base with `auto_class`."""

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str]
    ) -> list[Example]:
        """Tokenises rows exactly as training and evaluation will see them; row i becomes example i.

        Raises:
            DataError: the chat template is missing, or a label is not in `labels`.
        """

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """Pads examples to one batch: input_ids (B, T), attention_mask (B, T), labels (B, T) or (B,)."""

    def loss_sum(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """The loss in nats summed over all labels of the batch, and their number."""

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the L labels of a batch: (L, V) over the vocabulary, or (L, C) over the classes."""

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Scores N examples without gradients; `batches` forms padded batches on the model's device.

        Args:
            choices: For generative tasks, the token ids of the completions among which the model may choose.
        """


def pad(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both (B, T), padded on the right to the longest example."""
    import torch

    longest = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for i, example in enumerate(examples):
        input_ids[i, : len(example.input_ids)] = torch.tensor(example.input_ids)
        attention_mask[i, : len(example.input_ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
