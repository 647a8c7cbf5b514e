"""The one training loop, on `accelerate.Accelerator`.

Everything that decides the result is a pure function of the recipe: the order of rows (batches.py), the learning rate
of a step, the normalisation of the loss over all labels of the effective batch. So a resumed run equals an
uninterrupted one, two processes equal one, and evaluating in between changes nothing.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.batches import epoch_batches, micro_batches, padded
from hfadapt.errors import DataError, RunError
from hfadapt.model import trainable
from hfadapt.progress import Progress, Silent
from hfadapt.records import Step
from hfadapt.tasks import IGNORED, Example, Task
from hfadapt.train import checkpoint
from hfadapt.train.fast import fast_layers, short_attention

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hfadapt.recipe import LockedTrain


@dataclass
class State:
    """Where training stands; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    best_step: int = 0
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    resumed_from_step: int | None = None


@dataclass
class Loop:
    """Trains the parameters of `model` that require gradients.

    Args:
        accelerator: Knows the processes and devices.
        task: Makes batches and losses.
        model: The adapted model, not yet wrapped.
        settings: The lock's `train` section.
        train, validation: Encoded rows.
        pad_token_id: For padding.
        folder: The cell's folder; metrics.jsonl and checkpoints/ are written there.
        identity: Hash of all that must be unchanged for a checkpoint to be continued.
        products: dtype in which low-rank layers multiply, on the fast path; None keeps that of their weights.
        stop: Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.
    """

    accelerator: Accelerator
    task: Task
    model: Any
    settings: LockedTrain
    train: Sequence[Example]
    validation: Sequence[Example]
    pad_token_id: int
    folder: Path
    identity: str
    products: torch.dtype | None = None
    progress: Progress = field(default_factory=Silent)
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError("there are no training rows", place=str(self.folder / "data"))
        self.lengths = [len(example.input_ids) for example in self.train]
        self.label_counts = [sum(label != IGNORED for label in example.labels) for example in self.train]
        self.steps_per_epoch = -(-len(self.train) // self.settings.batch_rows)
        steps = math.ceil(self.settings.epochs * self.steps_per_epoch)
        self.total_steps = min(steps, self.settings.max_steps or steps)
        if self.settings.max_steps:
            self.total_steps = self.settings.max_steps
        self.parameters = trainable(self.model)
        if not self.parameters:
            raise RunError("nothing is trainable: no parameter of the model requires a gradient", place="adapter")
        self.state = State()
        self._drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules())
        self._best: dict[str, torch.Tensor] | None = None
        self._batches: dict[int, list[list[int]]] = {}

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Trains to the end and leaves the result in the model.

        Raises:
            RunError: loss or gradient is not finite, or gradients are missing; the last good state is checkpointed.
            KeyboardInterrupt: `stop` said so; a checkpoint was written.
        """
        self.optimizer = self._make_optimizer()
        self._resume()
        wrapped = self.accelerator.prepare_model(self.model) if self.accelerator.num_processes > 1 else self.model
        self.model.train()
        with self._fast_path():
            self._steps(wrapped)
        if self.settings.patience and self._best:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self._best[name])
        self.model.eval()
        return self.state

    @contextmanager
    def _fast_path(self) -> Iterator[None]:
        if not self.settings.fast:
            yield
            return
        longest = max(self.lengths) if self.model.dtype in (torch.bfloat16, torch.float16) else math.inf
        with fast_layers(self.model, self.products), short_attention(self.accelerator.device, longest):
            yield

    def _steps(self, wrapped: Any) -> None:
        while self.state.step < self.total_steps and not self.state.stopped_early:
            self._step(wrapped)
            last = self.state.step == self.total_steps
            if self.validation and (last or self.state.step % self.settings.evaluate_every_steps == 0):
                self._validate()
            if self.stop():
                self._save()
                raise KeyboardInterrupt
            if not last and self.state.step % self.settings.checkpoint_every_steps == 0:
                self._save()

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 1 … total: linear warm-up, then the schedule down to zero (constant stays)."""
        warmup = math.ceil(self.settings.warmup_ratio * self.total_steps)
        if step <= warmup:
            return self.settings.learning_rate * step / warmup
        done = (step - 1 - warmup) / max(1, self.total_steps - warmup)
        factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
        return self.settings.learning_rate * factor[self.settings.schedule]

    def _step(self, wrapped: Any) -> None:
        started = time.perf_counter()
        step = self.state.step + 1
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        batch = self._epoch(epoch)[position]
        labels = sum(self.label_counts[row] for row in batch)
        if labels == 0:
            raise DataError(
                f"the batch of step {step} has no label to learn from",
                place=str(self.folder / "data" / "train.parquet"),
                got=f"rows {batch[:8]}",
                fix="look at them with: hfadapt check RECIPE",
            )
        world = self.accelerator.num_processes
        micros = micro_batches(batch, self.settings.micro_batch_rows, self.accelerator.process_index, world)
        loss = torch.zeros((), device=self.accelerator.device)
        for i, rows in enumerate(micros):
            last = i == len(micros) - 1
            with nullcontext() if last or world == 1 else wrapped.no_sync(), self._noise(f"{step}/{i}"):
                summed, _ = self.task.loss_sum(wrapped, self._collate(rows))
                # Processes average their gradients, so each counts its own labels `world` times.
                (summed * (world / labels)).backward()
            loss += summed.detach().float()
        loss = self.accelerator.reduce(loss, "sum") / labels
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.max_grad_norm)
        value, norm_value = float(loss), float(norm)
        if not (math.isfinite(value) and math.isfinite(norm_value)):
            self._save()
            raise RunError(
                f"the {'loss' if not math.isfinite(value) else 'gradient'} of step {step} is not finite",
                place=f"training rows {batch[:8]}{' …' if len(batch) > 8 else ''}",
                got=f"loss {value}, gradient norm {norm_value}",
                fix="lower train.learning_rate, or use dtype=float32; the last good state is in checkpoints/",
            )
        if step <= 2:
            self._check_gradients(step)
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._account(step, epoch, batch, labels, value, norm_value, rate, time.perf_counter() - started)

    def _account(
        self,
        step: int,
        epoch: int,
        batch: list[int],
        labels: int,
        loss: float,
        norm: float,
        rate: float,
        seconds: float,
    ) -> None:
        state = self.state
        tokens = sum(self.lengths[row] for row in batch)
        state.step, state.last_loss = step, loss
        state.first_loss = loss if state.first_loss is None else state.first_loss
        state.tokens += tokens
        state.labelled_tokens += labels
        state.seconds += seconds
        self._write(
            Step(
                step=step,
                epoch=round(step / self.steps_per_epoch, 4),
                loss=loss,
                grad_norm=norm,
                learning_rate=rate,
                tokens=tokens,
                labelled_tokens=labels,
                seconds=round(seconds, 4),
            )
        )
        self.accelerator.log({"loss": loss, "grad_norm": norm, "learning_rate": rate}, step=step)
        if self.accelerator.is_main_process:
            speed = state.tokens / state.seconds
            left = (self.total_steps - step) * state.seconds / step
            self.progress.step(step, self.total_steps, loss, speed, left)

    def _check_gradients(self, step: int) -> None:
        """Step 1 and 2: every trained tensor has a gradient, and not all of them are zero."""
        missing = [name for name, p in self.parameters.items() if p.grad is None]
        if missing:
            raise RunError(
                f"{len(missing)} of {len(self.parameters)} trained tensors got no gradient in step {step}",
                place=missing[0],
                fix="these layers take no part in the loss: name others in adapter.modules",
            )
        # B starts at zero, so A has a zero gradient in step 1; in step 2 a zero means that the layer is cut off.
        zero = [name for name, p in self.parameters.items() if p.grad is not None and not p.grad.any()]
        if len(zero) == len(self.parameters) or (step == 2 and len(zero) > len(self.parameters) // 2):
            raise RunError(
                f"{len(zero)} of {len(self.parameters)} trained tensors got a zero gradient in step {step}",
                place=zero[0],
                fix="the loss does not depend on the adapter: check labels (hfadapt check) and adapter.modules",
            )

    # --- validation --------------------------------------------------------------------------------------------------

    def validation_loss(self) -> float:
        """Mean loss per label over the validation rows, without gradients, shared between the processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        total = torch.zeros(2, dtype=exact)
        self.model.eval()
        rows = self.settings.micro_batch_rows * 2
        with torch.inference_mode():
            share = self.validation[rank::world]
            for _, batch in padded(self.task, share, self.pad_token_id, self.accelerator.device, rows):
                summed, count = self.task.loss_sum(self.model, batch)
                total += torch.tensor([float(summed), float(count)], dtype=exact)
        self.model.train()
        total = self.accelerator.reduce(total.to(self.accelerator.device), "sum")
        if not total[1]:
            raise DataError("the validation rows have no label", place=str(self.folder / "data/validation.parquet"))
        return float(total[0] / total[1])

    def _validate(self) -> None:
        loss = self.validation_loss()
        state = self.state
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
            if self.settings.patience:
                self._best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            state.evaluations_without_gain += 1
            state.stopped_early = state.evaluations_without_gain >= (self.settings.patience or math.inf)
        self._write(Step(step=state.step, epoch=round(state.step / self.steps_per_epoch, 4), validation_loss=loss))
        self.accelerator.log({"validation_loss": loss}, step=state.step)
        if self.accelerator.is_main_process:
            self.progress.validation(state.step, loss)

    # --- small parts -------------------------------------------------------------------------------------------------

    @contextmanager
    def _noise(self, place: str) -> Iterator[None]:
        """Dropout draws from a seed of its own, by step, micro-batch and process, and leaves the global state alone."""
        if not self._drops:
            yield
            return
        device = self.accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            rank = self.accelerator.process_index
            torch.manual_seed(random.Random(f"{self.settings.seed}/{place}/{rank}").getrandbits(63))
            yield

    def _epoch(self, epoch: int) -> list[list[int]]:
        if epoch not in self._batches:
            batches = epoch_batches(self.lengths, self.settings.batch_rows, self.settings.seed, epoch)
            self._batches = {epoch: batches}
        return self._batches[epoch]

    def _collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        if rows:
            examples = [self.train[row] for row in rows]
        else:
            shortest = self.train[min(range(len(self.train)), key=self.lengths.__getitem__)]
            examples = [Example(shortest.input_ids, (IGNORED,) * len(shortest.labels), shortest.length, -1)]
        batch = self.task.collate(examples, self.pad_token_id)
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        parameters = list(self.parameters.values())
        options = {"lr": self.settings.learning_rate, "weight_decay": self.settings.weight_decay}
        if self.settings.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **options)
        import bitsandbytes

        name = {"adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}[self.settings.optimizer]
        return getattr(bitsandbytes.optim, name)(parameters, **options)

    def _write(self, step: Step) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(step.model_dump(exclude_none=True)) + "\n")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = dict(self.parameters)
            if self._best:
                tensors |= {f"best/{name}": t for name, t in self._best.items()}  # type: ignore[misc]
            state = {**vars(self.state), "identity": self.identity}
            checkpoint.save(self.folder / "checkpoints", self.state.step, tensors, self.optimizer.state_dict(), state)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = checkpoint.latest(self.folder / "checkpoints", self.progress.say)
        metrics = self.folder / "metrics.jsonl"
        if found and found[2].pop("identity") != self.identity:
            self.progress.say("the checkpoint belongs to another recipe, data or base: starting over")
            found = None
        self.accelerator.wait_for_everyone()
        if not found:
            if self.accelerator.is_main_process:
                metrics.unlink(missing_ok=True)
            return
        tensors, optimizer, state = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])
        best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        self._best = best or None
        self.optimizer.load_state_dict(optimizer)
        self.state = State(**{**state, "resumed_from_step": state["step"]})
        self.progress.say(f"going on from step {self.state.step} of {self.total_steps}")
        if self.accelerator.is_main_process and metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= self.state.step]
            metrics.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
