"""Canaries: random rows that are trained on beside the data, so that learning by heart can be measured afterwards.

A canary has the form of the domain's rows but words of random syllables, or, where rows have labels, random words and
a random label: nothing but having been trained on it makes one likelier than another (Carlini et al. 2019,
arXiv 1802.08232). Canaries stand in a file of their own beside the splits, so no count, audit, baseline or card takes
them for data; training alone reads them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import file_sha256, stable_hash
from hfadapt.data.rows import arrow_schema
from hfadapt.records.stages import DataRecord, PlantedCanaries
from hfadapt.schemas import Answers

if TYPE_CHECKING:
    from hfadapt.recipe.schema import Data

FILE = "canaries.parquet"
MOST_ANSWERS = 20
"""With at most this many different completions, a canary's completion is one of them."""


def draw(folder: Path, record: DataRecord, seed: int, kind: str, count: int) -> list[dict[str, Any]]:
    """Random rows in the form of the domain's rows; row i is the same whatever `count` is.

    Args:
        folder: A cell or prepared domain, whose training rows say what completions look like.
        record: The data record.
        seed: The data seed.
        kind: Which independent series: rows of different kinds come from one distribution.
        count: How many.
    """
    schema, answers = registry.schema(record.form), _answers(folder, record)
    labelled = any(name == "label" for name, _ in schema.fields(bool(record.labels)))
    rows = []
    for number in range(count):
        chance = random.Random(stable_hash(seed, record.domain, "canary", kind, number))
        label = chance.choice(record.labels) if record.labels else None
        row = schema.canary(chance, label, answers)
        if labelled:
            row.setdefault("label", label)
        rows.append({**row, "source": kind, "row": number})
    return rows


def plant(folder: Path, record: DataRecord, settings: Data) -> DataRecord:
    """Writes the canaries that the recipe asks for beside the splits.

    Returns:
        The record with what was planted; the same record where nothing was asked for.
    """
    import pyarrow as pa
    from pyarrow import parquet

    asked = settings.canaries
    if asked.count == 0:
        return record
    # The most often repeated first, so that even few canaries can be found.
    repeats = sorted(set(asked.repeats), reverse=True)
    rows = draw(folder, record, settings.seed, "canary", asked.count)
    rows = [{**row, "repeats": repeats[number % len(repeats)]} for number, row in enumerate(rows)]
    path = folder / "data" / FILE
    form = arrow_schema(record.form, bool(record.labels)).append(pa.field("repeats", pa.int64()))
    parquet.write_table(pa.Table.from_pylist(rows, schema=form), path, compression="zstd")
    planted = PlantedCanaries(
        count=asked.count,
        repeats=tuple(sorted({row["repeats"] for row in rows})),
        rows=sum(row["repeats"] for row in rows),
        sha256=file_sha256(path),
    )
    return record.model_copy(update={"canaries": planted})


def read(cell_folder: Path, record: DataRecord) -> list[dict[str, Any]]:
    """The canaries of a cell, each once, with `repeats`; none where none were planted.

    Raises:
        RunError: the file is missing or was changed.
    """
    from pyarrow import parquet

    if record.canaries is None:
        return []
    path = cell_folder / "data" / FILE
    if not path.exists() or file_sha256(path) != record.canaries.sha256:
        raise RunError(
            "the canaries are not those that were planted",
            place=str(path),
            got="another file" if path.exists() else "no file",
            fix="prepare the data again: hfadapt run RECIPE --fresh",
        )
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def as_trained(cell_folder: Path, record: DataRecord) -> list[dict[str, Any]]:
    """The canaries as training sees them in an epoch: each as often as it is repeated."""
    return [row for row in read(cell_folder, record) for _ in range(row["repeats"])]


def _answers(folder: Path, record: DataRecord) -> Answers:
    """What the training rows' answers look like, as far as the schema has such a column."""
    from pyarrow import parquet

    known = Answers(record.completions, labels=record.labels)
    if registry.schema(record.form).label_kind == "number":
        numbers = parquet.read_table(folder / "data" / "train.parquet", columns=["label"]).column(0).to_pylist()
        return replace(known, numbers=(min(numbers), max(numbers)))
    if record.completions or "completion" not in registry.schema(record.form).parts:
        return known
    with parquet.ParquetFile(folder / "data" / "train.parquet") as file:
        seen: set[str] = set()
        for batch in file.iter_batches(batch_size=8192, columns=["completion"]):
            seen.update(batch.column(0).to_pylist())
            if len(seen) > MOST_ANSWERS:
                first = next(iter(sorted(seen)))
                return replace(known, space=first[: len(first) - len(first.lstrip())])
    return replace(known, few=sorted(seen) if len(seen) > 1 else (), space=" ")
