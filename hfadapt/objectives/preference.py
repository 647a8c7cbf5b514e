"""Preferences: the better answer of a pair becomes likelier than the worse one, measured from the model as it stands
before step 1 (DPO, Rafailov et al. 2023, arXiv 2305.18290).

Shapes: B rows, each of a better and a worse answer, S = 2 B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from hfadapt.core.spec import Spec
from hfadapt.objectives import KNOWN, Beginning, Objective
from hfadapt.tasks.preference.task import REFERENCE

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfadapt.modalities import Example, Row
    from hfadapt.tasks import Task


class Preference(Objective):
    """-log sigmoid of how much more the better answer has gained than the worse one, times beta. The reference is what
    the model itself says before step 1, so one model is in memory."""

    name = "preference"
    title = "better answers above worse ones (DPO)"
    knows = True
    refers = True
    whole_rows = True

    class Options(Spec):
        """`beta` is how closely the model is held to the one before step 1; `nll` the share of the better answer's own
        loss per token that is added, which keeps it from becoming less likely."""

        beta: Annotated[float, Field(gt=0.0)] = 0.1
        nll: Annotated[float, Field(ge=0.0)] = 0.0

    def count(self, example: Example) -> int:
        """One for a pair, however long its answers are."""
        return 1

    def before(self, started: Any) -> tuple[Any, float]:
        """Nothing has gained anything: log 2."""
        return started.model_copy(update={"nll": 0.0}), math.log(2)

    def known(
        self, beginning: Beginning, rows: Sequence[Row], examples: Sequence[Example]
    ) -> list[Mapping[str, np.ndarray]]:
        """Of each pair `reference` (2,): the log-probabilities of both answers in nats."""
        beginning.progress.say(f"{len(examples):,} pairs go through the model once, as the reference")
        found: list[Mapping[str, np.ndarray]] = [{}] * len(examples)
        for numbers, batch in beginning.batches(examples):
            logp, _ = beginning.task.log_probabilities(beginning.model, batch)
            for number, pair in zip(numbers, logp.view(-1, 2).cpu().numpy(), strict=True):
                found[number] = {REFERENCE: pair}
        return found

    def losses(
        self, task: Task, model: Any, batch: Mapping[str, torch.Tensor], started: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each pair. Before the reference is known, the loss per token of both answers, by which passes through the
        model are compared."""
        import torch

        logp, tokens = task.log_probabilities(model, batch)
        pairs, each = logp.view(-1, 2), -(logp / tokens).view(-1, 2)
        rows = torch.arange(len(pairs), device=pairs.device)
        if KNOWN + REFERENCE not in batch:
            return each.mean(-1), rows
        gained = pairs - batch[KNOWN + REFERENCE].view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(started.beta * (gained[:, 0] - gained[:, 1]))
        return loss + started.nll * each[:, 0], rows


KIND = Preference()
