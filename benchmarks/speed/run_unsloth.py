# ruff: noqa: I001 - unsloth comes first
"""unsloth's FastLanguageModel with TRL's trainer as unsloth patches it; NVIDIA GPUs only."""

from __future__ import annotations

import unsloth  # noqa: F401 - it must be imported before the libraries it changes
from unsloth import FastLanguageModel

from hf_recorder import Recorder, arguments, trainer_row, training_rows
from measure import job

JOB = job()


def main() -> None:
    """Trains."""
    from datasets import Dataset
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from trl import SFTConfig, SFTTrainer

    longest = max(len(row["input_ids"]) for row in JOB.file_rows)
    model, tokenizer = FastLanguageModel.from_pretrained(
        JOB.model_path, max_seq_length=longest, load_in_4bit=JOB.options.get("quant") == "nf4", dtype=None
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth",
        random_state=JOB.seed,
    )
    set_peft_model_state_dict(model, load_file(JOB.init / "adapter_model.safetensors"))
    recorder = Recorder(JOB)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(JOB), max_length=longest),
        train_dataset=Dataset.from_list([trainer_row(JOB, row) for row in training_rows(JOB)]),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    trainer.train()
    trainer.save_model(str(JOB.out / "trainer"))
    recorder.finish()


main()
