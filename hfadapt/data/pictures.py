"""Rows that are files, as small pictures: some of each class, pairs of which one was dropped, and single rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError
from hfadapt.core.show import Block, Sheet, Text, Tile, show_count
from hfadapt.core.spec import reading
from hfadapt.data.sources import local_path, numbered_rows
from hfadapt.data.split_files import DROPPED
from hfadapt.files import Blob, Read, Unusable, folders, stored
from hfadapt.files.stored import Stored
from hfadapt.recipe.schema import Domain
from hfadapt.records.stages import DataRecord
from hfadapt.run_folder import read_rows
from hfadapt.schemas import RowSchema

SIDE = 72
"""Pixels of a picture's height."""
MOST_CLASSES, EACH, SEED = 12, 3, 17
NO_CLASS = "none of the classes"
MOST_PAIRS = 6
LOOKED_AT = 2_000
"""Rows of a source among which pairs are looked for: it is read again for them."""

Place = tuple[str, int]


def tiles(folder: Path, split: str, form: str, captions: Mapping[int, str], side: int = SIDE) -> list[Tile]:
    """Rows of a prepared split as pictures, in the order of `captions`; none for rows that are no files.

    Args:
        folder: Of a cell.
        captions: What is said of each, by its number in the split.
    """
    schema = registry.schema(form)
    if not schema.media or not captions:
        return []
    found = _picked(folder / "data" / f"{split}.parquet", schema.media, captions)
    return [_tile(schema, found[number], caption, side) for number, caption in captions.items() if number in found]


def _tile(schema: RowSchema, data: bytes | Stored, caption: str, side: int = SIDE) -> Tile:
    return Tile(*registry.modality(schema.modality).preview(data, side), caption)


def _picked(path: Path, column: str, numbers: Mapping[int, str]) -> dict[int, bytes | Stored]:
    """Single values of a column; where a split holds the files themselves, few of the others are held at once."""
    from pyarrow import parquet

    found: dict[int, bytes | Stored] = {}
    first, last = 0, max(numbers)
    with reading(path), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            inside = [number for number in numbers if first <= number < first + len(batch)]
            rows = stored.rows(batch, path.parent, [number - first for number in inside])
            found |= {number: row[column] for number, row in zip(inside, rows, strict=True)}
            first += len(batch)
            if first > last:
                break
    return found


def contact_sheet(folder: Path, record: DataRecord) -> list[Block]:
    """How many training rows there are and how large, and a few of each class, or from the least number to the largest;
    nothing for rows that are no files.

    Args:
        folder: With `data/` of a domain.
    """
    schema = registry.schema(record.form)
    path = folder / "data" / "train.parquet"
    if not schema.media or not path.is_file():
        return []
    kind = registry.modality(schema.modality)
    labelled = "label" in schema.columns
    rows = read_rows(path, [*(["label"] if labelled else []), *kind.facts])
    if not rows:
        return []
    measured = "; ".join(_range(name, unit, [row[name] for row in rows]) for name, unit in kind.facts.items())
    picked, several = _of_numbers(rows) if schema.label_kind == "number" else _of_classes(rows, schema)
    without = NO_CLASS if schema.label_kind == "classes" else ""
    captions = {number: schema.label(rows[number]) or without for number in picked}
    said = f"{record.domain}: some training {kind.nouns}{several}"
    shown = tiles(folder, "train", record.form, captions)
    return [Text(f"{show_count(len(rows), f'training {kind.noun}')}: {measured}"), Sheet(said, shown)]


def _of_classes(rows: Sequence[Mapping[str, Any]], schema: RowSchema) -> tuple[list[int], str]:
    """Numbers of a few rows of each class, and what is said where not all classes are shown."""
    by_class: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        for name in schema.classes(row) or ("",):
            by_class.setdefault(name, []).append(number)
    draw, picked = random.Random(SEED), dict[int, None]()
    for name in sorted(by_class)[:MOST_CLASSES]:
        picked |= dict.fromkeys(draw.sample(by_class[name], min(EACH, len(by_class[name]))))
    return [*picked], f" of {MOST_CLASSES} of {len(by_class)} classes" if len(by_class) > MOST_CLASSES else ""


def _of_numbers(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], str]:
    """Numbers of rows at equal steps through their labels in order, and what is said of that."""
    order = sorted(range(len(rows)), key=lambda number: rows[number]["label"])
    most = min(len(order), MOST_CLASSES)
    return [order[step * (len(order) - 1) // max(1, most - 1)] for step in range(most)], ", by their numbers"


def _range(name: str, unit: str, values: Sequence[float]) -> str:
    low, middle, high = (
        f"{value + 0.0:,.0f}" if value == round(value) else f"{value:.2f}"
        for value in (min(values), median(values), max(values))
    )
    return f"{name} {low} {unit}" if low == high else f"{name} {low} to {high} {unit}, median {middle}"


def dropped_pairs(folder: Path, record: DataRecord, domain: Domain, recipe_folder: Path) -> list[Block]:
    """Duplicates that were dropped beside what was kept, the first few; only those at the beginning of local sources.

    Args:
        folder: With `data/` of a domain.
    """
    schema = registry.schema(record.form)
    if not schema.media or not (folder / DROPPED).is_file():
        return []
    pairs: list[tuple[Place, Place, str]] = []
    with (folder / DROPPED).open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            if twin := line["duplicate_of"]:
                pairs.append(((line["source"], line["row"]), (twin["source"], twin["row"]), line["reason"]))
    pairs = [pair for pair in pairs if max(pair[0][1], pair[1][1]) < LOOKED_AT][:MOST_PAIRS]
    wanted = {place for pair in pairs for place in pair[:2]}
    if not wanted:
        return []
    values = dict(_read_again(wanted, schema, record.columns[schema.media], domain, recipe_folder))
    shown = []
    for dropped, kept, reason in pairs:
        if dropped in values and kept in values:
            shown += [
                _tile(schema, values[kept][1], f"{values[kept][0]}\nkept"),
                _tile(schema, values[dropped][1], f"{values[dropped][0]}\n{reason}"),
            ]
    return [Sheet("Kept and dropped, in pairs", shown)] if shown else []


def _read_again(
    wanted: set[Place], schema: RowSchema, column: str, domain: Domain, recipe_folder: Path
) -> Iterator[tuple[Place, tuple[str, bytes]]]:
    """Name of files and what is kept of their content, by the place of their rows."""
    kind = registry.modality(schema.modality)
    for source in domain.all_sources():
        path = local_path(source.source, recipe_folder)
        name = f"{source.source}:{source.split}" if source.split else source.source
        rows = [row for place, row in wanted if place == name]
        if path is None or not rows:
            continue
        files = list(folders.chosen(path, source.split).data)
        # What is wrong with the others has been said.
        with suppress(HfadaptError):
            for item in islice(numbered_rows(name, files, source.split, source.encoding), max(rows) + 1):
                if isinstance(item, Read) and item.row in rows:
                    with suppress(Unusable):
                        blob = Blob.of(item.values.get(column), item.folder, folders.named_below(path))
                        yield (name, item.row), (blob.name, kind.take(blob.read()).data)
