"""Shared by the runners, each in its tool's own environment: what to train, a clock, and the result as JSON.

A runner is started as `python run_TOOL.py JOB.json`. It trains on the prepared rows from the stored adapter, writes
result.json and the adapter as it was at a few steps (named as peft names it), and nothing else is asked of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
IGNORED = -100
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "trl", "litgpt", "lightning")
MORE_PACKAGES = ("llamafactory", "unsloth", "axolotl", "liger-kernel", "hfadapt", "tokenizers", "numpy")


class Job:
    """One run: a workload's prepared rows, one tool's options, one seed."""

    def __init__(self, path: Path) -> None:
        self.settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.options: dict[str, Any] = self.settings["options"]
        self.out = Path(self.settings["out"])
        self.folder = Path(self.settings["prepared"])
        self.prepared: dict[str, Any] = json.loads((self.folder / "rows.json").read_text(encoding="utf-8"))
        self.seed: int = self.settings["seed"]
        self.batch_rows: int = self.prepared["batch_rows"]
        self.model_path: str = self.prepared["model_path"]
        self.init = self.folder / f"init-{self.seed}"
        self.batches: list[list[int]] = self.prepared["batches"][str(self.seed)]
        self.cuda = bool(self.settings["cuda"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every row that is trained on, epoch after epoch, in hfadapt's order of steps."""
        return [self.prepared["train"][row] for batch in self.batches for row in batch]

    @property
    def file_rows(self) -> list[dict[str, Any]]:
        """The rows of one epoch in the order of the file."""
        rows: list[dict[str, Any]] = self.prepared["train"]
        return rows

    @property
    def first_batch(self) -> list[dict[str, Any]]:
        """The rows of step 1."""
        return [self.prepared["train"][row] for row in self.batches[0]]

    @property
    def micro(self) -> int:
        """Rows that go through the model at once."""
        return min(int(self.options.get("micro", self.batch_rows)), self.batch_rows)

    def snapshot_steps(self, total: int) -> set[int]:
        """Steps after which the held-out loss is looked at: five, the last among them."""
        return {max(1, round(total * part / 5)) for part in range(1, 6)}

    def rate_factor(self, step: int, total: int) -> float:
        """Share of the learning rate in step 1 … total: linear warm-up, then linearly down, as hfadapt has it."""
        warmup = math.ceil(self.prepared["warmup_ratio"] * total)
        if step <= warmup:
            return step / warmup
        return max(0.0, 1 - (step - 1 - warmup) / max(1, total - warmup))


def job() -> Job:
    """The job named on the command line."""
    return Job(Path(sys.argv[1]))


class Clock:
    """Seconds of the training loop without what only the benchmark does (`pause` … `go`)."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.overhead = 0.0
        self._begun: float | None = None
        self._paused = 0.0

    def start(self) -> None:
        """The loop begins."""
        self._begun = time.perf_counter()

    def pause(self) -> None:
        """What follows is the benchmark's own."""
        self._paused = time.perf_counter()

    def go(self) -> None:
        """It is over."""
        spent = time.perf_counter() - self._paused
        self.overhead += spent
        if self._begun is not None:
            self._begun += spent

    def step(self) -> None:
        """A step has ended."""
        assert self._begun is not None
        self.ended.append(time.perf_counter() - self._begun)

    @property
    def step_seconds(self) -> list[float]:
        """Of each step."""
        return [now - before for before, now in zip([0.0, *self.ended], self.ended, strict=False)]


def peak_resident_bytes() -> int:
    """The kernel's high-water mark of this process (proc(5), VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def save_snapshot(job: Job, step: int, state: dict[str, Any]) -> None:
    """The adapter after a step, on disk under peft's names, in the dtype it is trained in."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, job.out / f"adapter-{step}.safetensors")


def write_result(
    job: Job,
    clock: Clock,
    *,
    losses: list[float],
    load_seconds: float,
    grad_norms: list[float] | None = None,
    first_batch_loss: float | None = None,
    remarks: list[str] | None = None,
) -> None:
    """result.json.

    Args:
        losses: Of each step, in nats per label.
        first_batch_loss: Of the rows of step 1 before training, through the tool's own loss.
    """
    import torch

    versions = {}
    for name in (*PACKAGES, *MORE_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    peak = peak_resident_bytes()
    gpu = None
    if job.cuda:
        gpu = {
            "name": torch.cuda.get_device_name(),
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    result = {
        "tool": job.settings["tool"],
        "workload": job.settings["workload"],
        "seed": job.seed,
        "options": job.options,
        "steps": len(losses),
        "losses": losses,
        "grad_norms": grad_norms or [],
        "first_batch_loss": first_batch_loss,
        "loop_seconds": clock.ended[-1],
        "step_ends_seconds": clock.ended,
        "overhead_seconds": clock.overhead,
        "load_seconds": load_seconds,
        "peak_resident_bytes": peak,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "KMP_", "MKL_"))},
        "versions": versions,
        "remarks": remarks or [],
    }
    (job.out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def collate(job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows padded on the right to the longest: input_ids, attention_mask (B, T), labels (B, T), or (B,) of classes."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def filled(values: list[int], with_: int) -> list[int]:
        return values + [with_] * (longest - len(values))

    batch = {
        "input_ids": torch.tensor([filled(row["input_ids"], job.prepared["pad_token_id"]) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
    }
    if job.prepared["task"] == "text-classification":
        batch["labels"] = torch.tensor([row["labels"][0] for row in rows])
    else:
        batch["labels"] = torch.tensor([filled(row["labels"], IGNORED) for row in rows])
    return batch
