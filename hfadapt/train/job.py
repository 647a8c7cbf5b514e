"""One adapter that is trained: its rows, its schedule, its optimizer, and where it stands.

Several jobs can share one loop and one base (loop.py); nothing in here knows of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfadapt.adapters import DEFAULT
from hfadapt.core.errors import DataError, HfadaptError, RunError
from hfadapt.core.spec import write_text
from hfadapt.files.places import Place, name_rows
from hfadapt.modalities import Example
from hfadapt.plan.disk import checkpoint_bytes
from hfadapt.plan.reasons import CHECK_COST
from hfadapt.records.stages import Step
from hfadapt.run_folder import read_steps
from hfadapt.train import checkpoint
from hfadapt.train.batches import epoch_batches

if TYPE_CHECKING:
    from hfadapt.recipe.schema import LockedTrain

CHECKPOINTS = "checkpoints"
MEASURED_STEPS = 8
"""Steps of which the speed is measured, where training is to end after some time."""
LEAST_DECAY = 0.25
"""Over so many more steps the rate decays at least, however late it is; as a share of those that are done."""


@dataclass
class State:
    """Where training stands; saved with every checkpoint.

    `frozen_seconds` of `seconds` went into running frozen layers once for each row, of which `frozen_tokens` were rows
    to train on; a resumed training does it again. `augmented` has, for each epoch begun, the number of rows that
    augmentation changed.
    """

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
    loss_scale: float = 65536.0
    frozen_seconds: float = 0.0
    frozen_tokens: int = 0
    augmented: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, as they are in its epoch, and the number of their labels."""

    step: int
    epoch: int
    rows: list[int]
    examples: list[Example]
    labels: int


def _named(rows: Sequence[int]) -> str:
    return name_rows(Place("data/train.parquet", row) for row in rows)


