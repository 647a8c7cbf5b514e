"""The texts that an adapter is adapted to before its task: repaired, each once, apart from held-out rows.

No text is like a validation or test row of any domain of the recipe: the same, nearly the same, a part of it, or with
it inside. Otherwise the evaluation would measure on rows whose texts were seen.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.core.hashing import stable_hash
from hfadapt.core.spec import write_text
from hfadapt.data import clean, duplicates, joins
from hfadapt.data.labels import Labels
from hfadapt.data.prepared import PreparedDomain
from hfadapt.data.reading import SourceReader, no_rows, workers
from hfadapt.data.rows import Ledger, Row, as_row, tokens
from hfadapt.data.sources import Opened, open_source
from hfadapt.data.split_files import read_split
from hfadapt.data.unreadable import check_unreadable
from hfadapt.files.places import Place
from hfadapt.recipe.pretrain import Pretrain, TextSource
from hfadapt.recipe.schema import Columns, Dedupe, Recipe, Source
from hfadapt.records.stages import DataRecord, SourceRecord, UnlabelledTexts
from hfadapt.run_folder import PRETRAIN, read_rows

FILE, DROPPED = "texts.parquet", "dropped.jsonl"
FORM = "text"
VALIDATION_SHARE, MOST_VALIDATION = 0.1, 256
"""Of the texts, held back to measure what was learned of them."""


@dataclass(frozen=True)
class Held:
    """Texts of validation and test rows, of all domains.

    Args:
        texts: What is compared with other rows.
    """

    texts: tuple[str, ...]

    @classmethod
    def of(cls, prepared: Mapping[str, PreparedDomain]) -> Held:
        """Of all domains."""
        found: dict[str, None] = {}
        for domain in prepared.values():
            words = registry.schema(domain.record.form).words
            found.update((words(row), None) for split in ("validation", "test") for row in domain.rows(split))
        return cls(tuple(found))


def opened(settings: Pretrain, recipe_folder: Path) -> tuple[list[Opened], list[Opened]]:
    """The sources of the domain's texts, and of general ones.

    Raises:
        DataError: there is no such file, sample or data set.
    """
    domain, general = (open_texts(part, recipe_folder) for part in (settings.sources, settings.general))
    return domain, general


def open_texts(sources: Sequence[TextSource], recipe_folder: Path) -> list[Opened]:
    """Sources of texts. Raises DataError as `opened`."""
    return [open_source(_as_source(each), recipe_folder) for each in sources]


def _as_source(text: TextSource) -> Source:
    fields = text.model_dump(exclude={"column"})
    return Source(**fields, columns=Columns(text=text.column))


def gather(
    recipe: Recipe,
    domain: str,
    cell_folder: Path,
    held: Held,
    recipe_folder: Path,
    say: Callable[[str], None] = lambda _: None,
) -> UnlabelledTexts:
    """Writes the texts of a domain into a cell, and what was left out.

    Args:
        domain: One for which the recipe asks for the adaptation; its rows are prepared.

    Raises:
        DataError: a source cannot be read, or no text is left.
    """
    settings = recipe.pretrain_of(domain)
    assert settings is not None
    ledger, place = Ledger(), f"domains.{domain}.pretrain"
    named, general = opened(settings, recipe_folder)
    rows, others = (_read(recipe, domain, part, ledger, place, say) for part in (named, general))
    if not named:
        rows = _own(cell_folder, domain)
    rows_in = len(rows) + len(others) + len(ledger.dropped)
    counts = Counter(row.source for row in [*rows, *others])
    # Training rows were looked at when they were prepared.
    rows = clean.drop_unusable(rows, recipe.data.clean, ledger, workers(recipe)) if named else rows
    others = clean.drop_unusable(others, recipe.data.clean, ledger, workers(recipe))
    say(f"{domain}: comparing {len(rows) + len(others):,} texts with {len(held.texts):,} held-out rows")
    every = apart([*rows, *others], held.texts, recipe.data.dedupe, ledger)
    every = duplicates.drop_duplicates({domain: every}, recipe.data.dedupe, {domain: ledger})[domain]
    is_general = set(map(id, others))
    texts = [row for row in every if id(row) not in is_general]
    if not texts:
        raise no_rows(place, rows_in, ledger.dropped)
    mixed = _mixed([row for row in every if id(row) in is_general], len(texts), settings.general_share, recipe)
    back = _held_back(texts, recipe.data.seed)
    folder = cell_folder / PRETRAIN
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / FILE, [*texts, *mixed], back)
    lines = (json.dumps(each.as_json(), ensure_ascii=False) + "\n" for each in ledger.dropped)
    write_text(folder / DROPPED, "".join(lines))
    return UnlabelledTexts(
        sources=tuple(
            SourceRecord(source=each.name, rows=counts[each.name], **each.about) for each in (*named, *general)
        ),
        own=not named,
        rows_in=rows_in,
        texts=len(texts) - len(back),
        general=len(mixed),
        validation=len(back),
        dropped=ledger.counts(),
    )


def apart(rows: Sequence[Row], held: Sequence[str], settings: Dedupe, ledger: Ledger) -> list[Row]:
    """Drops rows that are like a held-out text: nearly the same, a part of it, or with it inside them."""
    words = [tokens(text) for text in (*held, *(row.text for row in rows))]
    like: dict[int, tuple[str, float]] = {}
    for pair in joins.Join(words, settings.similarity).pairs(among=len(held)):
        if pair.second >= len(held):
            like.setdefault(pair.second - len(held), ("like-held-out-row", pair.similarity))
    spans: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes = []
    for number, own in enumerate(map(set, map(duplicates.windows, words[: len(held)]))):
        sizes.append(len(own))
        for window in own:
            spans[window].append(number)
    for number, own in enumerate(map(set, map(duplicates.windows, words[len(held) :]))):
        found = Counter(other for window in own for other in spans.get(window, ()))
        most = max((count / min(sizes[other], len(own)) for other, count in found.items()), default=0.0)
        if most >= settings.similarity:
            like.setdefault(number, ("shares-text-with-held-out-row", most))
    for number, (reason, similarity) in sorted(like.items()):
        ledger.drop(rows[number], reason, similarity=similarity)
    ledger.steps["apart"] = {"held_out_rows": len(held), "texts_dropped": len(like)}
    return [row for number, row in enumerate(rows) if number not in like]


def read_texts(cell_folder: Path, split: str) -> list[dict[str, Any]]:
    """The texts to learn from (`train`), or those held back (`validation`), with `source` and `row`."""
    return [row for row in read_rows(cell_folder / PRETRAIN / FILE) if row["split"] == split]


def _plain(recipe: Recipe, domain: str) -> Recipe:
    """The recipe without templates: a text is learned as it is."""
    changed = recipe.domains[domain].model_copy(update={"template": None, "labels": None})
    return recipe.model_copy(update={"template": None, "domains": {**recipe.domains, domain: changed}})


def _read(
    recipe: Recipe,
    domain: str,
    sources: Sequence[Opened],
    ledger: Ledger,
    place: str,
    say: Callable[[str], None],
) -> list[Row]:
    plain = _plain(recipe, domain)
    rows: list[Row] = []
    for source in sources:
        say(f"reading texts for {domain}: {source.name}")
        reader = SourceReader(plain, domain, source, frozenset({FORM}), Labels(None))
        before = len(rows)
        for item in reader:
            if isinstance(item, Row):
                rows.append(item)
            else:
                ledger.dropped.append(item)
        check_unreadable(source.split, reader.rows_in, reader.bad)
        if len(rows) == before:
            raise no_rows(f"{place}: {source.name}", reader.rows_in, reader.bad)
    return rows


def read_apart(
    recipe: Recipe,
    domain: str,
    sources: Sequence[Opened],
    held: Held,
    known: Sequence[Row],
    say: Callable[[str], None],
) -> tuple[list[Row], Ledger]:
    """The texts of the student's sources, each once and none like a held-out row, and what was left out.

    Args:
        known: Rows whose texts are learned anyway.

    Raises:
        DataError: a source cannot be read, or no text is left.
    """
    ledger, place = Ledger(), "student.texts"
    rows = _read(recipe, domain, sources, ledger, place, say)
    count = len(rows)
    rows = clean.drop_unusable(rows, recipe.data.clean, ledger, workers(recipe))
    say(f"{domain}: comparing {len(rows):,} texts with {len(held.texts):,} held-out rows")
    rows = apart(rows, held.texts, recipe.data.dedupe, ledger)
    rows = duplicates.drop_duplicates({domain: rows}, recipe.data.dedupe, {domain: ledger})[domain]
    twins = {row.text: row for row in known}
    for row in rows:
        if row.text in twins:
            ledger.drop(row, "exact-duplicate", twins[row.text], 1.0)
    rows = [row for row in rows if row.text not in twins]
    if not rows:
        raise no_rows(place, count, ledger.dropped)
    return rows, ledger


def _own(cell_folder: Path, domain: str) -> list[Row]:
    """The texts of the domain's own training rows."""
    words = registry.schema(DataRecord.read(cell_folder / DataRecord.FILE).form).words
    found = [
        as_row({FORM: text, **Place.of(row).columns}, FORM)
        for row in read_split(cell_folder, "train")
        if (text := words(row)).strip()
    ]
    if not found:
        raise DataError(
            "the training rows hold no text", place=f"domains.{domain}", fix="name texts in pretrain.sources"
        )
    return found


def _mixed(general: Sequence[Row], texts: int, share: float, recipe: Recipe) -> list[Row]:
    """So many of the general texts that they are a share of all, drawn by the seed."""
    order = sorted(general, key=lambda row: (stable_hash(recipe.data.seed, *row.place), row.place))
    return order[: round(texts * share / (1 - share))]


def _held_back(texts: Sequence[Row], seed: int) -> set[tuple[str, int]]:
    count = min(MOST_VALIDATION, int(len(texts) * VALIDATION_SHARE))
    order = sorted(texts, key=lambda row: (stable_hash(seed, "held back", *row.place), row.place))
    return {row.place for row in order[:count]}


def _write(path: Path, rows: Sequence[Row], back: set[tuple[str, int]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    lines = [
        {
            FORM: str(row.columns[FORM]),
            "source": row.source,
            "row": row.row,
            "split": "validation" if row.place in back else "train",
        }
        for row in rows
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(pa.Table.from_pylist(lines), temporary, compression="zstd")
    temporary.replace(path)
