"""Distillation: a model learns from its labels and from what a better one says of the same rows (Hinton, Vinyals and
Dean 2015, arXiv 1503.02531).

Of classes and numbers the loss is the squared distance of logits, which does no worse than a divergence and has no
temperature to choose (Kim et al. 2021, arXiv 2105.08919); of a vocabulary the divergence over the teacher's likeliest
tokens and all others as one. Of vectors and rankings, which are learned from whole batches, the task says it
(`Task.joint_distances`).

Shapes: B rows, L labels, C classes, V vocabulary, K tokens, S sequences, D numbers that come out for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.spec import Spec
from hfadapt.files.places import Place
from hfadapt.models.activation import Ramp, ramp
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import load_config
from hfadapt.models.load import check_base
from hfadapt.models.rounding import Rounded, fake_quantise
from hfadapt.objectives import KNOWN, Beginning, Objective
from hfadapt.objectives._teacher import (
    Teacher,
    cell_at,
    renumbered,
    require_head,
    require_labels,
    require_task,
)
from hfadapt.quants import PLAIN

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfadapt.modalities import Example, Row
    from hfadapt.tasks import Task


RAMPED = 0.5
"""Share of the steps over which other activations come in; the rest of them the model learns to live with these."""


@dataclass
class _Started:
    """Options, the model, and what changes in it while it is trained."""

    options: Any
    model: Any
    ramp: Ramp | None
    rounding: Rounded | None = None


class Distill(Objective):
    """Labels, and a teacher's answers; these are worked out once, so one model is in memory while training."""

    name = "distill"
    title = "labels and a teacher's answers"
    teaches = True
    knows = True
    joint = True

    class Options(Spec):
        """`teacher` is a run, one of its cells, or a model with the task's head; `weight` is the share of its answers
        in the loss, `loss` how far they are, `temperature` what logits are divided by for `kl`, `top` how many tokens
        of a vocabulary are kept; of vectors and rankings `kl` compares what is near to what, `mse` each output. `ramp`
        is the activation that a base had before it got the one of its config, which comes in over the first half of the
        steps. In the last share `rounded` of the steps weights and what is multiplied with them are rounded to 8 bits,
        by the range of each row where `rounded_by_row`, as LiteRT does it, else of all values, as ONNX Runtime does
        it."""

        teacher: str
        weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
        loss: Literal["auto", "mse", "kl"] = "auto"
        temperature: Annotated[float, Field(gt=0.0)] = 2.0
        top: Annotated[int, Field(ge=1)] = 64
        ramp: str = ""
        rounded: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
        rounded_by_row: bool = False

    def unfit(self, task: Task) -> str | None:
        """Why no teacher has an answer to a task's rows, or None."""
        if task.whole_rows:
            return "its rows are answers that are compared"
        return "its rows change with every epoch" if task.redraws else None

    def check(self, options: Any, task: Task) -> None:
        """The task's rows have answers, and there is a teacher."""
        if why := self.unfit(task):
            fix = "leave train.objective out"
            raise RequestError(f"{task.name} cannot be distilled", place="train.objective", got=why, fix=fix)
        if (cell := cell_at(options.teacher, Path())) is not None:
            require_task(cell, options.teacher, task)
            return
        try:
            config = load_config(options.teacher)
        except RequestError as error:
            raise RequestError(
                "there is no such teacher",
                place="train.objective_options.teacher",
                got=options.teacher,
                allowed="a run, one of its cells, or a model with the task's head: a folder, a Hub id or sample:NAME",
                fix="give the folder of a trained cell, such as runs/NAME/DOMAIN/TARGET",
            ) from error
        require_head(config, options.teacher, task)
        check_base(BaseRef(options.teacher, task.name, PLAIN, "float32"))

    def check_labels(self, options: Any, labels: Sequence[str]) -> None:
        """A teacher that is a cell knows the labels."""
        if (cell := cell_at(options.teacher, Path())) is not None:
            require_labels(cell, options.teacher, labels)

    def asked(self, options: Any) -> BaseRef:
        """The teacher's."""
        cell = cell_at(options.teacher, Path())
        return BaseRef.of(cell.lock) if cell else BaseRef(options.teacher, "", PLAIN, "float32")

    def known_from(self, options: Any, folder: Path = Path()) -> Any:
        """The teacher's weights, where it is a cell, and what is kept of its answers."""
        cell = cell_at(options.teacher, folder)
        return [cell.manifest.files if cell else options.teacher, options.top]

    def known(
        self, beginning: Beginning, rows: Sequence[Row], examples: Sequence[Example]
    ) -> list[Mapping[str, np.ndarray]]:
        """Of each row `logits` (L, C); of a vocabulary `tokens` (L, K) and their log-probabilities `chances` (L, K); of
        rows that are learned from whole batches `outputs` of each sequence (S, D)."""
        task, options = beginning.task, beginning.options
        teacher = Teacher.opened(options.teacher, beginning)
        own, order = examples, teacher.order
        if task.writes or task.per_token:
            # A student may have fewer tokens; the teacher reads those, and says of them alone what comes next.
            tokens = teacher.tokens(beginning)
            own = [renumbered(each, tokens) for each in examples] if tokens else examples
            order = tokens if task.writes else order
        else:
            tokenizer = teacher.base.tokenizer
            own = task.encode(rows, tokenizer, max_length=teacher.max_length, labels=beginning.labels)
        beginning.progress.say(f"{len(rows):,} rows go through the teacher once")
        if task.joint:
            return _outputs(task, teacher, beginning, own)
        found: list[Mapping[str, np.ndarray]] = [{}] * len(own)
        each = 1
        for numbers, batch in beginning.batches(own, teacher.base.pad_token_id):
            logits = task.label_logits(teacher.model, batch).float()
            if order is not None:
                logits = logits[:, order]
            kept = _likeliest(logits, options.top) if task.writes else {"logits": logits}
            _, targets, of_label = task.targets(batch)
            each = targets.shape[1:].numel()
            for place, number in enumerate(numbers):
                at = of_label == place
                found[number] = {name: values[at].cpu().numpy() for name, values in kept.items()}
        for example, known in zip(examples, found, strict=True):
            if len(next(iter(known.values()))) * each != example.label_count:
                what = "teacher and student see another number of labels in a row"
                raise RunError(what, got=str(Place("", example.row)))
        return found

    def begin(self, model: Any, task: Task, options: Any) -> _Started:
        """The options, and the way of the model to other activations."""
        return _Started(options, model, ramp(model, options.ramp) if options.ramp else None)

    def moves(self, options: Any) -> bool:
        """With other activations, or with rounding."""
        return bool(options.ramp or options.rounded)

    def at(self, started: _Started, done: float) -> None:
        """As far on the way as the share of the steps says."""
        options = started.options
        if started.ramp:
            started.ramp.set(min(1.0, done / RAMPED))
        if options.rounded and done >= 1 - options.rounded and not started.rounding:
            started.rounding = fake_quantise(started.model, each_row=options.rounded_by_row)

    def end(self, started: _Started) -> None:
        """Plain modules, with the new activations."""
        if started.ramp:
            started.ramp.end()
        if started.rounding:
            started.rounding.remove()

    def losses(
        self, task: Task, model: Any, batch: Mapping[str, torch.Tensor], started: _Started
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The label's loss and the teacher's distance, in their shares."""
        options = started.options
        if task.joint:  # Sequences one by one, which only have to need what the loss needs.
            return task.losses(model, batch)
        _, targets, rows = task.targets(batch)
        logits = task.label_logits(model, batch).float()
        own = task.criterion(logits, targets)
        if task.writes:
            far = _divergence(logits, batch[f"{KNOWN}tokens"].long(), batch[f"{KNOWN}chances"])
        elif options.loss == "kl":
            t = options.temperature
            far = task.divergence(batch[f"{KNOWN}logits"] / t, logits / t) * t * t
        else:
            far = (logits - batch[f"{KNOWN}logits"]).square().flatten(1).mean(-1)
        if own.dim() > 1:
            # Each class of a row has a loss of its own, and its share of the distance.
            classes = own.shape[1]
            far = (far / classes if options.loss == "kl" else far).repeat_interleave(classes)
            own, rows = own.flatten(), rows.repeat_interleave(classes)
        return (1 - options.weight) * own + options.weight * far, rows

    def joint_losses(
        self,
        task: Task,
        outputs: torch.Tensor,
        examples: Sequence[Example],
        places: Sequence[Sequence[int]],
        started: _Started,
    ) -> torch.Tensor:
        """The row's loss and the distance from the teacher's outputs, in their shares."""
        import torch

        options = started.options
        own = task.joint_losses(outputs, examples, places)
        known = torch.cat([torch.from_numpy((example.known or {})["outputs"]) for example in examples])
        reference = known.new_zeros(len(outputs), known.shape[-1])
        reference[[place for row in places for place in row]] = known
        relations = None if options.loss == "auto" else options.loss == "kl"
        far = task.joint_distances(outputs, reference.to(outputs.device), places, relations)
        return (1 - options.weight) * own + options.weight * far


def _outputs(
    task: Task, teacher: Teacher, beginning: Beginning, examples: Sequence[Example]
) -> list[Mapping[str, np.ndarray]]:
    """What comes out of the teacher for the sequences of each example; each different one goes through it once."""
    import torch

    from hfadapt.tasks import unique_parts

    parts, places = unique_parts(examples)
    found: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    for numbers, batch in beginning.batches(parts, teacher.base.pad_token_id):
        for number, output in zip(numbers, task.label_logits(teacher.model, batch).float().cpu(), strict=True):
            found[number] = output
    return [{"outputs": torch.stack([found[place] for place in own]).numpy()} for own in places]


def _likeliest(logits: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """The K likeliest tokens of each label, and their log-probabilities."""
    import torch

    found = logits.log_softmax(-1).topk(min(count, logits.shape[-1]), dim=-1)
    return {"tokens": found.indices.to(torch.int32), "chances": found.values}


def _divergence(logits: torch.Tensor, tokens: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) in nats (L,), over K tokens and the rest of the vocabulary as one."""
    import torch

    own = logits.log_softmax(-1).gather(-1, tokens)
    rest, own_rest = ((1 - x.exp().sum(-1)).clamp(min=1e-6) for x in (chances, own))
    return (chances.exp() * (chances - own)).sum(-1) + rest * (torch.log(rest) - torch.log(own_rest))


KIND = Distill()
