"""All pairs of rows that are alike, by their words or by vectors: an exact join, not a sketch.

n words with d edits keep at least n - 2 - 3d of their n - 2 word triples, so two rows that are alike share one of their
rarest triples, and an index of these finds every such pair (for a low similarity pairs of words or words, not triples).
rapidfuzz then measures each candidate.

Chosen over MinHash, measured with benchmarks/data_quality.py on 25,000 short texts with 2,000 planted copies (up to
15 % of the words edited): a sketch alone finds 96 % (datasketch 2.0, 128 permutations) or 99 % (rensa 0.5) of the pairs
with 2 to 6 % wrong ones; with enough bands to miss none, and this measure to confirm, datasketch takes 5.4 s, rensa
1.0 s, the join 0.8 s, and on 100,000 rows rensa 9 s, the join 6 s. The join needs no tuning and misses none by proof.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# One word of five is a fifth of a text and may well be its meaning, so shorter rows are compared exactly.
SHORTEST_TOKENS = 6
# Postings beyond this are triples of boilerplate; following them all would be quadratic in the rows.
POSTINGS_LIMIT = 1_000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates: `first` comes before `second` in the order they were given."""

    first: int
    second: int
    similarity: float


class VectorJoin:
    """All pairs of vectors of length 1 whose product is at least `nearness`; every pair is looked at, in blocks.

    Of 100,000 rows with 256 numbers each this takes about a minute on two cores.
    """

    BLOCK = 2_048
    skipped_postings = 0

    def __init__(self, vectors: Sequence[Any], nearness: float) -> None:
        import numpy as np

        self.nearness = nearness
        self._vectors = np.stack(vectors) if len(vectors) else np.zeros((0, 1), dtype=np.float32)

    def greedy(self, compete: Callable[[int, int], bool], progress: Progress | None = None) -> Iterator[Pair]:
        """As `Join.greedy`."""
        out: set[int] = set()
        for i, alike in self._alike(progress):
            pairs = sorted(alike, key=lambda pair: (-pair.similarity, pair.first))
            best = next((pair for pair in pairs if pair.first not in out and compete(i, pair.first)), None)
            if best is not None:
                out.add(i)
                yield best

    def pairs(self, progress: Progress | None = None, among: int | None = None) -> Iterator[Pair]:
        """As `Join.pairs`."""
        for _, alike in self._alike(progress):
            yield from (pair for pair in alike if among is None or pair.first < among)

    def _alike(self, progress: Progress | None) -> Iterator[tuple[int, list[Pair]]]:
        import numpy as np

        total = len(self._vectors)
        for start in range(0, total, self.BLOCK):
            if progress is not None and start:
                progress(f"comparing rows {start:,} of {total:,}")
            block = self._vectors[start : start + self.BLOCK]
            found: dict[int, list[Pair]] = defaultdict(list)
            for first in range(0, start + len(block), self.BLOCK):
                products = block @ self._vectors[first : first + self.BLOCK].T
                for i, j in zip(*np.nonzero(products >= self.nearness), strict=True):
                    if first + j < start + i:
                        found[start + int(i)].append(Pair(first + int(j), start + int(i), float(products[i, j])))
            yield from ((i, found[i]) for i in sorted(found))


