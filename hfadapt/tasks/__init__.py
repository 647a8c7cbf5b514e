"""The Task contract: how rows become examples, what the loss is, what is scored. One file per task.

Shapes: B rows, T tokens, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        return self.length > len(self.input_ids)


class Task(Protocol):
    """What a task has to say. Instances are stateless; the module-level instance is called `KIND`."""

    name: ClassVar[str]
    """Name in recipes."""
    pipeline_tag: ClassVar[str]
    """Name of the task on the Hub."""
    peft_task_type: ClassVar[str]
    forms: ClassVar[frozenset[str]]
    """The forms of prepared rows it can learn from: `labelled` (text, label), `completion` (prompt, completion),
    `messages`, `text`."""
    baseline: ClassVar[str]
    """What the adapter is compared with: `base` (zero-shot) or `linear probe`."""

    def load_base(self, path: str, labels: Sequence[str], **kwargs: Any) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """The base model with this task's head, and the names of modules that are new and must be trained."""
        ...

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str]
    ) -> list[Example]:
        """Tokenises rows exactly as training and evaluation will see them; row i becomes example i.

        Raises:
            DataError: the chat template is missing, or a label is not in `labels`.
        """
        ...

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """Pads examples to one batch: input_ids (B, T), attention_mask (B, T), labels (B, T) or (B,)."""
        ...

    def loss_sum(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """The loss summed over all labels of the batch, and their number."""
        ...
