"""axolotl's `train` on rows that are tokenised already (a data set without `type`); NVIDIA GPUs only.

The stored start is an adapter that it trains further (`lora_model_dir`). Its settings stay beside the run's log.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
from typing import Any

from hf_recorder import Recorder, arguments, labelled, trainer_row, training_rows
from measure import Job, job

READ = "0.19.0"
if importlib.util.find_spec("axolotl") is None:
    raise SystemExit(f"axolotl is not installed; this runner was written against {READ}")
if (found := importlib.metadata.version("axolotl")) != READ:
    raise SystemExit(f"axolotl {found} is installed; this runner was written against {READ}")

from axolotl.integrations.base import BasePlugin  # noqa: E402 - only of the version that was read

JOB = job()
PACKED = bool(JOB.options.get("packing"))
# Room in a packed line beyond the effective batch's mean, with which its packing makes as many steps as other tools.
ROOM = 1.03


def collator_row(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """One row as axolotl's collator takes it; packed rows are told apart by their positions."""
    tokens = len(row["input_ids"])
    more = {"position_ids": list(range(tokens))} if PACKED else {"attention_mask": [1] * tokens}
    return {**trainer_row(job, row), **more}


RECORDER = Recorder(JOB, collator_row, means=True)


class Recording(BasePlugin):
    """Adds the recorder to axolotl's trainer."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The trainer is there."""
        RECORDER.trainer = trainer
        return [RECORDER]


def settings() -> dict[str, Any]:
    """What its users write in YAML."""
    shared = arguments(JOB)
    nf4 = JOB.options.get("quant") == "nf4"
    same = JOB.options["order"] == "same"
    names = ("output_dir", "seed", "learning_rate", "weight_decay", "max_grad_norm", "logging_steps", "save_strategy")
    chosen: dict[str, Any] = {name: shared[name] for name in names}
    chosen |= {
        "base_model": JOB.model_path,
        "datasets": [{"path": str(JOB.out / "trainer" / "rows")}],
        "dataset_prepared_path": str(JOB.out / "trainer" / "prepared"),
        "adapter": "qlora" if nf4 else "lora",
        "load_in_4bit": nf4,
        # axolotl quantises the scales a second time; the scoring does not.
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False},
        "lora_model_dir": str(JOB.init),
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "bf16": JOB.options["dtype"] == "bfloat16",
        "gradient_checkpointing": bool(JOB.options.get("checkpointing", False)),
        "lr_scheduler": shared["lr_scheduler_type"],
        "num_epochs": shared["num_train_epochs"],
        "micro_batch_size": shared["per_device_train_batch_size"],
        "gradient_accumulation_steps": shared["gradient_accumulation_steps"],
        "sequence_len": max(len(row["input_ids"]) for row in JOB.file_rows),
        "excess_length_strategy": "raise",
        "shuffle_merged_datasets": not same,
        "curriculum_sampling": same,
        "plugins": ["__main__.Recording"],
    }
    if PACKED:
        mean = sum(len(row["input_ids"]) for row in JOB.file_rows) / len(JOB.file_rows)
        chosen |= {
            "sample_packing": True,
            # One line holds an effective batch: of several lines in a micro-batch, the last ones would be left out.
            "sequence_len": max(chosen["sequence_len"], math.ceil(ROOM * JOB.batch_rows * mean)),
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            # It becomes torch's attention over packed rows; FlashAttention is not among its requirements.
            "attn_implementation": "sdpa",
            "lora_mlp_kernel": True,
            "lora_qkv_kernel": True,
            "lora_o_kernel": True,
            "plugins": [*chosen["plugins"], "axolotl.integrations.liger.LigerPlugin"],
            "liger_rms_norm": True,
            "liger_fused_linear_cross_entropy": True,
        }
    return chosen


def main() -> None:
    """Trains."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train
    from datasets import Dataset

    if not JOB.cuda:
        raise SystemExit("axolotl's kernels are for NVIDIA GPUs")
    chosen = settings()
    RECORDER.clock.pause()
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in training_rows(JOB)]
    Dataset.from_list(rows).save_to_disk(chosen["datasets"][0]["path"])
    path = JOB.out / "axolotl.yaml"
    path.write_text(json.dumps(chosen, indent=1), encoding="utf-8")  # JSON is YAML
    RECORDER.clock.go()
    cfg = load_cfg(str(path))
    if ignored := sorted(set(chosen) - set(cfg)):
        raise SystemExit(f"axolotl {READ} does not know the settings {', '.join(ignored)}")
    do_train(cfg, TrainerCliArgs())
    # Its trainer has counted the first batch, which was only looked at, as well.
    trained = int(RECORDER.trainer.state.tokens["trainable"]) - labelled(JOB.first_batch)
    RECORDER.finish(
        [
            f"batch {cfg.micro_batch_size} × {cfg.gradient_accumulation_steps}, at most {cfg.sequence_len} tokens each",
            f"LoRA kernels {'on' if cfg.lora_mlp_kernel else 'off'}",
            f"trained {trained} of {chosen['num_epochs'] * labelled(rows)} labels",
        ]
    )


if __name__ == "__main__":  # worker processes of axolotl's may import this file
    main()
