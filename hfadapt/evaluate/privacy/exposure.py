"""Exposure of planted canaries: has the adapter learned random rows by heart (Carlini et al. 2019, arXiv 1802.08232)?

Each canary is ranked among references of the same distribution that were never planted:
exposure = log2(references + 1) - log2(rank), so a canary that no reference beats has the most bits. Canaries of a free
text are ranked by how much the adapter lowers the base's loss on them; those with one of a few labels by the
probability of their label, against the same label on the references' texts.

Without training on it, a canary's rank is uniform, since canaries and references are draws of one distribution. That
gives the chance that so many canaries of a group lie among the first ranks, and that they lie so far in front as a
whole (`chance`); `found` allows one false alarm in a hundred runs. Controls, drawn like canaries but never planted, are
shown as a group with 0 repeats. A run without canaries has nothing to be found, and no exposure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hfadapt.data import canaries
from hfadapt.modalities import IGNORED, Row
from hfadapt.records.evidence import Canaries, CanaryGroup

if TYPE_CHECKING:
    from hfadapt.evaluate.context import EvaluationContext

REFERENCES = 320
TOP = 3
"""A canary counts as found by itself when fewer than this many references beat it: about 1 % of them."""

FALSE_ALARMS = 0.01


def exposure(context: EvaluationContext) -> Canaries | None:
    """Exposure of the cell's canaries; None where none were planted, or where their answers were cut off."""
    planted = canaries.read(context.cell.folder, context.data)
    if not planted:
        return None
    folder, seed = context.cell.folder, context.lock.data.seed
    repeats = [int(row["repeats"]) for row in planted]
    most = max(repeats.count(each) for each in set(repeats))
    controls = canaries.draw(folder, context.data, seed, "control", most)
    others = canaries.draw(folder, context.data, seed, "reference", REFERENCES)
    ranks = rank_among(context, [*planted, *controls], others)
    return None if ranks is None else judge([*repeats, *[0] * most], ranks, REFERENCES)


def judge(repeats: Sequence[int], ranks: Sequence[int], references: int) -> Canaries:
    """Exposure by how often canaries were repeated, and whether they are found.

    Args:
        repeats: How often each canary is trained on in an epoch; 0 for controls.
        ranks: 1 + the references that are at least as likely, each in 1 … references + 1.
        references: How many references there are.
    """
    sizes = {each: list(repeats).count(each) for each in sorted(set(repeats))}
    planted = [each for each in sizes if each]
    groups = []
    for each, size in sizes.items():
        own = np.array([rank for repeat, rank in zip(repeats, ranks, strict=True) if repeat == each])
        bits = np.log2(references + 1) - np.log2(own)
        groups.append(
            CanaryGroup(
                repeats=each,
                canaries=size,
                exposure_median_bits=float(np.median(bits)),
                exposure_most_bits=float(bits.max()),
                found=int((own <= TOP).sum()),
                p_value=chance(own.tolist(), references),
            )
        )
    allowed = FALSE_ALARMS / max(1, len(planted))
    return Canaries(
        planted=sum(sizes[each] for each in planted),
        references=references,
        threshold_bits=math.log2((references + 1) / TOP),
        groups=tuple(groups),
        found=any(group.repeats > 0 and group.p_value is not None and group.p_value <= allowed for group in groups),
    )


def chance(ranks: Sequence[int], references: int) -> float:
    """Probability that canaries which were not trained on rank at least as well; they and the references are alike.

    Twice the smaller of two chances (Bonferroni): that as many are among the first ranks, which finds a few that are
    known by heart, and that the sum of ranks is as small (Mann & Whitney 1947), which finds a tendency of all. A
    single canary has its rank alone.

    Args:
        ranks: (N,) 1 + the references that are at least as likely.
        references: How many references there are.
    """
    if len(ranks) == 1:
        return ranks[0] / (references + 1)
    first = chance_of_first(sum(rank <= TOP for rank in ranks), len(ranks), TOP, references)
    return min(1.0, 2 * min(first, chance_of_sum(ranks, references)))


def chance_of_first(found: int, canaries: int, top: int, references: int) -> float:
    """P(at least `found` of the canaries are beaten by fewer than `top` references): negative hypergeometric."""
    from scipy.stats import nhypergeom

    # Not `sf`, which is 1 less a sum and has no digits left where the chance is small.
    return float(nhypergeom.pmf(np.arange(found, canaries + 1), canaries + references, canaries, top).sum())


def chance_of_sum(ranks: Sequence[int], references: int) -> float:
    """P(the sum of the canaries' ranks is at most this one): Mann-Whitney's U.

    Exact for up to 8 canaries, the normal approximation beyond.
    """
    from scipy.stats import mannwhitneyu

    # Canaries between the same two references are no ties: they were never compared with each other.
    places = np.array(ranks) - 1 / np.arange(2, len(ranks) + 2)
    return float(mannwhitneyu(places, np.arange(1, references + 1), alternative="less").pvalue)


def rank_among(context: EvaluationContext, rows: Sequence[Row], references: Sequence[Row]) -> list[int] | None:
    """Rank of each row among the references, 1 for a row that none of them reaches; None where answers were cut off."""
    examples = context.encode([*rows, *references])
    if not all(any(label != IGNORED for label in example.labels) for example in examples):
        return None
    few = bool(context.choices) or not context.task.writes
    adapter = context.score(examples, choose=few)
    if adapter.single and adapter.probabilities is not None:
        assert adapter.gold is not None
        logp = np.log(np.maximum(adapter.probabilities, 1e-300))
        gold = adapter.gold[: len(rows)]
        own, others = logp[np.arange(len(rows)), gold], logp[len(rows) :, gold].T
    else:
        gain = context.score(examples, adapter=False, choose=False).losses - adapter.losses
        own, others = gain[: len(rows)], np.broadcast_to(gain[len(rows) :], (len(rows), len(references)))
    return [int(rank) for rank in 1 + (others >= own[:, None]).sum(1)]
