"""TRL's SFTTrainer on rows that are tokenised already."""

from __future__ import annotations

from typing import Any

from hf_recorder import Recorder, arguments, load_model, trainer_row, training_rows
from measure import job

JOB = job()


def main() -> None:
    """Trains."""
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(JOB.seed)
    longest = max(len(row["input_ids"]) for row in JOB.file_rows)
    more: dict[str, Any] = {"max_length": max(1024, longest)}
    shared = arguments(JOB)
    if packing := JOB.options.get("packing"):
        # A packed row stands for about `tokens / mean length` rows; as many as make up the effective batch.
        tokens = max(int(packing), longest)
        mean = sum(len(row["input_ids"]) for row in JOB.file_rows) / len(JOB.file_rows)
        shared |= {
            "per_device_train_batch_size": max(1, round(JOB.batch_rows * mean / tokens)),
            "gradient_accumulation_steps": 1,
        }
        if JOB.options.get("accumulate"):
            shared["gradient_accumulation_steps"] = shared["per_device_train_batch_size"]
            shared["per_device_train_batch_size"] = 1
        more = {"packing": True, "max_length": tokens}
    if JOB.options.get("checkpointing") is False:
        more["gradient_checkpointing"] = False
    if "autocast" in JOB.options:
        # TRL computes under bf16 autocast unless it is told otherwise.
        more["bf16"] = bool(JOB.options["autocast"])
    recorder = Recorder(JOB)
    tokenizer = AutoTokenizer.from_pretrained(JOB.model_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(
        model=load_model(JOB),
        args=SFTConfig(**shared, **more),
        train_dataset=Dataset.from_list([trainer_row(JOB, row) for row in training_rows(JOB)]),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    trainer.train()
    trainer.save_model(str(JOB.out / "trainer"))
    recorder.finish([f"batch {shared['per_device_train_batch_size']} × {shared['gradient_accumulation_steps']}"])


main()
