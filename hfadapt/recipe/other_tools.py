"""What other fine-tuning tools call the settings of a recipe: their tables, and words that stand in none of them."""

from __future__ import annotations

from functools import cache

from hfadapt.converters import To
from hfadapt.core import registry

OTHER_TOOLS = {
    "base_model": "model",
    "model_id": "model",
    "model_name": "model",
    "model_name_or_path": "model",
    "dataset": "domains",
    "datasets": "domains",
    "device": "targets",
    "devices": "targets",
    "hardware": "targets",
    "load_in_4bit": "quant: nf4",
    "load_in_8bit": "quant: int8",
    "quantization": "quant",
    "bf16": "dtype: bfloat16",
    "fp16": "dtype: float16",
    "torch_dtype": "dtype",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.modules",
    "lora_target_modules": "adapter.modules",
    "num_layers": "adapter.layers",
    "layers_to_transform": "adapter.layers (the last so many)",
    "lora_layers_to_transform": "adapter.layers (the last so many)",
    "peft": "adapter",
    "lora": "adapter: {method: lora}",
    "lr": "train.learning_rate",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "steps": "train.max_steps",
    "batch_size": "train.batch_rows",
    "train_batch_size": "train.batch_rows",
    "micro_batch_size": "train.micro_batch_rows",
    "per_device_train_batch_size": "train.micro_batch_rows",
    "gradient_accumulation_steps": "train.batch_rows (the effective batch; accumulation follows from it)",
    "gradient_checkpointing": "train.checkpointing",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup": "train.warmup_ratio",
    "warmup_steps": "train.warmup_ratio",
    "eval_steps": "train.evaluate_every_steps",
    "save_steps": "train.checkpoint_every_steps",
    "report_to": "train.trackers",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "val_set_size": "data.validation",
    "test_size": "data.test",
    "path": "source",
    "file": "source",
    "data_files": "source",
    "subset": "config",
}


@cache
def other_words() -> dict[str, str]:
    """For each word of another tool the place in a recipe, or the setting."""
    fields = (registry.converter(name).fields for name in registry.names("converters"))
    found = {key: rule.place for each in fields for key, rule in each.items() if isinstance(rule, To) and rule.place}
    return {**found, **OTHER_TOOLS}
