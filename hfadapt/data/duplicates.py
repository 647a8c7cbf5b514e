"""Removes repeated rows: exact ones, near ones, and texts whose labels contradict each other.

Two rows are near-duplicates when at most `1 - similarity` of their words were edited: similarity = 1 - Levenshtein
distance over words / words of the longer text. Candidates come from an exact join, not from a sketch: n words with d
edits keep at least n - 2 - 3d of their n - 2 word triples, so two rows that are alike share one of their rarest
triples, and an index of these finds every such pair (for a low similarity pairs of words or words, not triples).
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
from statistics import fmean
from typing import Any

from hfadapt.core import registry
from hfadapt.data.labels import some
from hfadapt.data.rows import PRIORITY, Ledger, Row, stable_hash, text_key, tokens
from hfadapt.files.places import name_rows
from hfadapt.recipe.schema import Data, Dedupe
from hfadapt.records.stages import Finding

# One word of five is a fifth of a text and may well be its meaning, so shorter rows are compared exactly.
SHORTEST_TOKENS = 6
# Postings beyond this are triples of boilerplate; following them all would be quadratic in the rows.
POSTINGS_LIMIT = 1_000
COMMON_PROMPT = 0.1
CONTAINED_TOKENS = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates: `first` comes before `second` in the order they were given."""

    first: int
    second: int
    similarity: float


def average(rows: Sequence[Row], ledger: Ledger) -> tuple[list[Row], list[Finding]]:
    """One row for each text whose numbers differ by no more than the schema tolerates, with their mean.

    Of rows in given splits only those of the most important one count: the mean of a test row knows no training row.
    """
    numbers = _numbers(rows)
    most = registry.schema(rows[0].form).tolerance(numbers) if numbers else 0.0
    texts: dict[int, list[Row]] = defaultdict(list)
    for row in rows if most > 0 else ():
        if row.label is not None:
            texts[text_key(row.text)].append(row)
    out: set[int] = set()
    averaged: list[Row] = []
    for same in texts.values():
        values = _numbers(same)
        if not 0 < max(values) - min(values) <= most:
            continue
        first = min(same, key=lambda row: PRIORITY.get(row.split, 2))
        first.columns["label"] = fmean(_numbers([row for row in same if row.split == first.split]))
        first.label = registry.schema(first.form).label(first.columns)
        averaged.append(first)
        for row in same:
            if row is not first:
                ledger.drop(row, "averaged", first, 1.0, f" has the text of {first.where}")
                out.add(id(row))
    if not averaged:
        return list(rows), []
    what = (
        f"{len(averaged):,} texts with several numbers, no further apart than all numbers vary ({most:.3g}), are one "
    )
    what += f"row each with the mean: {name_rows(row.where for row in averaged)}"
    fix = "nothing; or set data.conflicts: keep to learn each number"
    return [row for row in rows if id(row) not in out], [
        Finding(code="numbers-averaged", level="soft", message=what, fix=fix)
    ]


def _numbers(rows: Sequence[Row]) -> list[float]:
    """The labels of rows that are labelled with numbers."""
    if not rows or registry.schema(rows[0].form).label_kind != "number":
        return []
    return [float(row.columns["label"]) for row in rows if row.label is not None]


