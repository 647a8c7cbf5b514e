"""LLaMA-Factory's SFT stage on rows that are tokenised already (`tokenized_path`)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

from hf_recorder import Recorder, arguments, training_rows
from measure import job

JOB = job()

if importlib.util.find_spec("torchaudio") is None:
    # LLaMA-Factory imports it at start, for sound; the index has no build of it for this torch on a CPU.
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stand_in


def main() -> None:
    """Trains."""
    from datasets import Dataset, DatasetDict

    recorder = Recorder(JOB)
    recorder.clock.pause()
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in training_rows(JOB)]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(JOB.out / "trainer" / "tokenized"))
    recorder.clock.go()

    from llamafactory.train.tuner import run_exp

    shared: dict[str, Any] = arguments(JOB)
    shared.pop("train_sampling_strategy")
    shared |= {"output_dir": str(JOB.out / "trainer" / "out")}
    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": JOB.model_path,
            "template": "empty",
            "dataset": "prepared",  # only a word: the rows come from `tokenized_path`
            "tokenized_path": str(JOB.out / "trainer" / "tokenized"),
            "cutoff_len": max(len(row["input_ids"]) for row in JOB.file_rows),
            "finetuning_type": "lora",
            "adapter_name_or_path": str(JOB.init),
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_target": "all",
            "disable_shuffling": JOB.options["order"] == "same",
            "disable_gradient_checkpointing": not JOB.options.get("checkpointing", False),
            "bf16": JOB.options["dtype"] == "bfloat16",
            **shared,
        },
        callbacks=[recorder],
    )
    # The same rows in the same order: its step 1 is the first batch.
    recorder.first_batch_loss = recorder.losses[0] if JOB.options["order"] == "same" else None
    recorder.finish()


main()
