"""The linear probe: the task's own head trained on the frozen base, the baseline that an adapter has to beat.

The inputs of the head are computed once; the head is then trained on them alone. That they are the right inputs is
checked, not assumed: the head applied to them must give the model's own logits. A head that is more than its modules
one after the other is trained in its place (`in_place`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from hfadapt.adapters import brought
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import json_sha256
from hfadapt.modalities import Example
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base
from hfadapt.run_folder import Cell
from hfadapt.tasks import Batches, Task
from hfadapt.train.in_place import InPlace

STEPS = 400
LEARNING_RATE = 1e-2
CHECK_EVERY = 10
FILE = "probe.safetensors"
"""In the folder of a cell."""

Pick = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]


def _last_token(features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows = torch.arange(len(features), device=features.device)
    return features[rows, batch["attention_mask"].sum(-1) - 1]


def _mean_of(model: Any) -> Pick:
    """The mean over places in time, where the model takes it after the head's first layers: these are linear, so that
    it may as well be taken before. Only of places that the mask leaves, where there is one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model

    def mean(features: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if "attention_mask" not in batch:
            return features.mean(1)
        mask = base._get_feature_vector_attention_mask(features.shape[1], batch["attention_mask"])[..., None]
        return (features * mask).sum(1) / mask.sum(1)

    return mean


PICKS: tuple[Pick, ...] = (
    lambda features, batch: features if features.dim() == 2 else features[:, 0],
    lambda features, batch: features[:, :1],
    _last_token,
    lambda features, batch: features,
)


def train_probe(
    task: Task,
    model: Any,
    heads: Sequence[torch.nn.Module],
    train: Sequence[Example],
    validation: Sequence[Example],
    batches: Batches,
    trained: Sequence[bool] | None = None,
) -> torch.nn.Sequential:
    """A trained copy of the model's head; the model itself is not changed.

    Args:
        heads: The modules that make up the head, first to last.
        validation: Rows that choose how long to train.
        trained: Which of them are trained; by default all.

    Returns:
        The head, to be put in place with `put_head`, or begun with by `start_at`; its buffer `mean` has what it answers
        to the training rows on average, (C,).

    Raises:
        RunError: the head cannot be run without the body.
    """
    modules = torch.nn.Sequential(*heads)
    probe = copy.deepcopy(modules).float()
    for module, own in zip(probe, [True] * len(probe) if trained is None else trained, strict=True):
        module.requires_grad_(own)
    pick = _find_pick(task, model, modules, train[:4], batches) if heads else None
    if pick is None:
        return _in_place(task, model, heads, probe, (train, validation), batches)
    features, labels = _features(task, model, heads[0], pick, train, batches)
    held, held_labels = _features(task, model, heads[0], pick, validation, batches)
    task.start_head(probe, labels.tolist())
    if learned := [parameter for parameter in probe.parameters() if parameter.requires_grad]:
        _fit(probe, learned, task, (features, labels), (held, held_labels))
    with torch.no_grad():
        probe.register_buffer("mean", _flat(probe(features)).mean(0))
    return probe.requires_grad_(False)


def _in_place(
    task: Task,
    model: Any,
    heads: Sequence[torch.nn.Module],
    probe: torch.nn.Sequential,
    rows: tuple[Sequence[Example], Sequence[Example]],
    batches: Batches,
) -> torch.nn.Sequential:
    place = InPlace(task, model, heads, probe)
    _, batch = next(batches(rows[0][:4]))
    if not heads or not place.same(batch):
        raise RunError(
            "the task's head could not be told from the rest of the model, so there is no linear probe to compare with",
            place=type(model).__name__,
            fix="take a model whose head comes after its body, such as BERT, Llama or Whisper; or stop before the "
            "evaluation: hfadapt train RECIPE",
        )
    task.start_head(probe, [label for example in rows[0] for label in example.labels])
    mean = place.fit(*rows, batches, (STEPS, CHECK_EVERY, LEARNING_RATE))
    probe.register_buffer("mean", mean)
    return probe.requires_grad_(False)


def _fit(
    probe: torch.nn.Sequential,
    learned: Sequence[torch.nn.Parameter],
    task: Task,
    rows: tuple[torch.Tensor, torch.Tensor],
    held: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Trains a head on its inputs and their labels.

    No weight decay and full batches: logistic regression, stopped where validation rows say so.
    """
    optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE)
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = task.criterion(_flat(probe(rows[0])), rows[1]).mean()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                value = float(task.criterion(_flat(probe(held[0])), held[1]).mean())
            if best is None or value < best[0]:
                best = (value, {name: tensor.clone() for name, tensor in probe.state_dict().items()})
    assert best is not None
    probe.load_state_dict(best[1])


def probe_of(
    cell: Cell, base: Base, train: Sequence[Example], validation: Sequence[Example], batches: Batches
) -> torch.nn.Sequential:
    """The linear probe of a cell, which is trained once and kept in its folder: training may start with it, and the
    evaluation compares with it.

    Args:
        base: Of the cell, with no adapter on it.
        train: Its training rows, without canaries.

    Raises:
        RunError: the head cannot be run without the body.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    lock, model, path = cell.lock, base.model.eval(), cell.folder / FILE
    ref = BaseRef.of(lock)
    made = ref.made and ref.made.model_dump(mode="json")
    of_base = [ref.model, base.source.revision, made, ref.quant, ref.dtype, ref.seed]
    heads = [model.get_submodule(name) for name in base.head_modules]
    # An adapter is put beside the probe: what it does not bring itself has to stay as the base has it.
    task = registry.task(lock.task)
    own = brought(base.head_modules, base.fresh_modules, task.peft_task_type)
    about = json_sha256(["with mean", own, cell.data.files, cell.data.labels, lock.data.max_length, of_base])
    if path.exists():
        with suppress(Exception), safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("about") == about:
                probe = torch.nn.Sequential(*copy.deepcopy(heads))
                kept = load_file(path)
                probe.register_buffer("mean", kept["mean"])
                probe.float().load_state_dict(kept)
                return probe.requires_grad_(False)
    found = train_probe(task, model, heads, train, validation, batches, own)
    ready = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: value.cpu().contiguous() for name, value in found.state_dict().items()}, ready, {"about": about})
    ready.replace(path)
    return found


