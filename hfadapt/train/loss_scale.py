"""Loss scaling for float16, whose smallest number is 6e-8: gradients below it would be zero.

The loss is multiplied by a power of two before the backward pass, and the gradients, which are float32, are divided by
it afterwards (Micikevicius et al., arXiv 1710.03740). Where they overflow, the step is worked out again with half the
scale, so that none is left out. Every job has a scale of its own, and keeps it with its checkpoints.
"""

from __future__ import annotations

import math

import torch

from hfadapt.train.job import Job

LARGEST = 65536.0
GROWS_EVERY_STEPS = 200
"""After as many steps the scale is doubled again, up to `LARGEST`."""


def unscale(job: Job, loss: float) -> bool:
    """Divides a job's gradients by its scale; False where they overflowed: then the scale is half of what it was, and
    the step must be worked out again.

    Args:
        loss: Of the step; where it is not finite, a smaller scale does not help.
    """
    state = job.state
    gradients = [p.grad for p in job.parameters.values() if p.grad is not None]
    finite = not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
    if not finite and math.isfinite(loss) and state.loss_scale > 1:
        state.loss_scale /= 2
        return False
    if gradients:
        torch._foreach_div_(gradients, state.loss_scale)
    return True


def grow(job: Job) -> None:
    """After every step."""
    if job.state.step % GROWS_EVERY_STEPS == 0:
        job.state.loss_scale = min(LARGEST, 2 * job.state.loss_scale)
