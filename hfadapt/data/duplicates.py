"""Removes repeated rows: exact ones, near ones, and texts whose labels contradict each other.

Two rows are near-duplicates when at most `1 - similarity` of their words were edited: similarity = 1 - Levenshtein
distance over words / words of the longer text. `joins.py` finds every such pair.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from hfadapt.core import registry
from hfadapt.data.joins import Join, Progress, VectorJoin
from hfadapt.data.labels import some
from hfadapt.data.rows import PRIORITY, Ledger, Row, stable_hash, text_key, tokens
from hfadapt.files.places import name_rows
from hfadapt.recipe.schema import Data, Dedupe
from hfadapt.records.stages import Finding

COMMON_PROMPT = 0.1
CONTAINED_TOKENS = 8


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

    def alike(i: int, j: int) -> bool:
        return compete(i, j) and ask_alike(order[i][1], order[j][1], settings.similarity)

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
        for pair in join.greedy(lambda a, b: alike(left[a], left[b]), progress):
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


def ask_alike(row: Row, twin: Row, similarity: float) -> bool:
    """Whether two rows that are alike as a whole are so column by column.

    Questions about one text are alike for the most part, and ask for different things. Where a word of the question is
    another one, what is answered freely tells.
    """
    if len(row.asked) < 2 or len(row.asked) != len(twin.asked):
        return True

    def measured(own: Sequence[str], others: Sequence[str]) -> list[float]:
        pairs = zip(own, others, strict=False)
        return [Join([tokens(one), tokens(other)], similarity).measure(0, 1) for one, other in pairs]

    asked = measured(row.asked, twin.asked)
    if not all(asked) or row.label is not None or all(each == 1 for each in asked):
        return all(asked)
    return all(measured(*(registry.schema(each.form).answers(each.columns) for each in (row, twin))))


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
            inside = [number for number, count in found.items() if count >= settings.similarity * sizes[number]]
            inside = [number for number in inside if _asks_inside(held[number], row)]
            if inside:
                worst = max(inside, key=lambda number: (found[number] / sizes[number], -number))
                ledger.drop(row, "contains-held-out-row", held[worst], found[worst] / sizes[worst])
                continue
        kept.append(row)
    ledger.steps["contamination"] = {"held_out_rows": len(held), "training_rows_dropped": len(rows) - len(kept)}
    return kept


def _asks_inside(held: Row, row: Row) -> bool:
    """Whether a training row that holds most of a held-out one has each of its columns: the text that both ask about
    does not count."""
    words = " ".join(tokens(row.text))
    return all(f" {' '.join(tokens(each))} " in f" {words} " for each in held.asked if each != _asked_about(held))


def windows(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All runs of so many words that what shares one is no turn of phrase."""
    return (tuple(words[at : at + CONTAINED_TOKENS]) for at in range(len(words) - CONTAINED_TOKENS + 1))


def has_own_prompts(rows: Sequence[Row]) -> bool:
    """Whether no prompt makes up a tenth of the rows, as an instruction does."""
    prompts = Counter(text_key(row.prompt or row.text) for row in rows)
    return max(prompts.values(), default=0) <= max(2, COMMON_PROMPT * len(rows))


def _asked_about(row: Row) -> str:
    """The text that a row asks about: the longest of its columns, where that is no turn of phrase; else ''."""
    longest = max(row.asked, key=len, default="")
    return longest if len(tokens(longest)) >= CONTAINED_TOKENS else ""


def groups(rows: Sequence[Row], settings: Data, progress: Progress | None = None) -> list[int]:
    """A group number per row; rows of one group must stay in one split.

    One group are rows of one `Row.group`, with the same text or prompt, and near-duplicates that were not removed.
    Rows that ask about one text, which stands in a column of its own, are one, too. What makes up a tenth of all rows,
    a prompt or what rows share beside it, is an instruction rather than an input, and is left out of account.
    """
    by_prompt = has_own_prompts(rows)
    shared = [[text_key(text) for text in (*row.shared, _asked_about(row)) if text] for row in rows]
    common = Counter(key for keys in shared for key in keys)
    most = max(2, COMMON_PROMPT * len(rows))
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
        keys |= {stable_hash("shared", key) for key in shared[i] if common[key] <= most}
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
