"""What the runners on transformers' Trainer share (HF Trainer, TRL, LLaMA-Factory, unsloth, axolotl).

Model, schedule, clock, and the loss of the first batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from measure import IGNORED, STARTED, Clock, Job, save_snapshot, write_result
from transformers import TrainerCallback

PIECE_TOKENS = 4096


def load_model(job: Job) -> Any:
    """The base in the storage the options ask for, with the stored adapter on it, trainable."""
    import torch
    import transformers
    from peft import PeftModel

    quant = None
    dtype = getattr(torch, job.options.get("dtype", "bfloat16"))
    if job.options.get("quant") == "nf4":
        quant = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    classification = job.prepared["task"] == "text-classification"
    auto = getattr(transformers, "AutoModelForSequenceClassification" if classification else "AutoModelForCausalLM")
    options: dict[str, Any] = {"num_labels": len(job.prepared["labels"])} if classification else {}
    if job.prepared["no_dropout"]:
        options |= dict.fromkeys(job.prepared["no_dropout"], 0.0)
    device_map = {"": 0 if job.cuda else "cpu"}
    base = auto.from_pretrained(
        job.model_path, dtype=dtype, quantization_config=quant, device_map=device_map, **options
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes 0.50 packs such weights at the first forward pass without gradients and cannot train on
            # them afterwards; no tool is charged with that.
            module.support_avx512bf16_for_cpu = False
    base.config.use_cache = False
    return PeftModel.from_pretrained(base, str(job.init), is_trainable=True)


def arguments(job: Job) -> dict[str, Any]:
    """Settings of TrainingArguments that all tools share."""
    return {
        "output_dir": str(job.out / "trainer"),
        "seed": job.seed,
        "data_seed": job.seed,
        "learning_rate": job.prepared["learning_rate"],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not job.cuda,
        **batches(job),
    }


def batches(job: Job) -> dict[str, Any]:
    """Micro-batch, accumulation to the effective batch, epochs and order."""
    same = job.options["order"] == "same"
    return {
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": job.batch_rows // job.micro,
        # In hfadapt's order, the rows of all epochs come one after the other.
        "num_train_epochs": 1 if same else job.prepared["epochs"],
        "train_sampling_strategy": "sequential" if same else "random",
    }


def training_rows(job: Job) -> list[dict[str, Any]]:
    """What the trainer's data set is made of."""
    return job.rows if job.options["order"] == "same" else job.file_rows


def trainer_row(job: Job, row: dict[str, Any]) -> dict[str, Any]:
    """One row as a trainer's data set has it."""
    labels = row["labels"][0] if job.prepared["task"] == "text-classification" else row["labels"]
    return {"input_ids": row["input_ids"], "labels": labels}


class Recorder(TrainerCallback):
    """Sets the shared schedule, keeps the time, and looks at loss and adapter outside of it.

    Args:
        row: One row as the trainer's collator takes it.
        means: Whether the trainer's loss is the mean over the labels it is given, whatever their number in the batch.
    """

    def __init__(
        self, job: Job, row: Callable[[Job, dict[str, Any]], dict[str, Any]] = trainer_row, means: bool = False
    ) -> None:
        self.job, self.clock = job, Clock()
        self.row, self.means = row, means
        self.trainer: Any = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.first_batch_loss: float | None = None
        self.load_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Everything is loaded: the schedule is replaced, the first batch's loss taken, the clock started."""
        self.clock.pause()
        total = state.max_steps
        scheduler = getattr(known["lr_scheduler"], "scheduler", known["lr_scheduler"])
        scheduler.lr_lambdas = [lambda done: self.job.rate_factor(done + 1, total)] * len(scheduler.lr_lambdas)
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self.job.rate_factor(1, total)
        self.snapshots = self.job.snapshot_steps(total)
        if self.trainer is not None:
            rows = [self.row(self.job, row) for row in self.job.first_batch]
            self.first_batch_loss = first_batch_loss(self.job, self.trainer, rows, self.means)
        self.clock.go()
        self.load_seconds = time.perf_counter() - STARTED - self.clock.overhead
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """The optimizer has moved."""
        if self.job.cuda:
            import torch

            torch.cuda.synchronize()
        self.clock.step()
        if state.global_step in self.snapshots:
            from peft import get_peft_model_state_dict

            self.clock.pause()
            model = known["model"]
            model = getattr(model, "module", model)
            save_snapshot(self.job, state.global_step, get_peft_model_state_dict(model, save_embedding_layers=False))
            self.clock.go()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **known: Any) -> None:
        """The loss of a step."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.norms.append(float(logs.get("grad_norm", 0.0)))

    def finish(self, remarks: list[str] | None = None) -> None:
        """Writes the result."""
        write_result(
            self.job,
            self.clock,
            losses=self.losses,
            grad_norms=self.norms,
            load_seconds=self.load_seconds,
            first_batch_loss=self.first_batch_loss,
            remarks=remarks,
        )


def labelled(rows: Sequence[dict[str, Any]]) -> int:
    """Labels of rows of text; the first token of a row is never predicted."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def first_batch_loss(job: Job, trainer: Any, rows: list[dict[str, Any]], means: bool) -> float:
    """Loss per label of the rows of hfadapt's step 1, before training, through the trainer's own collator and loss."""
    import torch

    if job.prepared["task"] == "text-classification":
        pieces, labels = [rows], len(rows)
    else:
        labels = labelled(rows)
        longest = max(len(row["input_ids"]) for row in rows)
        size = max(1, min(job.micro, PIECE_TOKENS // longest))
        pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
    model = trainer.model_wrapped
    total = 0.0
    model.train()
    for piece in pieces:
        inputs = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in piece]))
        count = torch.tensor(labels, device=inputs["input_ids"].device)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = float(trainer.compute_loss(model, inputs, num_items_in_batch=count))
        total += loss * labelled(piece) / labels if means else loss
    return total
