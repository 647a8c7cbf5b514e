"""Prepares data larger than memory: cleaning and exact de-duplication on the stream, Parquet in row groups.

Held in memory are one chunk of rows, 16 bytes for each row kept, and validation or test rows when they are asked for
by number. Near-duplicates are not looked for, and splits are drawn by a hash rather than by label: of the prompt, of
chats of all that is said.
"""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, Problem
from hfadapt.core.hashing import stable_hash
from hfadapt.data import canaries, clean, columns, duplicates, split
from hfadapt.data.labels import Labels
from hfadapt.data.reading import SourceReader, State, keep_columns, no_rows, workers
from hfadapt.data.rows import GROUP, PRIORITY, SPLITS, Ledger, Row, arrow_schema, as_line, fold, text_key
from hfadapt.data.sources import Opened, check_unreadable
from hfadapt.data.split_files import DROPPED, RECORD, file_hashes, make_record
from hfadapt.recipe.schema import Recipe

CHUNK_ROWS = 10_000


class SeenKeys:
    """A growing set of 64-bit keys in sorted runs: 8 bytes a key, where a Python set needs about 70."""

    def __init__(self) -> None:
        self._runs: list[Any] = []
        self._new: set[int] = set()

    def add(self, key: int) -> bool:
        """Adds a key; tells whether it was new."""
        import numpy as np

        if key in self._new:
            return False
        value = np.uint64(key)
        for run in self._runs:
            at = int(np.searchsorted(run, value))
            if at < len(run) and run[at] == value:
                return False
        self._new.add(key)
        if len(self._new) >= 1 << 17:
            self._merge()
        return True

    def _merge(self) -> None:
        import numpy as np

        run = np.sort(np.fromiter(self._new, dtype=np.uint64, count=len(self._new)))
        self._new = set()
        # Runs of like size are merged, so that there are never more than about log2(keys) of them.
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


class SplitFiles:
    """One Parquet file per split, written in row groups as rows come."""

    def __init__(self, folder: Path, state: State) -> None:
        from pyarrow import parquet

        self.counts: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
        self._schema = arrow_schema(state.form, bool(state.labels), GROUP in state.columns)
        self._writers = {
            name: parquet.ParquetWriter(folder / f"{name}.parquet", self._schema, compression="zstd") for name in SPLITS
        }
        self._waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}

    def add(self, row: Row, name: str) -> None:
        """Takes one row of a split."""
        self.counts[name] += 1
        self.labels[name].update(row.classes)
        self._waiting[name].append(as_line(row))
        if len(self._waiting[name]) >= CHUNK_ROWS:
            self._flush(name)

    def close(self) -> None:
        """Writes what is left."""
        for name, writer in self._writers.items():
            self._flush(name)
            writer.close()

    def _flush(self, name: str) -> None:
        import pyarrow as pa

        if self._waiting[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._waiting[name], schema=self._schema))
            self._waiting[name] = []


def prepare(
    recipe: Recipe,
    opened: Mapping[str, Sequence[Opened]],
    folder: Path,
    fingerprint: str,
    say: Callable[[str], None],
) -> None:
    """Prepares all domains on the stream; raises DataError like the preparing in memory."""
    texts, labelled = SeenKeys(), SeenKeys()
    problems: list[Problem] = []
    for name, sources in opened.items():
        if not recipe.data.dedupe.across_domains:
            texts, labelled = SeenKeys(), SeenKeys()
        try:
            _Domain(recipe, name, sources, folder / name, texts, labelled, say).run(fingerprint)
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError("the data cannot be used", problems=problems)


