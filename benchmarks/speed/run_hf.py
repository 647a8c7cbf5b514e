"""HF Trainer with peft."""

from __future__ import annotations

from typing import Any

from hf_recorder import Recorder, arguments, load_model, trainer_row, training_rows
from measure import collate, job

JOB = job()


def main() -> None:
    """Trains."""
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(JOB.seed)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Rows as they were prepared."""

        def __init__(self) -> None:
            self.rows = [trainer_row(JOB, row) for row in training_rows(JOB)]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return self.rows[index]

    def collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return collate(JOB, [{**row, "labels": _list(row["labels"])} for row in rows])

    def mean_over_effective_batch(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Without it, Trainer 5.23 sums the mean losses of accumulated batches of a classifier."""
        summed = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
        return summed / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    recorder = Recorder(JOB)
    classification = JOB.prepared["task"] == "text-classification"
    trainer = Trainer(
        model=load_model(JOB),
        args=TrainingArguments(
            **arguments(JOB),
            bf16=bool(JOB.options.get("autocast")),
            gradient_checkpointing=bool(JOB.options.get("checkpointing", False)),
            remove_unused_columns=False,
        ),
        train_dataset=Rows(),
        data_collator=collator,
        callbacks=[recorder],
        compute_loss_func=mean_over_effective_batch if classification and JOB.micro < JOB.batch_rows else None,
    )
    recorder.trainer = trainer
    trainer.train()
    trainer.save_model(str(JOB.out / "trainer"))
    recorder.finish()


def _list(labels: Any) -> list[int]:
    return labels if isinstance(labels, list) else [labels]


main()