def head_start(base: Base, task: Task, rows: int, labels: int) -> float:
    """With which share of the probe's answers a head starts (`Task.head_start`); 0 for one that the base brings."""
    return task.head_start(rows, labels) if {*base.head_modules} <= {*base.fresh_modules} else 0.0


def put_head(model: Any, heads: Sequence[str], probe: torch.nn.Sequential) -> None:
    """Copies the trained head into the model."""
    for name, trained in zip(heads, probe, strict=True):
        model.get_submodule(name).load_state_dict(trained.state_dict())


def start_at(heads: Sequence[torch.nn.Module], probe: torch.nn.Sequential, share: float) -> None:
    """Copies the trained head into modules that are trained on; what they answer is the probe's answer, of whose
    distance to its mean over the training rows a share is left. Heads whose answers are averaged all start so."""
    for head, trained in zip(heads, probe, strict=True):
        head.load_state_dict(trained.state_dict())
    mean = probe.get_buffer("mean")
    last = [each for each in heads[-1].modules() if isinstance(each, torch.nn.Linear)][-1:]
    shapes = [layer.weight.shape for layer in last]
    beside = [each for each in heads[:-1] if isinstance(each, torch.nn.Linear) and each.weight.shape in shapes]
    with torch.no_grad():
        for layer in (*beside, *last):
            layer.weight.mul_(share)
            if layer.bias is not None:
                layer.bias.mul_(share).add_((1 - share) * mean.to(layer.bias))


def _flat(outputs: torch.Tensor) -> torch.Tensor:
    """One line of outputs for each place that has a label: rows, or rows × tokens."""
    return outputs.flatten(0, 1) if outputs.dim() == 3 and outputs.shape[1] > 1 else outputs.reshape(len(outputs), -1)


def _captured(
    task: Task, model: Any, first: torch.nn.Module, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, Any]:
    caught: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].detach()))
    try:
        with torch.no_grad():
            output = task.outputs_of(model, batch)
    finally:
        hook.remove()
    return caught[0], output.logits


def _find_pick(
    task: Task, model: Any, modules: torch.nn.Sequential, examples: Sequence[Example], batches: Batches
) -> Pick | None:
    """What of the input of a head's first module gives the model's logits when it goes through all of them."""
    _, batch = next(batches(examples))
    features, logits = _captured(task, model, modules[0], batch)
    for pick in (*PICKS, _mean_of(model)):
        try:
            picked = pick(features, batch)
            if picked.dim() == 3 and picked.shape[1] > 1 and not task.per_token:
                continue  # All tokens of rows of any length, of which the head takes some itself.
            with torch.no_grad():
                again = _flat(modules(picked))
        except (RuntimeError, ValueError, IndexError, KeyError, AttributeError):  # modules that are no head of rows
            continue
        if again.shape == _flat(logits).shape and torch.allclose(
            again.float(), _flat(logits).float(), atol=1e-2, rtol=1e-2
        ):
            return pick
    return None


def _features(
    task: Task, model: Any, first: torch.nn.Module, pick: Pick, examples: Sequence[Example], batches: Batches
) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's input at each label, and the labels, in the order of the examples."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    order: list[int] = []
    for numbers, batch in batches(examples):
        captured, _ = _captured(task, model, first, batch)
        features = pick(captured, batch).float()
        places, targets, rows = task.targets(batch)
        per_token = task.per_token and features.dim() == 3
        found.append(((features.flatten(0, 1) if per_token else features)[places], targets))
        order += [numbers[row] for row in rows.tolist()]
    by_row = torch.tensor(order).argsort(stable=True)
    inputs, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return inputs[by_row.to(inputs.device)], labels[by_row.to(labels.device)]