def steps_of(settings: LockedTrain, rows: int) -> int:
    """Steps of a training on so many rows."""
    return settings.max_steps or math.ceil(settings.epochs * -(-rows // settings.batch_rows))


def share_of(warmup: int, steps: int) -> float:
    """The `warmup_ratio` of a number of steps, which is rounded up to a whole step when it is used."""
    return max(0.0, (warmup - 0.5) / steps)


@dataclass
class Job:
    """Trains one adapter.

    Args:
        settings: The lock's `train` section.
        train, validation: Encoded rows.
        folder: The cell's folder; metrics.jsonl and checkpoints/ are written there.
        identity: Hash of all that must be unchanged for a checkpoint to be continued.
        parameters: What is trained, by name.
        name: The adapter's name inside the model.
        title: What it is called in messages, when there are several.
        cell: The cell that it belongs to, as `Cell.name`.
        trial: What is tried with it; '' where it is the training of its cell.
        augmented: The encoded rows of a 0-based epoch: those of `train`, or changed ones in their places. None where
            every epoch has the rows of `train`.
        error: Why it was given up, while others went on.
        pause: A step after which it waits, while it is one of the tries of a search; None where it goes to the end.
    """

    settings: LockedTrain
    train: Sequence[Example]
    validation: Sequence[Example]
    folder: Path
    identity: str
    parameters: dict[str, torch.nn.Parameter]
    name: str = DEFAULT
    title: str = ""
    cell: str = ""
    trial: str = ""
    augmented: Callable[[int], Sequence[Example]] | None = None
    error: HfadaptError | None = None
    pause: int | None = None
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError("there are no training rows", place=str(self.folder / "data"))
        if not self.parameters:
            raise RunError("nothing is trainable: no parameter of the model requires a gradient", place="adapter")
        self.lengths = [example.size for example in self.train]
        self.steps_per_epoch = -(-len(self.train) // self.settings.batch_rows)
        self.total_steps = steps_of(self.settings, len(self.train))
        self._best: dict[str, torch.Tensor] | None = None
        self._epoch = -1
        self._examples: Sequence[Example] = ()
        self._batches: list[list[int]] = []

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens that go through the model at once: what the plan's memory is for."""
        return self.settings.micro_batch_rows * self.parts * max(self.lengths)

    @property
    def parts(self) -> int:
        """Sequences of a row, on average."""
        return math.ceil(sum(len(example.parts) for example in self.train) / len(self.train))

    @property
    def active(self) -> bool:
        """Whether there are steps left to do."""
        return self.error is None and self.state.step < self.last_step and not self.state.stopped_early

    @property
    def last_step(self) -> int:
        """The step after which it ends, or waits."""
        return self.total_steps if self.pause is None else self.pause

    @property
    def seconds_per_step(self) -> float:
        """In the mean so far; 0 once there are no steps left."""
        state = self.state
        return (state.seconds - state.frozen_seconds) / state.step if self.active and state.step else 0.0

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 1 … total: linear warm-up, the full rate, then the schedule down to zero (constant
        stays)."""
        warmup = math.ceil(self.settings.warmup_ratio * self.total_steps)
        if step <= warmup:
            return self.settings.learning_rate * step / warmup
        held = max(warmup, round(self.settings.hold_ratio * self.total_steps), self.measured_steps)
        if step <= held:
            return self.settings.learning_rate
        done = (step - 1 - held) / max(1, self.total_steps - held)
        factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
        return self.settings.learning_rate * factor[self.settings.schedule]

    @property
    def measured_steps(self) -> int:
        """After so many steps it is known how many fit into the time that training may take; 0 without such a time."""
        if self.settings.time is None:
            return 0
        warmup = math.ceil(self.settings.warmup_ratio * self.total_steps)
        return min(max(warmup, MEASURED_STEPS), self.total_steps)

    def end_in(self, seconds: float) -> None:
        """Ends when so many more seconds will have gone by, validations among them, at the speed of the steps so far.

        The rate has stayed what it was until now, and decays over the steps that are left, some in any case: what has
        been done is what the changed settings ask for from the start.
        """
        step, longest = self.state.step, steps_of(self.settings.model_copy(update={"max_steps": None}), len(self.train))
        warmup = math.ceil(self.settings.warmup_ratio * self.total_steps)
        held = max(step, round(self.settings.hold_ratio * self.total_steps))
        every, before = self.settings.evaluate_every_steps, self.total_steps
        checks = -(-before // every) * CHECK_COST * len(self.validation) / self.settings.batch_rows
        each = (self.state.seconds - self.state.frozen_seconds) / max(1, step)
        left = max(step * LEAST_DECAY, seconds / max(each, 1e-9) - checks)
        self.total_steps = min(longest, step + math.ceil(left))
        self.settings = self.settings.model_copy(
            update={
                "time": None,
                "max_steps": self.total_steps,
                "warmup_ratio": share_of(warmup, self.total_steps),
                "hold_ratio": min(held, self.total_steps - 1) / self.total_steps,
                "evaluate_every_steps": max(1, every * self.total_steps // before),
            }
        )

    def next_batch(self) -> Batch:
        """The rows of the next step. Raises DataError when none of them has a label."""
        step = self.state.step + 1
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._begin(epoch)
        rows = self._batches[position]
        examples = [self._examples[row] for row in rows]
        labels = sum(example.label_count for example in examples)
        if labels == 0:
            raise DataError(
                f"the batch of step {step} has no label to learn from",
                place=str(self.folder / "data" / "train.parquet"),
                got=_named(rows),
                fix="look at them with: hfadapt check RECIPE",
            )
        return Batch(step, epoch, rows, examples, labels)

    def _begin(self, epoch: int) -> None:
        """The rows of an epoch and their batches: a function of settings and epoch alone."""
        # Rows of the last epoch are let go before those of the next are made.
        self._examples = ()
        self._examples = self.augmented(epoch) if self.augmented else self.train
        lengths = [example.size for example in self._examples]
        self._batches = epoch_batches(lengths, self.settings.batch_rows, self.settings.seed, epoch)
        self._epoch = epoch
        if self.augmented and len(self.state.augmented) == epoch:
            changed = sum(new is not old for new, old in zip(self._examples, self.train, strict=True))
            self.state.augmented.append(changed)

    def tokens(self, batch: Batch) -> int:
        """Tokens of a batch, without padding."""
        return sum(example.tokens for example in batch.examples)

    # --- the update --------------------------------------------------------------------------------------------------

    def make_optimizer(self) -> None:
        """A fresh optimizer over the parameters."""
        parameters = list(self.parameters.values())
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        self.optimizer: torch.optim.Optimizer
        if self.settings.optimizer == "adamw":
            fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
            self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
            return
        import bitsandbytes

        name = {"adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}[self.settings.optimizer]
        self.optimizer = getattr(bitsandbytes.optim, name)(parameters, lr=rate, weight_decay=decay)

    def require_room(self) -> None:
        """Raises RunError where there is no room for its checkpoints."""
        trained = sum(parameter.numel() for parameter in self.parameters.values())
        checkpoint.require_room(self.folder / CHECKPOINTS, checkpoint_bytes(trained, self.settings.optimizer))

    def update(self, batch: Batch, loss: float) -> tuple[float, float]:
        """Clips the gradients and takes the optimizer's step; returns the gradient's norm and the learning rate.

        Raises:
            RunError: loss or gradient is not finite, or gradients are missing; the parameters are as before.
        """
        if batch.step <= 2:
            self._check_present(batch.step)
        found = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(found, self.settings.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fix = "lower train.learning_rate, or use dtype=float32; the last good state is in checkpoints/"
            if batch.step == 1 and not math.isfinite(loss):
                # Nothing has been learned yet.
                fix = "the base's own weights may hold values that are no numbers: copy it again, or use dtype=float32"
            raise RunError(
                f"the {'loss' if not math.isfinite(loss) else 'gradient'} of step {batch.step} is not finite",
                place=_named(batch.rows),
                got=f"loss {loss}, gradient norm {norm}",
                fix=fix,
            )
        if batch.step <= 2 and loss:
            # Without a loss there is no gradient: the last pair of an epoch may be alone, with nothing to tell it from.
            self._check_nonzero(batch.step)
        rate = self.learning_rate(batch.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, rate

    def _check_present(self, step: int) -> None:
        missing = [name for name, p in self.parameters.items() if p.grad is None]
        if missing:
            raise RunError(
                f"{len(missing)} of {len(self.parameters)} trained tensors got no gradient in step {step}",
                place=missing[0],
                fix="these layers take no part in the loss: name others in adapter.modules",
            )

    def _check_nonzero(self, step: int) -> None:
        """B starts at zero, so A has a zero gradient in step 1; in step 2 a zero means that the layer is cut off."""
        zero = [name for name, p in self.parameters.items() if p.grad is not None and not p.grad.any()]
        if len(zero) == len(self.parameters) or (step == 2 and len(zero) > len(self.parameters) // 2):
            raise RunError(
                f"{len(zero)} of {len(self.parameters)} trained tensors got a zero gradient in step {step}",
                place=zero[0],
                fix="the loss does not depend on the adapter: check labels (hfadapt check) and adapter.modules",
            )

    # --- what is kept ------------------------------------------------------------------------------------------------

    def account(self, batch: Batch, loss: float, norm: float, rate: float, seconds: float) -> Step:
        """Counts a finished step and returns its line of metrics.jsonl."""
        state = self.state
        tokens = self.tokens(batch)
        state.step, state.last_loss = batch.step, loss
        state.first_loss = loss if state.first_loss is None else state.first_loss
        state.tokens += tokens
        state.labelled_tokens += batch.labels
        state.seconds += seconds
        return Step(
            step=batch.step,
            epoch=round(batch.step / self.steps_per_epoch, 4),
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            labelled_tokens=batch.labels,
            seconds=round(seconds, 4),
        )

    def validated(self, loss: float) -> Step:
        """Takes note of a validation loss and returns its line of metrics.jsonl."""
        state = self.state
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
            if self.settings.patience:
                self._best = {name: p.detach().clone() for name, p in self.parameters.items()}
        else:
            state.evaluations_without_gain += 1
            state.stopped_early = state.evaluations_without_gain >= (self.settings.patience or math.inf)
        return Step(step=state.step, epoch=round(state.step / self.steps_per_epoch, 4), validation_loss=loss)

    def take_best(self) -> None:
        """With patience, the parameters become those of the best validation."""
        if self.settings.patience and self._best:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self._best[name])

    def write(self, step: Step) -> None:
        """Adds a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(step.model_dump(exclude_none=True)) + "\n")

    def save(self) -> None:
        """Writes a checkpoint."""
        tensors: Mapping[str, torch.Tensor] = {self._plain(name): p for name, p in self.parameters.items()}
        if self._best:
            tensors = {**tensors, **{f"best/{self._plain(name)}": t for name, t in self._best.items()}}
        state = {**vars(self.state), "identity": self.identity}
        checkpoint.save(self.folder / CHECKPOINTS, self.state.step, tensors, self.optimizer.state_dict(), state)

    def resume(self, say: Callable[[str], None]) -> bool:
        """Goes on from the newest whole checkpoint of the same training, if there is one."""
        folder = self.folder / CHECKPOINTS
        found = checkpoint.latest(folder, say, self.identity)
        if not found:
            if any(folder.glob("step-*")):
                say("no checkpoint can be used: starting over")
            return False
        tensors, optimizer, state = found
        del state["identity"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[self._plain(name)])
        kept = {name: f"best/{self._plain(name)}" for name in self.parameters}
        self._best = {name: tensors[key] for name, key in kept.items() if key in tensors} or None
        self.optimizer.load_state_dict(optimizer)
        self.state = State(**{**state, "resumed_from_step": state["step"]})
        say(f"going on from step {self.state.step} of {self.total_steps}")
        return True

    def trim_log(self) -> None:
        """Leaves only the lines of steps that were done, none for a fresh start."""
        metrics = self.folder / "metrics.jsonl"
        if self.state.step == 0:
            metrics.unlink(missing_ok=True)
        elif metrics.exists():
            kept = [step for step in read_steps(metrics) if step["step"] <= self.state.step]
            write_text(metrics, "".join(f"{json.dumps(step)}\n" for step in kept))

    def _plain(self, name: str) -> str:
        """A parameter's name as it is when its adapter is trained alone."""
        return name.replace(f".{self.name}.", f".{DEFAULT}.")