def resolve_conflicts(rows: Sequence[Row], policy: str, ledger: Ledger) -> list[Row]:
    """Same text, different labels: drops all of them, keeps the majority label's rows, or keeps all.

    Test and validation rows that were given count like the others: a contradiction cannot be scored either.
    """
    labels: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.label is not None:
            labels[text_key(row.text)][row.label] += 1
    contradicted = {key: counter for key, counter in labels.items() if len(counter) > 1}
    affected = sum(sum(counter.values()) for counter in contradicted.values())
    ledger.steps["conflicts"] = {"policy": policy, "texts": len(contradicted), "rows": affected}
    if not contradicted or policy == "keep":
        return list(rows)
    kept: list[Row] = []
    firsts: dict[int, Row] = {}
    for row in rows:
        counter = contradicted.get(text_key(row.text)) if row.label is not None else None
        if counter is None:
            kept.append(row)
            continue
        (best, most), (_, next_most) = counter.most_common(2)
        if policy == "majority" and most > next_most and row.label == best:
            kept.append(row)
            continue
        # The row it contradicts is named, so that both can be looked at.
        twin = firsts.setdefault(text_key(row.text), row)
        file = f", {row.columns['file']}," if row.columns.get("file") else ""
        also = some([label for label in counter if label != row.label], 3)
        detail = f"{file} has the label {row.label}, and others of the same content have {also}"
        ledger.drop(row, "label-conflict", None if twin is row else twin, None if twin is row else 1.0, detail)
    return kept


def drop_duplicates(
    domains: dict[str, list[Row]], settings: Dedupe, ledgers: dict[str, Ledger], progress: Progress | None = None
) -> dict[str, list[Row]]:
    """Drops exact and near-duplicates within and, when asked, across domains and given splits.

    Given test rows win over given validation rows, these over all others; then the earlier domain and row wins.
    Rows of one source that two domains share do not compete with each other.
    """
    if not settings.across_domains and len(domains) > 1:
        parts = [drop_duplicates({name: rows}, settings, ledgers, progress) for name, rows in domains.items()]
        return {name: rows for part in parts for name, rows in part.items()}
    shared = _shared_sources(domains)
    order = [(name, row) for name, rows in domains.items() for row in rows]
    order.sort(key=lambda item: PRIORITY.get(item[1].split, 2))
    dropped: set[int] = set()
    found: dict[str, Counter[str]] = {name: Counter() for name in domains}

    def drop(i: int, j: int, reason: str, similarity: float) -> None:
        (name, row), (other, twin) = order[i], order[j]
        dropped.add(i)
        ledgers[name].drop(row, reason, twin, similarity)
        found[name][reason] += 1
        found[name]["of_other_domains"] += other != name
        found[name]["across_given_splits"] += row.split != twin.split
        found[name]["with_other_label"] += row.label != twin.label and reason == "near-duplicate"

    def compete(i: int, j: int) -> bool:
        (name, row), (other, twin) = order[i], order[j]
        return name == other or not (row.source in shared and row.source == twin.source)

    if settings.exact:
        seen: dict[tuple[int, str], list[int]] = defaultdict(list)
        for i, (_, row) in enumerate(order):
            same = seen[(text_key(row.text), row.label or "")]
            twin = next((j for j in same if compete(i, j)), None)
            if twin is None:
                same.append(i)
            else:
                drop(i, twin, "exact-duplicate", 1.0)
    skipped = 0
    if settings.near:
        left = [i for i in range(len(order)) if i not in dropped]
        join = joined([order[i][1] for i in left], settings.similarity)
        for pair in join.greedy(lambda a, b: compete(left[a], left[b]), progress):
            drop(left[pair.second], left[pair.first], "near-duplicate", pair.similarity)
        skipped = join.skipped_postings
    for name, counter in found.items():
        ledgers[name].steps["dedupe"] = {
            "similarity": settings.similarity,
            "exact_duplicates": counter["exact-duplicate"],
            "near_duplicates": counter["near-duplicate"],
            "of_other_domains": counter["of_other_domains"],
            "across_given_splits": counter["across_given_splits"],
            "near_duplicates_with_another_label": counter["with_other_label"],
            "frequent_phrases_skipped": skipped,
        }
    result: dict[str, list[Row]] = {name: [] for name in domains}
    kept = {id(row) for i, (_, row) in enumerate(order) if i not in dropped}
    for name, rows in domains.items():
        result[name] = [row for row in rows if id(row) in kept]
    return result


