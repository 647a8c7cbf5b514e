"""Who is to find what: losses of texts that are learned together, ranks of documents, and metrics of ranks.

Shapes: N rows, C documents, D features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfadapt.modalities import Example
from hfadapt.schemas import LabelKind
from hfadapt.tasks import RowMetric, Scores, ragged
from hfadapt.tasks._numbers import mean

if TYPE_CHECKING:
    import numpy as np
    import torch

SCALE = 20.0
"""Cosines times this are the logits, as in sentence-transformers."""
CUT = 10
AT_ONCE = 512
"""Rows whose similarities to all documents are in memory at the same time."""


@dataclass(frozen=True)
class Search:
    """What the anchors of rows are to find, and among which documents.

    Texts are the same where they differ in case, width or white space alone: a document that stands in several rows is
    there once, and what belongs to an anchor in another row is no wrong answer.

    Args:
        anchors: Of each row, the place of its anchor among the sequences.
        documents: Places of the different documents.
        targets: Of each row, the column of its own positive among the documents.
        relevant: Of each row, the columns of all that belongs to its anchor.
        first: Whether the row is the first with its anchor.
    """

    anchors: list[int]
    documents: list[int]
    targets: list[int]
    relevant: list[tuple[int, ...]]
    first: list[bool]

    @classmethod
    def of(cls, examples: Sequence[Example], places: Sequence[Sequence[int]]) -> Search:
        """From the `keys` and the places of the parts of examples: anchor, positive, negatives."""
        columns: dict[int, int] = {}
        documents: list[int] = []
        belongs: dict[int, dict[int, None]] = defaultdict(dict)
        targets: list[int] = []
        for example, own in zip(examples, places, strict=True):
            keys = example.inputs["keys"]
            for key, place in zip(keys[1:], own[1:], strict=True):
                if columns.setdefault(key, len(documents)) == len(documents):
                    documents.append(place)
            targets.append(columns[keys[1]])
            belongs[keys[0]][columns[keys[1]]] = None
        seen: set[int] = set()
        first = []
        for example in examples:
            first.append(example.inputs["keys"][0] not in seen)
            seen.add(example.inputs["keys"][0])
        relevant = [tuple(belongs[example.inputs["keys"][0]]) for example in examples]
        return cls([own[0] for own in places], documents, targets, relevant, first)

    def logits(self, vectors: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """Cosines of rows with all documents times 20, (N, C); vectors have length 1."""
        return SCALE * vectors[self.anchors[rows]] @ vectors[self.documents].T

    def losses(self, logits: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """Cross-entropy of each row's positive among the documents, (N,), without what else belongs to its anchor."""
        import torch

        targets, relevant = self.targets[rows], self.relevant[rows]
        others = [(row, col) for row, cols in enumerate(relevant) for col in cols if col != targets[row]]
        if others:
            places = torch.tensor(others, device=logits.device).T
            mask = torch.zeros_like(logits, dtype=torch.bool)
            mask[places[0], places[1]] = True
            logits = logits.masked_fill(mask, -torch.inf)
        wanted = torch.tensor(targets, device=logits.device)
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")

    def scores(self, vectors: torch.Tensor) -> Scores:
        """Losses, and the ranks of all that belongs to each anchor; documents that are as close count as closer."""
        import numpy as np

        losses: list[float] = []
        ranks: list[np.ndarray] = []
        for start in range(0, len(self.anchors), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            logits = self.logits(vectors, rows)
            losses += self.losses(logits, rows).tolist()
            for line, relevant, first in zip(logits, self.relevant[rows], self.first[rows], strict=True):
                own = line[list(relevant)]
                found = (line[None, :] >= own[:, None]).sum(-1) if first else own[:0].long()
                ranks.append(np.sort(found.cpu().numpy().astype(np.int64)))
        return rank_scores(ranks, np.array(losses))

    @property
    def setting(self) -> str:
        """How many look for what among how many, in a line."""
        queries = sum(self.first)
        return f"{queries:,} queries, each among the same {len(self.documents):,} documents"


def rank_scores(ranks: Sequence[np.ndarray], losses: np.ndarray) -> Scores:
    """Scores of rows from the ranks of what belongs to each."""
    import numpy as np

    best = ragged([np.arange(1, len(own) + 1) for own in ranks])
    return Scores(best, ragged(ranks), None, losses, np.ones(len(losses), dtype=np.int64), "ranks")


def order_losses(similarities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """CoSENT: how far pairs of rows are from the order of their targets, log(1 + Σ exp(20 (cos_low - cos_high))) over
    all pairs of rows of which one has a lower target (Su 2022, kexue.fm/archives/8847); (N,), the same for every row.

    It needs no scale of the targets: only their order counts, as in Spearman's correlation.
    """
    import torch

    scaled = SCALE * similarities
    wrong = scaled[:, None] - scaled[None, :]
    wrong = wrong.masked_fill(targets[:, None] >= targets[None, :], -torch.inf).flatten()
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), 0).expand(len(targets))


def own_order_losses(similarities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same sum over the pairs that a row is part of, (N,): what each row has to do with it."""
    import torch

    scaled = SCALE * similarities
    lower = (targets[:, None] - targets[None, :]).sign()
    wrong = (lower * (scaled[None, :] - scaled[:, None])).masked_fill(lower == 0, -torch.inf)
    return torch.logsumexp(torch.cat([wrong.new_zeros(len(targets), 1), wrong], 1), 1)


# --- metrics ---------------------------------------------------------------------------------------------------------


def _of_queries(scores: Scores, value: Any) -> np.ndarray:
    """Of the first row of each query a value of its ranks and 1, of others nothing: queries are drawn, not rows."""
    import numpy as np

    assert scores.predictions is not None
    return np.array([(value(ranks), 1.0) if len(ranks) else (0.0, 0.0) for ranks in scores.predictions])


def _gain(ranks: np.ndarray) -> float:
    import numpy as np

    return float((1 / np.log2(ranks[ranks <= CUT] + 1)).sum())


def ndcg(ranks: np.ndarray) -> float:
    """nDCG@10 with relevance 0 or 1, from the ranks of what belongs to a query (Järvelin & Kekäläinen 2002)."""
    import numpy as np

    return _gain(ranks) / _gain(np.arange(1, len(ranks) + 1))


def _metric(name: str, about: str, hub_name: str, value: Any) -> RowMetric:
    kinds: frozenset[LabelKind] = frozenset({"ranks"})
    return RowMetric(
        name, about, "classes", True, lambda scores: _of_queries(scores, value), mean, kinds, True, hub_name=hub_name
    )


METRICS = (
    _metric("ndcg_at_10", "nDCG of the first ten documents, the mean over queries", "ndcg", ndcg),
    _metric(
        "mrr_at_10",
        "1 / rank of the first right document among ten, else 0, the mean over queries",
        "mrr",
        lambda ranks: float(1 / ranks.min()) if ranks.min() <= CUT else 0.0,
    ),
    _metric(
        "recall_at_10",
        "share of a query's right documents among the first ten, the mean over queries",
        "recall",
        lambda ranks: float((ranks <= CUT).mean()),
    ),
)