class _Domain:
    """The stream of one domain."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        sources: Sequence[Opened],
        folder: Path,
        texts: SeenKeys,
        labelled: SeenKeys,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.name, self.folder, self.say = recipe, name, folder, say
        self.settings = recipe.data
        # Given test and validation rows are read first, so that they win.
        self.sources = sorted(sources, key=lambda source: PRIORITY.get(source.split, 2))
        self.given = {source.split for source in sources if source.split}
        self.state = State([], Ledger(), {}, {})
        self.texts, self.labelled = texts, labelled
        self.dropped: Counter[str] = Counter()
        self.names: set[str] = set()
        self.spelled = Labels(recipe.domains[name].labels)
        self.completions: dict[str, str] = {}
        self.spelling: dict[str, str] = {}
        self.by_prompt: bool | None = None
        """Whether rows with the same prompt stay together, known with the first chunk that is split."""

    def run(self, fingerprint: str) -> None:
        started = time.monotonic()
        (self.folder / "data").mkdir(parents=True)
        held: dict[str, list[tuple[int, int, Row]]] = {
            part: [] for part in ("test", "validation") if self._by_number(part)
        }
        files: SplitFiles | None = None
        with (self.folder / DROPPED).open("w", encoding="utf-8") as log:
            for number, unique in enumerate(self._unique(log)):
                if files is None:
                    files = SplitFiles(self.folder / "data", self.state)
                row: Row | None = unique
                if not (unique.split or unique.group) and not all(
                    files.labels["train"][name] for name in unique.classes
                ):
                    # No class may be scored that was never trained.
                    unique.split = "train"
                for part, heap in held.items():
                    if row is not None and not row.split:
                        row = self._hold(heap, int(getattr(self.settings, part)), number, row, part)
                if row is not None:
                    self._place(row, files, log)
            for part, heap in held.items():
                for _, _, chosen in sorted(heap, key=lambda item: item[1]):
                    assert files is not None
                    files.add(chosen, part)
        if files is None:
            raise no_rows(f"domains.{self.name}", sum(self.state.rows_in.values()), [])
        files.close()
        self._check(files)
        self.state.labels = tuple(self.recipe.domains[self.name].labels or sorted(self.names))
        found = sorted({name for count in files.labels.values() for name in count})
        self.state.noticed += self.spelled.findings(found, self.state.form, f"domains.{self.name}")
        self.state.ledger.steps["dedupe"] = {
            "exact_duplicate": self.dropped["exact-duplicate"],
            "near": "not done on a stream",
        }
        self.state.ledger.steps["split"] = {"seed": self.settings.seed, "given": sorted(self.given), "by": "hash"}
        record = make_record(
            self.state,
            self.name,
            self.sources,
            fingerprint,
            time.monotonic() - started,
            splits={part: files.counts[part] for part in SPLITS},
            label_counts={part: dict(sorted(files.labels[part].items())) for part in SPLITS} if self.names else {},
            dropped=dict(self.dropped.most_common()),
            completions=dict(sorted(self.completions.items())),
            files=file_hashes(self.folder),
        )
        canaries.plant(self.folder, record, self.settings).write(self.folder / RECORD)

    def _by_number(self, part: str) -> bool:
        return part not in self.given and getattr(self.settings, part) >= 1

    def _unique(self, log: Any) -> Iterator[Row]:
        for chunk in self._chunks(log):
            for row in chunk:
                key = text_key(row.text)
                if not self.settings.dedupe.exact:
                    yield row
                    continue
                new_text = self.texts.add(key)
                new_pair = self.labelled.add(stable_hash(key, row.label or ""))
                if not new_pair:
                    self._drop(row, "exact-duplicate", log)
                elif not new_text and row.label is not None and self.settings.conflicts != "keep":
                    self._drop(row, "label-conflict", log)
                else:
                    yield row

    def _chunks(self, log: Any) -> Iterator[list[Row]]:
        """Cleaned rows, some thousands at a time."""
        forms = registry.task(self.recipe.task).schemas
        first = True
        for source in self.sources:
            reader = SourceReader(self.recipe, self.name, source, forms, self.spelled)
            chunk: list[Row] = []
            for item in reader:
                if isinstance(item, Row):
                    chunk.append(item)
                else:
                    self._log(item, log)
                if len(chunk) == CHUNK_ROWS:
                    yield self._clean(chunk, reader, first, log)
                    self.say(f"reading {self.name}: {source.name}: {reader.rows_in:,} rows")
                    chunk, first = [], False
                    check_unreadable(source, reader.rows_in, reader.bad)
            check_unreadable(source, reader.rows_in, reader.bad)
            self.state.rows_in[source.name] = reader.rows_in
            self.state.noticed += reader.noticed
            if chunk:
                yield self._clean(chunk, reader, first, log)
                first = False

    def _clean(self, chunk: list[Row], reader: SourceReader, first: bool, log: Any) -> list[Row]:
        place = f"domains.{self.name}: {reader.source.name}"
        if first:
            reader.check_columns(chunk)
            keep_columns(reader, self.state)
            self.state.form = chunk[0].form
        if columns.one_form(chunk, self.name) != self.state.form:
            raise DataError(
                "a stream must have one form of rows",
                place=place,
                got=chunk[0].form,
                allowed=self.state.form,
                fix="make the sources alike, or set data.streaming to false",
            )
        domain = self.recipe.domains[self.name]
        if not registry.schema(self.state.form).writes or domain.labels is not None:
            self.names.update(columns.settle_labels(chunk, self.state.form, self.spelled, self.name))
        else:
            self.names.update(name for row in chunk for name in row.classes)
        for row in chunk:
            if row.label is not None and "completion" in row.columns:
                # Each chunk settles how a class is written; the first that has the class decides for all.
                row.columns["completion"] = self.spelling.setdefault(row.label, row.columns["completion"])
        self.state.labels = tuple(sorted(self.names))
        ledger = Ledger(steps=self.state.ledger.steps)
        kept = clean.drop_unusable(chunk, self.settings.clean, ledger, workers(self.recipe))
        for each in ledger.dropped:
            self._log(each, log)
        if self.by_prompt is None and not reader.source.split:
            # Chats that all begin alike are not one group, nor are texts after one instruction.
            self.by_prompt = not registry.schema(self.state.form).chat and duplicates.has_own_prompts(kept)
        return kept

    def _hold(self, heap: list[tuple[int, int, Row]], limit: int, number: int, row: Row, part: str) -> Row | None:
        """Keeps the `limit` rows with the smallest hash; returns the one that has to leave."""
        item = (-self._draw(row, part), number, row)
        if len(heap) < limit:
            heapq.heappush(heap, item)
            return None
        return heapq.heappushpop(heap, item)[2]

    def _draw(self, row: Row, part: str) -> int:
        shown = row.group or (self.by_prompt and row.prompt) or row.text
        return stable_hash(self.settings.seed, part, fold(shown))

    def _place(self, row: Row, files: SplitFiles, log: Any) -> None:
        part = row.split or "train"
        if not row.split:
            point = self._draw(row, "split") / 2**64
            edge = 0.0
            for name in ("test", "validation"):
                share = getattr(self.settings, name)
                if name not in self.given and share < 1:
                    if edge <= point < edge + share:
                        part = name
                    edge += share
        limit = self.settings.train_rows
        if part == "train" and limit is not None and files.counts["train"] >= limit:
            self._drop(row, "over-train-rows", log)
            return
        if row.label is not None and "completion" in row.columns:
            self.completions.setdefault(row.label, row.columns["completion"])
        files.add(row, part)

    def _drop(self, row: Row, reason: str, log: Any) -> None:
        ledger = Ledger()
        ledger.drop(row, reason)
        self._log(ledger.dropped[0], log)

    def _log(self, dropped: Any, log: Any) -> None:
        self.dropped[dropped.reason] += 1
        log.write(json.dumps(dropped.as_json(), ensure_ascii=False) + "\n")

    def _check(self, files: SplitFiles) -> None:
        held = {source.split: source.name for source in self.sources if source.split}
        place = f"domains.{self.name}"
        split.check_left(files.counts["train"], held, self.dropped["exact-duplicate"], place)
        shown = [Row("", 0, {}, "", label, split=part) for part in SPLITS for label in files.labels[part]]
        shown += [Row("", 0, {}, "", None, split=part) for part in SPLITS if files.counts[part] and not self.names]
        split.check_splits(shown, tuple(self.names), place)
