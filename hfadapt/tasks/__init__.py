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

    @property
    def label_count(self) -> int:
        """Labels that carry a loss."""
        return sum(label != IGNORED for label in self.labels)


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

    @property
    def snippet(self) -> str:
        """The code of the card that opens an adapter and asks it one thing, a template of jinja: `fact`, `peft`,
        `sample`, `base`, `quant`, `form`, `example` (card/snippet.py)."""

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

    @property
    def packs(self) -> bool:
        """Whether rows may stand one after the other in one line of tokens (`in_line`)."""

    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss in nats of each of L labels (L,), in float32, and the row it belongs to (L,)."""

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the L labels of a batch: (L, V) over the vocabulary, or (L, C) over the classes."""

    def score(
        self, model: Any, examples: Sequence[Example], batches: Batches, choices: Sequence[Sequence[int]] = ()
    ) -> Scores:
        """Scores N examples without gradients; `batches` forms padded batches on the model's device.

        Args:
            choices: For generative tasks, the token ids of the completions among which the model may choose.
        """


def in_line(examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows one after the other: input_ids, position_ids, labels, and the row of each token, all (1, `tokens`).

    The first token of a row is no label: nothing of its row comes before it. Tokens after the last row are padding.
    """
    import torch

    lengths = [len(example.input_ids) for example in examples]
    left = tokens - sum(lengths)
    ids = [token for example in examples for token in example.input_ids]
    labels = [label for example in examples for label in (IGNORED, *example.labels[1:])]
    positions = [torch.arange(length) for length in (*lengths, left)]
    rows = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * left]),
        "labels": torch.tensor([labels + [IGNORED] * left]),
        "position_ids": torch.cat(positions)[None],
        "rows": torch.nn.functional.pad(rows, (0, left))[None],
    }


def loss_sum(task: Task, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The loss in nats summed over all labels of the batch, and their number."""
    losses, _ = task.losses(model, batch)
    return losses.sum(), len(losses)


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
