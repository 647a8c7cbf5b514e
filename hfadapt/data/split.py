"""Makes train, validation and test: seeded, stratified by label, groups of alike rows kept together.

The order in which rows are drawn is a hash of the seed and the row's own text, so it is the same on every machine and
a row keeps its place when others are added.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from hfadapt.core.errors import DataError, Problem
from hfadapt.core.hashing import stable_hash
from hfadapt.data.labels import numeral, some
from hfadapt.data.rows import SPLITS, Ledger, Row, fold
from hfadapt.recipe.schema import Data


def assign(rows: Sequence[Row], groups: Sequence[int], settings: Data, given: frozenset[str], place: str) -> None:
    """Sets `split` on every row that was not given in one.

    Args:
        rows: The rows of one domain.
        groups: A group number per row; a group is never divided.
        settings: Shares or numbers of rows for validation and test, and the seed.
        given: Splits that came with the data and are not made here.
        place: The domain, for messages.

    Raises:
        DataError: there are too few rows for the splits asked for.
    """
    members: dict[int, list[Row]] = defaultdict(list)
    for row, group in zip(rows, groups, strict=True):
        members[group].append(row)
    free: dict[int, list[Row]] = {}
    for group, together in members.items():
        fixed = next((split for split in ("test", "validation") if any(row.split == split for row in together)), None)
        loose = [row for row in together if not row.split]
        if fixed is None:
            free[group] = loose
        for row in loose if fixed is not None else ():
            row.split = fixed or ""
    total = sum(map(len, free.values()))
    wanted = {
        split: _rows_wanted(getattr(settings, split), total) if split not in given else 0
        for split in ("test", "validation")
    }
    short = wanted["test"] + wanted["validation"] >= total
    if short or total < 1:
        raise DataError(
            "there are too few rows for the splits",
            place=place,
            got=f"{total:,} rows for test {wanted['test']:,} and validation {wanted['validation']:,}",
            fix="give more data, or smaller data.test and data.validation",
        )
    strata: dict[str, list[list[Row]]] = defaultdict(list)
    for together in free.values():
        strata[_stratum(together)].append(together)
    for stratum in strata.values():
        stratum.sort(key=lambda together: (stable_hash(settings.seed, fold(together[0].text)), together[0].place))
        # Drawn from the front, so that what is left holds every class.
        stratum[:] = _bringing_classes(stratum[::-1])[::-1]
    for split in ("test", "validation"):
        if wanted[split]:
            _draw(strata, split, wanted[split])
            if any(row.group for row in rows) and not any(row.split == split for row in rows):
                _draw_smallest(strata, split, place)
    for row in rows:
        row.split = row.split or "train"


def _bringing_classes(groups: Sequence[list[Row]]) -> list[list[Row]]:
    """Groups in their order, but first those with a class that no earlier one has: a few that hold every class.

    Rows of one class each keep their order: strata see to their classes.
    """
    seen: set[str] = set()
    first: list[list[Row]] = []
    rest: list[list[Row]] = []
    for together in groups:
        classes = {name for row in together for name in row.several or ()}
        (rest if classes <= seen else first).append(together)
        seen |= classes
    return [*first, *rest]


def _stratum(together: Sequence[Row]) -> str:
    return Counter(row.stratum for row in together).most_common(1)[0][0]


def _rows_wanted(asked: float, total: int) -> int:
    if asked >= 1:
        return int(asked)
    return max(1, round(asked * total)) if total >= 3 else round(asked * total)


def _draw(strata: dict[str, list[list[Row]]], split: str, wanted: int) -> None:
    """Takes about `wanted` rows in whole groups, from each stratum its share; the last group of a stratum stays."""
    sizes = {name: sum(map(len, stratum)) for name, stratum in strata.items()}
    quotas = shares(sizes, wanted)
    left = 0
    for name in sorted(strata, key=lambda name: (sizes[name], name)):
        quota = quotas[name] + left
        taken = 0
        rest: list[list[Row]] = []
        stratum = strata[name]
        for number, together in enumerate(stratum):
            last = number == len(stratum) - 1 and not rest
            if taken + len(together) <= quota and not last:
                taken += len(together)
                for row in together:
                    row.split = split
            else:
                rest.append(together)
        strata[name] = rest
        left = quota - taken


def _draw_smallest(strata: dict[str, list[list[Row]]], split: str, place: str) -> None:
    """Where every group that the recipe names is larger than a split was to be: the smallest becomes the split.

    Raises:
        DataError: none would be left to train on.
    """
    left = sorted((len(together), i, name) for name, own in strata.items() for i, together in enumerate(own))
    if len(left) < 2:
        raise DataError(
            f"there are too few groups for a {split} split",
            place=place,
            got=f"{len(left)} of rows that must stay together",
            allowed="one for each of train, validation and test",
            fix=f"give {split} rows of their own (domains.NAME.{split}), or name a smaller group in columns.group",
        )
    _, i, name = left[0]
    for row in strata[name].pop(i):
        row.split = split


def shares(sizes: dict[str, int], wanted: int) -> dict[str, int]:
    """Divides `wanted` in proportion to sizes, by largest remainder; the parts add up to it exactly."""
    total = sum(sizes.values())
    if total == 0:
        return dict.fromkeys(sizes, 0)
    exact = {name: wanted * size / total for name, size in sizes.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (parts[name] - exact[name], name))
    for name in by_remainder[: wanted - sum(parts.values())]:
        parts[name] += 1
    return parts


def limit_train(rows: Sequence[Row], settings: Data, weights: dict[str, float], ledger: Ledger) -> list[Row]:
    """Thins sources by weight and caps the training rows; both keep the share of each label.

    The source with the largest weight keeps all its rows, one with half that weight half of them.
    """
    most = max(weights.values(), default=1.0)
    kept = list(rows)
    for source, weight in weights.items():
        own = [row for row in kept if row.split == "train" and row.source == source]
        if weight < most and own:
            kept = _thin(kept, own, max(1, round(len(own) * weight / most)), settings.seed, "source-weight", ledger)
    train = [row for row in kept if row.split == "train"]
    if settings.train_rows is not None and len(train) > settings.train_rows:
        kept = _thin(kept, train, settings.train_rows, settings.seed, "over-train-rows", ledger)
    return kept


def _at_least_one(quotas: dict[str, int]) -> dict[str, int]:
    """Gives every class one row where there are enough, at the cost of the largest."""
    if sum(quotas.values()) < len(quotas):
        return quotas
    changed = dict(quotas)
    for name in sorted(changed):
        if changed[name] == 0:
            changed[max(changed, key=lambda other: (changed[other], other))] -= 1
            changed[name] = 1
    return changed


def _thin(rows: list[Row], own: list[Row], wanted: int, seed: int, reason: str, ledger: Ledger) -> list[Row]:
    strata: dict[str, list[Row]] = defaultdict(list)
    for row in own:
        strata[row.stratum].append(row)
    quotas = _at_least_one(shares({name: len(stratum) for name, stratum in strata.items()}, wanted))
    out: set[int] = set()
    for name, stratum in strata.items():
        stratum.sort(key=lambda row: (stable_hash(seed, "train", fold(row.text)), row.place))
        ordered = _bringing_classes([[row] for row in stratum])
        out.update(id(row) for together in ordered[quotas[name] :] for row in together)
    for row in rows:
        if id(row) in out:
            ledger.drop(row, reason)
    return [row for row in rows if id(row) not in out]


def check_left(trained: int, given: Mapping[str, str], duplicates: int, place: str) -> None:
    """Refuses training rows that are all held out as well.

    Args:
        trained: Rows that are left for training and what is made of them.
        given: Source of each split that came with the data.
        duplicates: Rows that were dropped since they stand elsewhere.
        place: The domain, for messages.

    Raises:
        DataError: none is left.
    """
    if not trained and given and duplicates:
        held = " and ".join(given)
        raise DataError(
            "no training rows are left",
            place=place,
            got=f"{duplicates:,} duplicates: all training rows are also in {' and '.join(given.values())} ({held})",
            fix=f"give other rows for {held}, or leave {held} out so that hfadapt makes a split of the training rows",
        )


def check_splits(rows: Sequence[Row], labels: Sequence[str], place: str) -> None:
    """Refuses splits of rows that cannot be trained or scored. Raises DataError as `check_counts`."""
    classes = {split: Counter(name for row in rows if row.split == split for name in row.classes) for split in SPLITS}
    sizes = {split: sum(row.split == split for row in rows) for split in SPLITS}

    def having(names: Sequence[str]) -> list[str]:
        return [f"{row.split}: {row.where}" for row in rows if set(row.classes) & set(names)]

    check_counts(sizes, classes if labels else {}, place, having)


def check_counts(
    sizes: Mapping[str, int],
    classes: Mapping[str, Mapping[str, int]],
    place: str,
    having: Callable[[Sequence[str]], list[str]],
) -> None:
    """Refuses splits that cannot be trained or scored.

    Args:
        sizes: Rows of each split.
        classes: Rows of each class in each split; empty where rows have no classes.
        place: The domain, for messages.
        having: Where rows of these classes are, the split first.

    Raises:
        DataError: a split is empty, there is one class only, or a class is missing from training; all at once.
    """
    problems = [
        Problem(
            f"the {split} split is empty",
            place,
            got=", ".join(f"{name} {count:,}" for name, count in sizes.items()),
            fix="give more data, or change data.validation and data.test",
        )
        for split, count in sizes.items()
        if not count
    ]
    if classes:
        trained = classes["train"]
        found = [*dict.fromkeys(name for split in SPLITS for name in classes[split])]
        if len(found) < 2:
            problems.append(
                Problem(
                    "there is one class only",
                    place,
                    got=f"{sum(sizes.values()):,} rows, all {next(iter(found), None)!r}",
                    allowed="two or more classes",
                    fix="check the label column, or add rows of other classes",
                )
            )
        unseen = [label for label in found if label not in trained]
        if unseen and len(found) > 1:
            places = having(unseen)
            fix = "correct these labels, or add training rows of these classes"
            if unseen == ["-1"]:
                split = places[0].partition(":")[0]
                fix = f"-1 stands for 'no label' in hidden test sets: leave {split} out, so that hfadapt makes one"
            elif numeral(unseen) != numeral(trained):
                fix = "list the names in the domain's labels, in the order in which the numbers count them from 0"
            problems.append(
                Problem(
                    "classes are missing from the training rows",
                    place,
                    got=f"{some(map(repr, unseen))} only in {'; '.join(places[:5])}",
                    allowed=some(sorted(str(label) for label in trained)),
                    fix=fix,
                )
            )
    if problems:
        raise DataError("the splits cannot be used", problems=problems)
