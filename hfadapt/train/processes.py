"""What several training processes do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hfadapt.core.errors import RunError
from hfadapt.train.job import Job

if TYPE_CHECKING:
    from accelerate import Accelerator


def reduce_gradients(accelerator: Accelerator, jobs: Sequence[Job]) -> None:
    """Adds up the gradients of all processes; each has divided by the labels of the whole batch already."""
    if accelerator.num_processes == 1:
        return
    for job in jobs:
        parameters = list(job.parameters.values())
        have = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
        have = accelerator.reduce(have, "sum")
        found = [p for p, count in zip(parameters, have.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in found])
        flat = accelerator.reduce(flat, "sum")
        for p, part in zip(found, flat.split([p.numel() for p in found]), strict=True):
            p.grad = part.view_as(p)


def check_start(accelerator: Accelerator, jobs: Sequence[Job]) -> None:
    """All processes start from the same parameters.

    Raises:
        RunError: they do not.
    """
    if accelerator.num_processes == 1:
        return
    own = torch.stack([p.detach().double().sum() for job in jobs for p in job.parameters.values()]).float()
    mean = accelerator.reduce(own, "mean")
    if not torch.allclose(own, mean, rtol=1e-5, atol=1e-6):
        raise RunError(
            "the processes start from different parameters",
            place="adapter",
            fix="start them on machines with the same versions of the libraries",
        )
