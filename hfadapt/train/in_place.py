"""A head trained where it stands in its model, whatever the model does around it.

The parts of the model that run before its head are run once for each batch, and what they answer is kept; after that
they give what is kept, so that a step costs the head alone. For heads whose input can be told, `probe` keeps that,
which is smaller.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import recursively_apply

from hfadapt.modalities import Example
from hfadapt.tasks import Batches, Task

ROOM = 2**30
"""Bytes for what is kept of training rows, and as many again of validation rows; of more rows every second, third … is
taken."""

Heads = Sequence[torch.nn.Module] | torch.nn.Sequential
Answers = Mapping[torch.nn.Module, Sequence[Any]]
"""What the parts before the head gave, call by call."""
Kept = list[tuple[Mapping[str, torch.Tensor], Answers]]
"""Batches and what is said of them."""


class InPlace:
    """A model of which only a copy of its head is run.

    Args:
        heads: The modules that make up its head, as they stand in it.
        probe: The copies that are put in their places.
    """

    def __init__(self, task: Task, model: Any, heads: Heads, probe: Heads) -> None:
        self.task, self.model, self.heads, self.probe = task, model, heads, probe
        self.inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def answers(self, batch: Mapping[str, torch.Tensor]) -> tuple[Answers, torch.Tensor]:
        """What runs before the head says of a batch, and the logits of the labels (L, C)."""
        found: dict[torch.nn.Module, list[Any]] = defaultdict(list)
        reached = False

        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if not reached:
                found[module].append(recursively_apply(_kept, output))

        def stop(module: torch.nn.Module, inputs: Any) -> None:
            nonlocal reached
            reached = True

        own = {part for head in self.heads for part in head.modules()}
        with ExitStack() as hooks, torch.no_grad():
            for child in self.inner.children():
                if own.isdisjoint(child.modules()):
                    hooks.enter_context(_removed(child.register_forward_hook(keep)))
            for head in self.heads:
                hooks.enter_context(_removed(head.register_forward_pre_hook(stop)))
            logits = self.task.label_logits(self.model, batch)
        return dict(found), logits

    def logits(self, batch: Mapping[str, torch.Tensor], answers: Answers) -> torch.Tensor:
        """Logits of the labels (L, C) by the copy of the head."""
        with ExitStack() as stack:
            stack.enter_context(_exchanged(self.inner, self.heads, self.probe))
            for part, given in answers.items():
                stack.enter_context(_answering(part, given))
            return self.task.label_logits(self.model, batch)

    def same(self, batch: Mapping[str, torch.Tensor]) -> bool:
        """Whether the model says with a copy of its head, before that is trained, what it says by itself."""
        answers, logits = self.answers(batch)
        if not answers:
            return False
        with torch.no_grad():
            again = self.logits(batch, answers)
        return torch.allclose(again.float(), logits.float(), atol=1e-2, rtol=1e-2)

    def batches(self, examples: Sequence[Example], batches: Batches) -> Kept:
        """The rows in batches with what is said of them, as many rows as there is room for."""
        few = examples[:4]
        sizes = [_bytes(self.answers(batch)[0]) for _, batch in batches(few)]
        each = sum(sizes) / sum(example.size for example in few)
        step = 1 + int(each * sum(example.size for example in examples) / ROOM)
        return [(batch, self.answers(batch)[0]) for _, batch in batches(examples[::step])]

    def fit(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        batches: Batches,
        schedule: tuple[int, int, float],
    ) -> torch.Tensor:
        """Trains what of the copies may be trained, and leaves them where the validation rows liked them best.

        Args:
            schedule: Steps, after how many of them validation rows are asked, and the learning rate, which falls to 0.

        Returns:
            What they answer to the training rows on average, (C,).
        """
        steps, every, rate = schedule
        rows, held = self.batches(train, batches), self.batches(validation, batches)
        learned = [each for head in self.probe for each in head.parameters() if each.requires_grad]
        if learned:
            optimizer = torch.optim.Adam(learned, lr=rate)
            falls = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
            best: tuple[float, list[torch.Tensor]] | None = None
            for step, number in zip(range(1, steps + 1), _passes(len(rows)), strict=False):
                optimizer.zero_grad()
                self._losses(rows[number : number + 1]).mean().backward()
                optimizer.step()
                falls.step()
                if step % every == 0:
                    with torch.no_grad():
                        value = float(self._losses(held).mean())
                    if best is None or value < best[0]:
                        best = value, [each.detach().clone() for each in learned]
            assert best is not None
            with torch.no_grad():
                for each, kept in zip(learned, best[1], strict=True):
                    each.copy_(kept)
        with torch.no_grad():
            return torch.cat([self.logits(*row).float() for row in rows]).mean(0)

    def _losses(self, rows: Kept) -> torch.Tensor:
        return torch.cat([self.task.criterion(self.logits(*row), self.task.targets(row[0])[1]) for row in rows])


def _passes(count: int) -> Iterator[int]:
    """The numbers of batches in an order of its own for each pass over them."""
    draw = random.Random(0)
    while True:
        yield from draw.sample(range(count), count)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def _bytes(answers: Answers) -> int:
    sizes: list[int] = []
    recursively_apply(lambda tensor: sizes.append(tensor.nbytes), list(answers.values()))
    return sum(sizes)


@contextmanager
def _removed(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _answering(part: torch.nn.Module, given: Sequence[Any]) -> Iterator[None]:
    """While inside, a module gives what is given, call by call."""
    before, rest = vars(part).get("forward"), iter(given)
    part.forward = lambda *_, **__: next(rest)
    try:
        yield
    finally:
        del part.forward
        if before is not None:
            part.forward = before


@contextmanager
def _exchanged(model: torch.nn.Module, heads: Heads, others: Heads) -> Iterator[None]:
    """While inside, other modules stand in the places of these."""
    places = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    found = [places[head] for head in heads]

    def put(modules: Heads) -> None:
        for (parent, name), module in zip(found, modules, strict=True):
            setattr(parent, name, module)

    put(others)
    try:
        yield
    finally:
        put(heads)
