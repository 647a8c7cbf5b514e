"""What prepared data is in a folder: Parquet files of the splits, the log of dropped rows, and their record."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.hashing import kept_sha256
from hfadapt.core.spec import reading, write_text
from hfadapt.data.reading import State
from hfadapt.data.rows import GROUP, SPLITS, Row, arrow_schema, as_line
from hfadapt.data.sources import Opened
from hfadapt.files import stored
from hfadapt.records.stages import DataRecord, SourceRecord
from hfadapt.run_folder import read_rows

RECORD, DROPPED = "data.json", "data/dropped.jsonl"
BATCH_ROWS = 8_192


def read_split(cell_folder: Path, split: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of a prepared split in canonical columns, with `source` and `row`.

    Args:
        cell_folder: A cell of a run.
        split: train, validation or test.
        limit: About how many rows at most, evenly from the whole split; the rest is never held in memory.

    Raises:
        RunError: the split has not been prepared.
    """
    from pyarrow import parquet

    path = cell_folder / "data" / f"{split}.parquet"
    if split not in SPLITS or not path.exists():
        raise RunError(
            "this split has not been prepared",
            place=str(path),
            allowed=", ".join(SPLITS),
            fix="prepare the data first: hfadapt prepare RECIPE",
        )
    if limit is None:
        return _without_null(read_rows(path))
    with reading(path), parquet.ParquetFile(path) as file:
        step = max(1, -(-file.metadata.num_rows // limit))
        rows, first = [], 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            rows += stored.rows(batch, path.parent, range(-first % step, len(batch), step))
            first += len(batch)
    return _without_null(rows)


def _without_null(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, objects in their lists without the keys that only other objects have."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                row[name] = [{key: each for key, each in one.items() if each is not None} for one in value]
    return rows


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the split files of a cell or prepared domain, by name, and of the file that their rows point into."""
    names = [*(f"{part}.parquet" for part in SPLITS), stored.FILE]
    return {name: kept_sha256(path) for name in names if (path := folder / "data" / name).exists()}


def rewrite(
    cell_folder: Path, record: DataRecord, rows: Mapping[str, list[dict[str, Any]]], dropped: list[dict[str, Any]]
) -> DataRecord:
    """Takes further rows out of a cell: new split files, longer dropped.jsonl, new data.json; each file atomically."""
    from pyarrow import parquet

    classes = registry.schema(record.form).classes
    for part, own in rows.items():
        path = cell_folder / "data" / f"{part}.parquet"
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        write_table(temporary, own, parquet.read_schema(path))
        temporary.replace(path)
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in dropped)
    log = cell_folder / DROPPED
    write_text(log, (log.read_text(encoding="utf-8") if log.exists() else "") + lines)
    counts = Counter(record.dropped) + Counter(each["reason"] for each in dropped)
    changed = record.model_copy(
        update={
            "rows_kept": record.rows_kept - len(dropped),
            "dropped": dict(counts.most_common()),
            "splits": {part: len(own) for part, own in rows.items()},
            "label_counts": {
                part: dict(sorted(Counter(name for row in own for name in classes(row)).items()))
                for part, own in rows.items()
            }
            if record.labels
            else {},
            "files": file_hashes(cell_folder),
        }
    )
    changed.write(cell_folder / RECORD)
    return changed


def make_record(
    state: State,
    name: str,
    sources: Sequence[Opened],
    fingerprint: str,
    seconds: float,
    **counted: Any,
) -> DataRecord:
    """The record of a domain; checks that no row is unaccounted for."""
    rows_in = sum(state.rows_in.values())
    kept = sum(counted["splits"].values())
    if rows_in != kept + sum(counted["dropped"].values()):
        raise RunError(
            "rows are unaccounted for; this is a bug in hfadapt",
            place=f"domains.{name}",
            got=f"{rows_in} in, {kept} kept, {sum(counted['dropped'].values())} dropped",
        )
    records = [SourceRecord(source=each.name, rows=state.rows_in[each.name], **each.about) for each in sources]
    return DataRecord(
        domain=name,
        form=state.form,
        sources=tuple(records),
        rows_in=rows_in,
        rows_kept=kept,
        labels=state.labels,
        steps=state.ledger.steps,
        fingerprint=fingerprint,
        seconds=round(seconds, 3),
        columns=state.columns,
        noticed=tuple(state.noticed),
        **counted,
    )


def split_schema(state: State) -> Any:
    """The Parquet schema of the splits of a domain."""
    form = arrow_schema(state.form, bool(state.labels), GROUP in state.columns)
    return stored.schema(form, registry.schema(state.form).media)


def keep(row: Row, store: stored.Store) -> Row:
    """The row; where its value is a file, this lies in the store."""
    if media := registry.schema(row.form).media:
        row.columns[media] = store.add(row.columns[media])
    return row


def write_rows(path: Path, rows: Sequence[Row], state: State, store: stored.Store) -> None:
    """Writes rows as Parquet, and files that are their values into the store."""
    write_table(path, [as_line(keep(row, store)) for row in rows], split_schema(state))


def write_table(path: Path, lines: list[dict[str, Any]], form: Any) -> None:
    """Writes lines as Parquet."""
    from pyarrow import parquet

    parquet.write_table(stored.table(lines, form), path, compression="zstd")
