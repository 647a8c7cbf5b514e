"""LitGPT's `finetune_lora` on rows that are tokenised already.

Its loop (`litgpt.finetune.lora.fit`) runs as it is. Around it: the stored start is loaded into its LoRA layers, its
cosine schedule is replaced by the shared one, and merging into a full model at the end is left out. It has no clipping
of gradients, and averages the loss over micro-batches instead of over labels.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

from measure import IGNORED, STARTED, Clock, job, save_snapshot, write_result

JOB = job()
NAMES = {"self_attn.o_proj": "attn.proj", "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2"}
NAMES |= {"mlp.down_proj": "mlp.proj"}
PREFIX = "base_model.model.model.layers"


class Trained(Exception):
    """The loop has ended; what LitGPT does afterwards (merging) is no part of the comparison."""


def converted(clock: Clock) -> Path:
    """The base as LitGPT's checkpoint; made outside of the clock."""
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    clock.pause()
    folder = JOB.folder / "litgpt" / "SmolLM2-135M-Instruct"
    if not (folder / "lit_model.pth").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in Path(JOB.model_path).iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        convert_hf_checkpoint(folder, model_name="SmolLM2-135M-Instruct", dtype=JOB.options["dtype"])
    clock.go()
    return folder


def put(model: Any, tensors: dict[str, Any]) -> None:
    """peft's A and B into LitGPT's layers; it keeps q, k and v as one layer with their A and B one upon the other."""
    import torch

    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            for low in ("lora_A", "lora_B"):
                parts = [tensors[f"{PREFIX}.{number}.self_attn.{x}_proj.{low}.weight"] for x in "qkv"]
                getattr(block.attn.qkv, low).copy_(torch.cat(parts))
                for theirs, ours in NAMES.items():
                    layer = block.get_submodule(ours)
                    getattr(layer, low).copy_(tensors[f"{PREFIX}.{number}.{theirs}.{low}.weight"])


def take(model: Any) -> dict[str, Any]:
    """The reverse of `put`."""
    state = {}
    for number, block in enumerate(model.transformer.h):
        rank = block.attn.qkv.r
        outputs = {"lora_A": [rank] * 3, "lora_B": list(block.attn.qkv.qkv_shapes)}
        for low in ("lora_A", "lora_B"):
            for x, part in zip("qkv", getattr(block.attn.qkv, low).split(outputs[low]), strict=True):
                state[f"{PREFIX}.{number}.self_attn.{x}_proj.{low}.weight"] = part
            for theirs, ours in NAMES.items():
                state[f"{PREFIX}.{number}.{theirs}.{low}.weight"] = getattr(block.get_submodule(ours), low)
    return state


def main() -> None:  # long: what litgpt calls back shares the clock, the model and the losses
    """Trains."""
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.finetune import lora
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    clock = Clock()
    checkpoint = converted(clock)
    held: dict[str, Any] = {}
    micro_losses: list[float] = []
    total = len(JOB.batches)
    wanted = JOB.snapshot_steps(total)

    class Rows(DataModule):
        """The prepared rows, in hfadapt's order."""

        prompt_style = None

        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return self._loader(JOB.rows)

        def val_dataloader(self) -> Any:
            return self._loader(JOB.prepared["validation"][:1])

        def _loader(self, rows: list[dict[str, Any]]) -> Any:
            samples = [
                {
                    "input_ids": torch.tensor(row["input_ids"]),
                    "labels": torch.tensor(row["labels"]),
                    "token_counts": dict.fromkeys(("raw", "raw_plus_prompt_template"), len(row["input_ids"])),
                }
                for row in rows
            ]
            collate = get_sft_collate_fn(pad_id=JOB.prepared["pad_token_id"], ignore_index=IGNORED)
            return DataLoader(samples, batch_size=self.batch_size, shuffle=False, collate_fn=collate)

    class Schedule(torch.optim.lr_scheduler.LambdaLR):
        """The shared schedule; its step is the end of a training step."""

        def __init__(self, optimizer: Any) -> None:
            self.begun = False
            super().__init__(optimizer, lambda done: JOB.rate_factor(done + 1, total))
            self.begun = True

        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            if not self.begun:
                return
            clock.step()
            if len(clock.ended) in wanted:
                clock.pause()
                save_snapshot(JOB, len(clock.ended), take(held["model"]))
                clock.go()

    load, loss_of, fit = lora.load_checkpoint, lora.chunked_cross_entropy, lora.fit

    def load_checkpoint(fabric: Any, model: Any, path: Any, strict: bool = True) -> None:
        load(fabric, model, path, strict=strict)
        held["model"] = getattr(model, "module", model)
        put(held["model"], load_file(JOB.init / "adapter_model.safetensors"))

    def chunked_cross_entropy(*args: Any, **kwargs: Any) -> Any:
        loss = loss_of(*args, **kwargs)
        if torch.is_grad_enabled():
            micro_losses.append(float(loss.detach()))
        return loss

    def timed_fit(**known: Any) -> Any:
        held["load_seconds"] = time.perf_counter() - STARTED - clock.overhead
        clock.start()
        fit(**known)
        raise Trained

    lora.load_checkpoint, lora.chunked_cross_entropy, lora.fit = load_checkpoint, chunked_cross_entropy, timed_fit
    lora.get_lr_scheduler = lambda optimizer, **_: Schedule(optimizer)
    every = {f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp")}
    with contextlib.suppress(Trained):
        lora.setup(
            checkpoint,
            out_dir=JOB.out / "trainer",
            precision="bf16-true" if JOB.options["dtype"] == "bfloat16" else "32-true",
            lora_r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            **every,
            data=Rows(),
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=JOB.batch_rows,
                micro_batch_size=JOB.micro,
                epochs=JOB.prepared["epochs"] + 1,
                max_steps=total,
            ),
            eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": JOB.prepared["learning_rate"], "weight_decay": 0.0},
            },
            seed=JOB.seed,
        )
    pieces = JOB.batch_rows // JOB.micro
    losses = [sum(micro_losses[i : i + pieces]) / pieces for i in range(0, len(micro_losses), pieces)]
    write_result(
        JOB,
        clock,
        losses=losses,
        load_seconds=held["load_seconds"],
        first_batch_loss=losses[0],
        remarks=["no clipping; LoRA weights in the base's dtype"],
    )


main()
