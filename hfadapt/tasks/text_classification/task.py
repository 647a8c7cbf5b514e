"""One class per text: encoders and decoders with a classification head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example, Row
from hfadapt.modalities.text import pad, text_example, tokenised
from hfadapt.tasks import Answer, Served
from hfadapt.tasks._answers import Cut
from hfadapt.tasks._classes import OneClass

if TYPE_CHECKING:
    import torch

FEW_ROWS, FEW_LABELS = 128, 5
SURE = 0.3


class TextClassification(OneClass):
    """Rows of `text` and `label`; cross-entropy over C classes; compared with a linear probe."""

    name = "text-classification"
    title = "text classification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"
    auto_class = "AutoModelForSequenceClassification"
    schemas = frozenset({"labelled"})
    # Accuracy of MiniLM with 150 rows of tweets, movies and news after 20 steps: 0.55, 0.47 and 0.46, no better than a
    # linear probe; after 100: 0.72, 0.56 and 0.56. With 500 tweets after 64 steps 0.73, after 128 0.76.
    least_steps = 100
    folder = Path(__file__).parent

    def head_start(self, rows: int, labels: int) -> float:
        """Of few rows of few classes a probe learns what is true of these alone (benchmarks/NOTES.md)."""
        return 0.0 if rows < FEW_ROWS and labels <= FEW_LABELS else SURE

    def encode(
        self, rows: Sequence[Row], tokenizer: Any, *, max_length: int, labels: Sequence[str] = ()
    ) -> list[Example]:
        """Tokenises with the model's special tokens; a cut keeps them. Raises DataError for an unknown label."""
        each = zip(rows, tokenised([str(row["text"]) for row in rows], tokenizer, max_length), strict=True)
        return [
            text_example(ids, self.target(row, labels, number), length=length, row=number)
            for number, (row, (ids, length)) in enumerate(each)
        ]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
        """input_ids (B, T), attention_mask (B, T), labels (B,)."""
        import torch

        batch = pad(examples, pad_token_id)
        if all(example.labels for example in examples):
            batch["labels"] = torch.tensor([example.labels[0] for example in examples])
        return batch

    def label_logits(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, C)."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def answer(
        self, served: Sequence[Served], texts: Sequence[str], max_new_tokens: int, names: Sequence[str] = ()
    ) -> list[Answer]:
        """The head's outputs for each text, in words."""
        import torch

        model, tokenizer = served[0].model, served[0].tokenizer
        examples = [
            self.encode([{"text": text}], tokenizer, max_length=each.max_length, labels=each.labels)[0]
            for each, text in zip(served, texts, strict=True)
        ]
        batch = self.collate(examples, served[0].pad_token_id)
        named = {"adapter_names": list(names)} if names else {}
        with torch.inference_mode():
            logits = model(**{name: part.to(model.device) for name, part in batch.items()}, **named).logits
        return [
            self.read(text, row, each.labels).model_copy(update={"cut": Cut.of(example.length, example.size)})
            for each, text, row, example in zip(served, texts, logits.float().cpu(), examples, strict=True)
        ]


KIND = TextClassification()
