"""What tasks that answer with one number have in common, and the metrics that are a mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.tasks import Task

if TYPE_CHECKING:
    import numpy as np
    import torch


def mean(sums: np.ndarray) -> np.ndarray:
    """The first of summed contributions (..., 2), divided by the second."""
    import numpy as np

    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


class OneNumber(Task):
    """A head of one output."""

    reading = 'print(f"{out[0]:.4g}")'
    alike_means = "numbers within a tenth of their spread"
    in_spreads = True

    def outputs(self, labels: Sequence[str]) -> int:
        """One."""
        return 1

    def divergence(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """KL divergence of normal distributions with variance 1 around the two answers: half the squared difference."""
        return 0.5 * (reference - other).square().sum(-1)

    def unit(self, reference: Sequence[torch.Tensor]) -> float:
        """The standard deviation of the reference's answers."""
        import torch

        return max(float(torch.cat(list(reference)).std(correction=0)), 1e-6)

    def alike(self, reference: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Within a tenth of their spread; every number is decided."""
        import torch

        return ((reference - other).abs() <= 0.1).all(-1), torch.ones(len(reference))
