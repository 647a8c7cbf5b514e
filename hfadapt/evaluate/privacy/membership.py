"""Membership inference: can training rows be told from held-out rows of the same pool by what the adapter says?

Every attack is a number per row, higher for a member. Texts are scored as training saw them; the test and validation
rows that serve as non-members were drawn at random from the pool of the training rows, since sets collected afterwards
measure a shift of the data rather than a leak (Duan et al. 2024, arXiv 2402.07841). A blind attack that sees the words
alone measures the shift that is left (Das et al. 2024, arXiv 2406.16201).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Unpack

from hfadapt.core.hashing import stable_hash
from hfadapt.evaluate.metrics.rows import Sampling, percentiles
from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.records.evidence import Attack, Estimate, Membership

if TYPE_CHECKING:
    from hfadapt.evaluate.privacy.token_scores import TokenScores
    from hfadapt.schemas import RowSchema
from hfadapt.tasks import Scores

MIN_K = 0.2
"""Share of a row's tokens, the least likely ones, that Min-K% looks at (Shi et al. 2024, arXiv 2310.16789)."""

FALSE_POSITIVES = 0.01
FOLDS = 5
LEAST_TOKENS = 5
"""With fewer labels a row, statistics over its tokens say no more than its loss."""


def membership(
    attacks: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seen: tuple[Sequence[Any], Sequence[Any]],
    **how: Unpack[Sampling],
) -> Membership:
    """How well the attacks tell M members from N non-members.

    The intervals of the attacks hold for all of them together (Bonferroni), so that the best of several is not taken
    for a leak by chance. It `leaks` when the whole AUC interval of an attack is above 0.5 and above what the blind
    attack reaches.

    Args:
        attacks: By name, the scores of members (M,) and of non-members (N,), higher for members.
        seen: What members and non-members show to whoever has no model: texts, or vectors (D,) of files.
        how: Of the bootstrap, in which members and non-members are drawn apart.
    """
    if len(seen[0]) < 2 or len(seen[1]) < 2:
        raise ValueError("membership inference needs two members and two non-members")
    generator = np.random.default_rng(how["seed"])
    draws = tuple(
        generator.multinomial(len(own), np.full(len(own), 1 / len(own)), size=how["resamples"]).astype(np.float64)
        for own in seen
    )
    confidence = how["confidence"]
    together = 1 - (1 - confidence) / max(1, len(attacks))
    measured = tuple(_attack(name, members, others, draws, together) for name, (members, others) in attacks.items())
    blind = _attack(*_blind(seen, how["seed"]), draws, confidence)
    reached = max(0.5, blind.auc.value)
    return Membership(
        members=len(seen[0]),
        non_members=len(seen[1]),
        attacks=measured,
        blind=blind,
        leaks=any(attack.auc.low is not None and attack.auc.low > reached for attack in measured),
    )


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, allowed: float = FALSE_POSITIVES) -> float:
    """Share of the members (M,) found by the threshold that accuses at most `allowed` of the non-members (N,).

    At 1 % of fewer than 100 non-members, none of them may be accused.
    """
    ones = np.ones((1, len(members))), np.ones((1, len(others)))
    return float(_found(members, others, *ones, allowed)[0])


def token_attacks(
    adapter: Sequence[TokenScores], base: Sequence[TokenScores], examples: Sequence[Example], decode: Any
) -> dict[str, np.ndarray]:
    """Attacks on N rows of a language model, each (N,).

    loss; loss less the base's; mean log-probability of the least likely 20 % of the tokens (Min-K%), and the same
    standardised by the distribution at each (Min-K%++); loss over the bytes to which zlib packs the text (Carlini et
    al. 2021, arXiv 2012.07805).

    Args:
        decode: Token ids -> text.
    """
    loss = np.array([scores.loss for scores in adapter])
    found = {"loss": -loss, "loss difference": np.array([scores.loss for scores in base]) - loss}
    if np.median([len(scores.logprobs) for scores in adapter]) >= LEAST_TOKENS:
        packed = [
            len(zlib.compress(decode([label for label in example.labels if label != IGNORED]).encode()))
            for example in examples
        ]
        found["Min-20%"] = np.array([_lowest(scores.logprobs) for scores in adapter])
        found["Min-20%++"] = np.array([_lowest(scores.standardised) for scores in adapter])
        found["zlib ratio"] = -np.array([-scores.logprobs.sum() for scores in adapter]) / np.array(packed)
    return found


