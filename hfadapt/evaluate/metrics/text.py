"""Metrics of generated text as sums over rows, so that corpus metrics too have an exact paired bootstrap.

BLEU and chrF are sacrebleu's with its defaults (Post 2018, arXiv 1804.08771), from 0 to 100: sacrebleu counts each row,
and what it computes from the counts of a corpus is computed here for all bootstrap samples at once. ROUGE-L lies
between 0 and 1 and equals rouge-score's F-measure without stemming on plain English; rouge-score itself drops every
letter beyond a to z.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLEU_ORDER = 4
CHRF_BETA = 2

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Texts:
    """What a model wrote for N test rows, and what stands there.

    Args:
        rows: (N,) positions in the test split.
    """

    rows: Sequence[int]
    predictions: Sequence[str]
    references: Sequence[str]


def exact_match(texts: Texts) -> np.ndarray:
    """(N, 2): whether the two texts are the same but for white space, and 1."""
    same = [p.split() == r.split() for p, r in zip(texts.predictions, texts.references, strict=True)]
    return np.stack([np.array(same, dtype=np.float64), np.ones(len(same))], axis=1)


def rouge_l(texts: Texts) -> np.ndarray:
    """(N, 2): F-measure of the longest common subsequence of words (Lin 2004, ROUGE), and 1."""
    from rapidfuzz.distance import LCSseq

    values = []
    for prediction, reference in zip(texts.predictions, texts.references, strict=True):
        own, right = _WORD.findall(prediction.lower()), _WORD.findall(reference.lower())
        common = LCSseq.similarity(own, right)
        values.append(2 * common / (len(own) + len(right)) if common else 0.0)
    return np.stack([np.array(values), np.ones(len(values))], axis=1)


def bleu(texts: Texts) -> np.ndarray:
    """(N, 10): lengths of prediction and reference, n-grams found in the reference, n-grams, for n = 1 to 4."""
    from sacrebleu.metrics.bleu import BLEU

    return _counted(BLEU(force=True), texts)  # `force`: no warning about texts that look tokenised


def bleu_value(sums: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002) from 0 to 100, exponential smoothing of n-gram orders without a hit."""
    own, right = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    missed = np.cumsum(correct == 0, axis=-1)
    precision = np.where(correct > 0, correct, 0.5**missed) / np.maximum(total, 1e-12)
    brevity = np.where(own < right, np.exp(np.minimum(0.0, 1 - right / np.maximum(own, 1e-12))), 1.0)
    value = 100 * brevity * np.exp(np.log(precision).mean(-1))
    return np.asarray(np.where((total > 0).all(-1) & (correct > 0).any(-1), value, 0.0))


def chrf(texts: Texts) -> np.ndarray:
    """(N, 18): character n-grams of the prediction, of the reference, and of both, for n = 1 to 6; no white space."""
    from sacrebleu.metrics.chrf import CHRF

    return _counted(CHRF(), texts)


def chrf_value(sums: np.ndarray) -> np.ndarray:
    """chrF2 (Popović 2015) from 0 to 100: precision and recall averaged over the orders, recall counted double."""
    own, right, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counted = (own > 0) & (right > 0)
    orders = np.maximum(counted.sum(-1), 1)
    precision = np.where(counted, both / np.maximum(own, 1e-12), 0.0).sum(-1) / orders
    recall = np.where(counted, both / np.maximum(right, 1e-12), 0.0).sum(-1) / orders
    weight = CHRF_BETA**2
    below = weight * precision + recall
    return np.asarray(np.where(below > 0, 100 * (1 + weight) * precision * recall / np.maximum(below, 1e-12), 0.0))


def _counted(metric: Any, texts: Texts) -> np.ndarray:
    # The method that sacrebleu's own paired bootstrap (sacrebleu.significance) calls; it has no public name.
    counts = metric._extract_corpus_statistics(list(texts.predictions), [list(texts.references)])
    return np.array(counts, dtype=np.float64)