def _shared_sources(domains: dict[str, list[Row]]) -> set[str]:
    owners: dict[str, set[str]] = defaultdict(set)
    for name, rows in domains.items():
        for source in {row.source for row in rows}:
            owners[source].add(name)
    return {source for source, names in owners.items() if len(names) > 1}


def drop_contaminated(rows: Sequence[Row], settings: Dedupe, ledger: Ledger) -> list[Row]:
    """Drops training rows that hold a validation or test row inside them, such as a quotation of it.

    Held-out rows of fewer words than `CONTAINED_TOKENS` are not looked for: they are turns of phrase.
    """
    if rows and registry.schema(rows[0].form).media:
        return list(rows)
    held = [row for row in rows if row.split != "train"]
    spans: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    for number, row in enumerate(held):
        own = set(windows(tokens(row.text)))
        sizes.append(len(own))
        for window in own:
            spans[window].append(number)
    kept: list[Row] = []
    for row in rows:
        if row.split == "train":
            found = Counter(number for window in set(windows(tokens(row.text))) for number in spans.get(window, ()))
            worst = max(found, key=lambda number: (found[number] / sizes[number], -number), default=None)
            if worst is not None and found[worst] >= settings.similarity * sizes[worst]:
                ledger.drop(row, "contains-held-out-row", held[worst], found[worst] / sizes[worst])
                continue
        kept.append(row)
    ledger.steps["contamination"] = {"held_out_rows": len(held), "training_rows_dropped": len(rows) - len(kept)}
    return kept


def windows(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All runs of so many words that what shares one is no turn of phrase."""
    return (tuple(words[at : at + CONTAINED_TOKENS]) for at in range(len(words) - CONTAINED_TOKENS + 1))


def has_own_prompts(rows: Sequence[Row]) -> bool:
    """Whether no prompt makes up a tenth of the rows, as an instruction does."""
    prompts = Counter(text_key(row.prompt or row.text) for row in rows)
    return max(prompts.values(), default=0) <= max(2, COMMON_PROMPT * len(rows))


def groups(rows: Sequence[Row], settings: Data, progress: Progress | None = None) -> list[int]:
    """A group number per row; rows of one group must stay in one split.

    One group are rows of one `Row.group`, with the same text or prompt, and near-duplicates that were not removed.
    Where one prompt makes up a tenth of all rows it is an instruction rather than an input, and is left out of account;
    so is what rows share beside the prompt.
    """
    by_prompt = has_own_prompts(rows)
    shared = [[text_key(text) for text in row.shared] for row in rows]
    common = Counter(key for keys in shared for key in keys)
    by_shared = max(common.values(), default=0) <= max(2, COMMON_PROMPT * len(rows))
    parent = list(range(len(rows)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    firsts: dict[int, int] = {}
    for i, row in enumerate(rows):
        prompt = row.prompt or row.text
        keys = {text_key(row.text), text_key(prompt) if by_prompt else text_key(row.text)}
        # A text that is shown in one row and to be found in another is no reason to keep the two together.
        keys |= {stable_hash("shared", key) for key in shared[i]} if by_shared else set()
        keys |= {stable_hash("group", row.group)} if row.group else set()
        for key in keys:
            parent[find(i)] = find(firsts.setdefault(key, i))
    if not settings.dedupe.near:
        for pair in joined(rows, settings.dedupe.similarity).pairs(progress):
            parent[find(pair.second)] = find(pair.first)
    return [find(i) for i in range(len(rows))]


def joined(rows: Sequence[Row], similarity: float) -> Join | VectorJoin:
    """All pairs of rows that are alike: by their words, or by what their modality compares files by."""
    schema = registry.schema(rows[0].form) if rows else None
    if schema is not None and schema.media:
        kind = registry.modality(schema.modality)
        return VectorJoin([kind.vector(row.text) for row in rows], kind.nearness(similarity))
    return Join([tokens(row.text) for row in rows], similarity)


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