def choice_attacks(adapter: Scores, base: Scores | None) -> dict[str, np.ndarray]:
    """Attacks on N rows whose answer is one of a few: loss of the right answer, probability of the chosen one, how far
    the right answer is ahead of the next one, and loss less the base's; each (N,).

    Args:
        adapter: What the adapter says.
        base: What a reference says that was not trained on the members. None leaves the difference out, as for a
            classifier: its baseline is a head trained on these very rows, which remembers them itself.
    """
    # Rows with more labels have larger sums, whether or not they were trained on.
    labels = np.maximum(adapter.tokens, 1) if adapter.kind == "tokens" else 1
    found = {"loss": -adapter.losses / labels}
    if base is not None:
        found["loss difference"] = (base.losses - adapter.losses) / labels
    if adapter.single and adapter.probabilities is not None:
        assert adapter.gold is not None
        rows = np.arange(len(adapter.gold))
        right = adapter.probabilities[rows, adapter.gold]
        others = adapter.probabilities.copy()
        others[rows, adapter.gold] = -1.0
        found["confidence"] = adapter.probabilities.max(-1)
        found["margin"] = right - others.max(-1)
    return found


def row_text(schema: RowSchema, row: Row) -> str:
    """Everything that a row says, its label left out."""
    return "\n".join(schema.stated(row))


def sample(rows: Sequence[Any], count: int, seed: int, what: str) -> list[Any]:
    """`count` rows drawn with the seed, in their own order; all where there are no more."""
    if len(rows) <= count:
        return list(rows)
    chosen = np.random.default_rng(stable_hash(seed, what)).choice(len(rows), size=count, replace=False)
    return [rows[i] for i in sorted(chosen)]


def _lowest(values: np.ndarray) -> float:
    kept = max(1, round(MIN_K * len(values)))
    return float(np.sort(values)[:kept].mean())


def _wins(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(M, N): 1 where the member scores higher, 0.5 for a tie; the mean is the area under the curve (Mann & Whitney
    1947)."""
    return (members[:, None] > others[None, :]) + 0.5 * (members[:, None] == others[None, :])


def _found(
    members: np.ndarray, others: np.ndarray, drawn: np.ndarray, drawn_others: np.ndarray, allowed: float
) -> np.ndarray:
    """(S,) true-positive rate at the false-positive rate, for S samples with counts (S, M) and (S, N)."""
    values = np.concatenate([members, others])
    order = np.argsort(-values, kind="stable")
    is_member = order < len(members)
    counts = np.concatenate([drawn, drawn_others], axis=1)[:, order]
    hits = np.cumsum(counts * is_member, axis=1) / len(members)
    alarms = np.cumsum(counts * ~is_member, axis=1) / len(others)
    # A threshold lies between two different values only.
    ends = np.append(np.diff(values[order]) != 0, True)
    usable = ends & (alarms <= allowed + 1e-12)
    return np.where(usable, hits, 0.0).max(axis=1)


def _attack(
    name: str, members: np.ndarray, others: np.ndarray, draws: tuple[np.ndarray, ...], confidence: float
) -> Attack:
    drawn, drawn_others = draws
    wins = _wins(members, others)
    areas = ((drawn @ wins) * drawn_others).sum(1) / (len(members) * len(others))
    rates = _found(members, others, drawn, drawn_others, FALSE_POSITIVES)
    return Attack(
        name=name,
        auc=_estimate(float(wins.mean()), areas, confidence, len(members) + len(others)),
        tpr_at_1pct_fpr=_estimate(tpr_at_fpr(members, others), rates, confidence, len(members) + len(others)),
    )


def _estimate(value: float, samples: np.ndarray, confidence: float, rows: int) -> Estimate:
    low, high = percentiles(samples, confidence)
    return Estimate(value=value, low=low, high=high, rows=rows)


def _blind(seen: tuple[Sequence[Any], Sequence[Any]], seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, and out-of-fold scores of logistic regression on a bag of words or on vectors, for members and others."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    rows = [*seen[0], *seen[1]]
    first = len(seen[0])
    gold = np.repeat([1, 0], [first, len(seen[1])])
    folds = StratifiedKFold(min(FOLDS, first, len(seen[1])), shuffle=True, random_state=seed % 2**32)
    model: Any = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    name = "coarse features"
    if isinstance(rows[0], str):
        name = "bag of words"
        # Single characters count too, so that no text is without words.
        model = make_pipeline(TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True), model)
    values = cross_val_predict(model, rows, gold, cv=folds, method="decision_function")
    return name, values[:first], values[first:]