class Join:
    """All pairs of texts whose words are alike, found without comparing every pair.

    Args:
        texts: The words of each text.
        similarity: The least similarity of a pair, in (0, 1].
    """

    def __init__(self, texts: Sequence[Sequence[str]], similarity: float) -> None:
        self.similarity = similarity
        self._width = _width(similarity)
        self.skipped_postings = 0
        vocabulary: dict[str, int] = {}
        self._words = [tuple(vocabulary.setdefault(word, len(vocabulary)) for word in text) for text in texts]
        # One character a word, so that rapidfuzz compares words at the speed of characters.
        self._coded = ["".join(chr(0x10000 + word % 0x100000) for word in words) for words in self._words]
        self._rare, self._need = self._rarest(len(vocabulary))

    def greedy(self, compete: Callable[[int, int], bool], progress: Progress | None = None) -> Iterator[Pair]:
        """Walks the texts in order; yields each one that is like an earlier one that stayed, with the most similar."""
        for i, candidates, post in self._walk(progress):
            alike = self._alike(i, candidates)
            best = next((pair for pair in alike if compete(i, pair.first)), None)
            if best is None:
                post()
            else:
                yield best

    def pairs(self, progress: Progress | None = None, among: int | None = None) -> Iterator[Pair]:
        """Every pair; with `among`, only pairs whose first text is one of the first `among`."""
        for i, candidates, post in self._walk(progress):
            yield from self._alike(i, candidates)
            if among is None or i < among:
                post()

    def measure(self, first: int, second: int) -> float:
        """The similarity of two texts; 0 when it is below the limit."""
        from rapidfuzz.distance import Levenshtein

        a, b = self._coded[first], self._coded[second]
        if a == b:
            return 1.0
        if min(len(a), len(b)) < SHORTEST_TOKENS:
            return 0.0
        return float(Levenshtein.normalized_similarity(a, b, score_cutoff=self.similarity - 1e-9))

    def _alike(self, i: int, candidates: Sequence[int]) -> list[Pair]:
        """The candidates that are alike, most similar first, the earlier one first among equals."""
        if not candidates:
            return []
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import extract

        same = [Pair(j, i, 1.0) for j in candidates if self._coded[j] == self._coded[i]]
        if len(self._coded[i]) < SHORTEST_TOKENS:
            return same
        found = extract(
            self._coded[i],
            {j: self._coded[j] for j in candidates if len(self._coded[j]) >= SHORTEST_TOKENS},
            scorer=Levenshtein.normalized_similarity,
            score_cutoff=self.similarity - 1e-9,
            limit=None,
        )
        return [Pair(j, i, float(value)) for _, value, j in sorted(found, key=lambda each: (-each[1], each[2]))]

    def _walk(self, progress: Progress | None) -> Iterator[tuple[int, list[int], Callable[[], None]]]:
        """Per text: its number, earlier posted texts that may be like it, and how to post it."""
        postings: dict[int, list[int]] = {}
        same: dict[str, list[int]] = {}
        total = len(self._words)
        for i, (words, rare) in enumerate(zip(self._coded, self._rare, strict=True)):
            if progress is not None and i % 5_000 == 0 and i:
                progress(f"comparing rows {i:,} of {total:,}")
            shared: Counter[int] = Counter()
            need = self._need[i]
            for shingle in rare:
                found = postings.get(shingle)
                if found is None:
                    continue
                if len(found) >= POSTINGS_LIMIT:
                    self.skipped_postings += 1
                    need -= 1
                    continue
                shared.update(found)
            candidates = [j for j, count in shared.items() if count >= min(need, self._need[j])]
            candidates = list(dict.fromkeys([*same.get(words, ()), *candidates]))

            def post(i: int = i, words: str = words, rare: Sequence[int] = rare) -> None:
                same.setdefault(words, []).append(i)
                for shingle in rare:
                    where = postings.setdefault(shingle, [])
                    if len(where) < POSTINGS_LIMIT:
                        where.append(i)

            yield i, candidates, post

    def _rarest(self, vocabulary: int) -> tuple[list[list[int]], list[int]]:
        """Per text its rarest shingles, and how many of them any text that is like it must share."""
        import numpy as np

        lengths = np.fromiter(map(len, self._words), dtype=np.int64, count=len(self._words))
        flat = np.fromiter((word for words in self._words for word in words), dtype=np.uint64, count=lengths.sum())
        width = self._width
        if len(flat) < width:
            return [[] for _ in self._words], [1] * len(self._words)
        # Word numbers side by side in 64 bits; mixed first when the vocabulary is too large for 21 bits each.
        mixed = flat * np.uint64(0x9E3779B97F4A7C15) if vocabulary >= 1 << 21 else flat
        keys = mixed[: len(flat) - width + 1].copy()
        for offset in range(1, width):
            keys = (keys << np.uint64(21)) ^ (keys >> np.uint64(43)) ^ mixed[offset : len(flat) - width + 1 + offset]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        frequency = counts[inverse]
        prefixes = {length: self._prefix(length) for length in np.unique(lengths).tolist() if length >= SHORTEST_TOKENS}
        rare: list[list[int]] = []
        need: list[int] = []
        for end, length in zip(np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
            if length < SHORTEST_TOKENS:
                rare.append([])
                need.append(1)
                continue
            first, last = end - length, end - width + 1
            own = inverse[first:last]
            count, least = prefixes[length]
            rare.append(_numbered(own[np.lexsort((own, frequency[first:last]))[:count]].tolist(), len(counts)))
            need.append(least)
        return rare, need

    def _prefix(self, length: int) -> tuple[int, int]:
        """How many of a text's rarest shingles to index, and how many of these a text that is like it shares.

        Of S shingles of which c are shared, the rarest S - c + 1 hold a shared one, and the rarest S - c + k hold k.
        """
        shingles = length - self._width + 1
        longest = int(length / self.similarity + 1e-9)
        shared = min(_shared(longer, self._width, self.similarity) for longer in range(length, longest + 1))
        shared = max(shared, 1)
        least = min(shared, 2 + shingles // 12)
        return shingles - shared + least, least


def _numbered(shingles: list[int], count: int) -> list[int]:
    """Tells the second and later occurrences of a shingle from the first, so that occurrences can be counted."""
    if len(set(shingles)) == len(shingles):
        return shingles
    seen: Counter[int] = Counter()
    numbered = []
    for shingle in shingles:
        numbered.append(shingle + count * seen[shingle])
        seen[shingle] += 1
    return numbered


def _shared(length: int, width: int, similarity: float) -> int:
    """Shingles that two texts share at least, when the longer has `length` words and they are alike."""
    return length - width + 1 - width * int((1 - similarity) * length + 1e-9)


def _width(similarity: float) -> int:
    """The widest shingle, of at most three words, with which texts that are alike always share one."""
    for width in (3, 2):
        if all(_shared(length, width, similarity) >= 1 for length in range(SHORTEST_TOKENS, 200)):
            return width
    return 1
