"""What a language model says about each token of its rows: the raw material of leak checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hfadapt.modalities import Example

if TYPE_CHECKING:
    from hfadapt.evaluate.context import EvaluationContext

CHUNK_TOKENS = 64
"""Positions whose whole distribution over the vocabulary is held at once."""


@dataclass(frozen=True)
class TokenScores:
    """One row with L labels.

    Args:
        logprobs: (L,) log-probability of each label, in nats.
        standardised: (L,) the same less the mean of the distribution's log-probabilities under itself, in its standard
            deviations (Min-K%++, arXiv 2404.02936).
        hits: (L,) whether the label is the likeliest token.
    """

    logprobs: np.ndarray
    standardised: np.ndarray
    hits: np.ndarray

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a label, in nats."""
        return -float(self.logprobs.mean())


def score_tokens(context: EvaluationContext, examples: Sequence[Example], *, adapter: bool = True) -> list[TokenScores]:
    """Scores the labels of every example with the adapter or, with `adapter=False`, the base."""
    with torch.inference_mode(), context.adapter_on(adapter) as model:
        return _score(context, model, examples)


def _score(context: EvaluationContext, model: torch.nn.Module, examples: Sequence[Example]) -> list[TokenScores]:
    found: list[TokenScores | None] = [None] * len(examples)
    for numbers, batch in context.batches(examples):
        _, targets, owners = context.task.targets(batch)
        logits = context.task.label_logits(model, batch)
        columns = [
            np.concatenate(parts)
            for parts in zip(
                *(
                    _statistics(logits[start : start + CHUNK_TOKENS].float(), targets[start : start + CHUNK_TOKENS])
                    for start in range(0, len(targets), CHUNK_TOKENS)
                ),
                strict=True,
            )
        ]
        rows = owners.cpu().numpy()
        for i, number in enumerate(numbers):
            own = rows == i
            found[number] = TokenScores(*(column[own] for column in columns))
    return [scores for scores in found if scores is not None]


def _statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of TokenScores for logits (L, V) and labels (L,)."""
    logp = torch.log_softmax(logits, -1)
    own = logp.gather(1, targets[:, None])[:, 0]
    probability = logp.exp()
    # Where a logit is -inf the probability is 0, and so is its part of the mean.
    finite = logp.clamp_min(-1e4)
    mean = (probability * finite).sum(-1)
    spread = ((probability * finite.square()).sum(-1) - mean.square()).clamp_min(1e-12).sqrt()
    parts = own, (own - mean) / spread, logits.argmax(-1) == targets
    return tuple(part.cpu().numpy() for part in parts)  # type: ignore[return-value]
