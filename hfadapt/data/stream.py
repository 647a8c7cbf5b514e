"""Prepares data larger than memory: cleaning and exact de-duplication on the stream, Parquet in row groups.

Held in memory are one chunk of rows, 16 bytes for each row kept, and validation or test rows when they are asked for
by number; of rows that are files, where these lie on the disk. Near-duplicates are not looked for, and splits are drawn
by a hash rather than by label: of the prompt, of chats of all that is said.
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
from hfadapt.data.lost import KEEPS, LostClasses
from hfadapt.data.reading import SourceReader, State, keep_columns, no_rows, workers
from hfadapt.data.rows import PRIORITY, SPLITS, Ledger, Row, as_line, fold, text_key
from hfadapt.data.sources import Opened
from hfadapt.data.split_files import DROPPED, RECORD, file_hashes, keep, make_record, split_schema
from hfadapt.data.unreadable import check_unreadable
from hfadapt.files import stored
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import Finding

CHUNK_ROWS, CHUNK_CHARACTERS = 10_000, 64 << 20
"""Rows that are held at once, and what they may say together: one more row than that."""
NOT_AVERAGED = "a stream takes no mean of a text's numbers, the first stays"
_KEEPS = {
    "over-train-rows": KEEPS["over-train-rows"],
    "label-conflict": "data.conflicts: keep learns each label of a text",
}
Held = tuple[int, int, Row]
"""A row that is held for a split asked for by number: its hash, the largest first, and its number in the stream."""


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


class Chunk(list[Row]):
    """Rows until there are enough of them."""

    characters = 0

    def add(self, row: Row) -> bool:
        """Takes a row; tells whether it is full."""
        self.append(row)
        self.characters += len(row.text)
        return len(self) >= CHUNK_ROWS or self.characters >= CHUNK_CHARACTERS


class SplitFiles:
    """One Parquet file per split, written in row groups as rows come, and one of all values that are files."""

    def __init__(self, folder: Path, state: State) -> None:
        from pyarrow import parquet

        self.counts: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
        self._schema = split_schema(state)
        self._store = stored.Store(folder / stored.FILE)
        self._writers = {
            name: parquet.ParquetWriter(folder / f"{name}.parquet", self._schema, compression="zstd") for name in SPLITS
        }
        self._waiting = {name: Chunk() for name in SPLITS}

    def add(self, row: Row, name: str) -> None:
        """Takes one row of a split."""
        self.counts[name] += 1
        self.labels[name].update(row.classes)
        if self._waiting[name].add(self.keep(row)):
            self._flush(name)

    def keep(self, row: Row) -> Row:
        """The row, its file among those of the splits."""
        return keep(row, self._store)

    def close(self) -> None:
        """Writes what is left."""
        for name, writer in self._writers.items():
            self._flush(name)
            writer.close()

    def _flush(self, name: str) -> None:
        if self._waiting[name]:
            self._writers[name].write_table(stored.table(list(map(as_line, self._waiting[name])), self._schema))
            self._waiting[name] = Chunk()


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
        self.spelled = Labels(recipe.domains[name].labels, recipe.domains[name].no_label)
        self.lost = LostClasses()
        self.completions: dict[str, str] = {}
        self.spelling: dict[str, str] = {}
        self.by_prompt: bool | None = None
        """Whether rows with the same prompt stay together, known with the first chunk that is split."""

    def run(self, fingerprint: str) -> None:
        started = time.monotonic()
        if registry.task(self.recipe.task).label_kind == "number" and self.settings.conflicts != "keep":
            self.say(f"{self.name}: {NOT_AVERAGED}")
        (self.folder / "data").mkdir(parents=True)
        held: dict[str, list[Held]] = {part: [] for part in ("test", "validation") if self._by_number(part)}
        files: SplitFiles | None = None
        with (self.folder / DROPPED).open("w", encoding="utf-8") as log, stored.passing(self.folder) as passing:
            for number, unique in enumerate(self._unique(log, passing)):
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
                        row = self._hold(heap, part, (-self._draw(row, part), number, row), files)
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
        self.state.noticed += [*self._not_averaged(), *self.lost.findings(found, _KEEPS)]
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

    def _unique(self, log: Any, passing: stored.Store) -> Iterator[Row]:
        for chunk in self._chunks(log, passing):
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

    def _chunks(self, log: Any, passing: stored.Store) -> Iterator[list[Row]]:
        """Cleaned rows, some thousands at a time; their files lie in `passing` until the next ones are asked for."""
        forms = registry.task(self.recipe.task).schemas
        first = True
        for source in self.sources:
            reader = SourceReader(self.recipe, self.name, source, forms, self.spelled)
            chunk = Chunk()
            for item in reader:
                if not isinstance(item, Row):
                    self._log(item, log)
                elif chunk.add(keep(item, passing)):
                    yield self._clean(chunk, reader, first, log)
                    self.say(f"reading {self.name}: {source.name}: {reader.rows_in:,} rows")
                    chunk, first = Chunk(), False
                    passing.clear()
                    check_unreadable(source.split, reader.rows_in, reader.bad)
            check_unreadable(source.split, reader.rows_in, reader.bad)
            self.state.rows_in[source.name] = reader.rows_in
            self.state.noticed += reader.noticed
            if chunk:
                yield self._clean(chunk, reader, first, log)
                first = False
                passing.clear()

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

    def _hold(self, heap: list[Held], part: str, item: Held, files: SplitFiles) -> Row | None:
        """Keeps as many rows as a part is to have, those with the smallest hash; returns the one that has to leave."""
        full = len(heap) >= getattr(self.settings, part)
        if full and item < heap[0]:
            return item[2]
        files.keep(item[2])
        if full:
            return heapq.heapreplace(heap, item)[2]
        heapq.heappush(heap, item)
        return None

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
        self.lost.add(row, reason)
        self._log(ledger.dropped[0], log)

    def _log(self, dropped: Any, log: Any) -> None:
        self.dropped[dropped.reason] += 1
        log.write(json.dumps(dropped.as_json(), ensure_ascii=False) + "\n")

    def _not_averaged(self) -> list[Finding]:
        left = self.dropped["label-conflict"]
        if not left or registry.schema(self.state.form).label_kind != "number":
            return []
        what = f"left out as they give a text another number: {left:,} of the rows; {NOT_AVERAGED}"
        fix = "nothing; or set data.streaming: false, or data.conflicts: keep to learn each number"
        return [Finding(code="numbers-not-averaged", level="soft", message=what, fix=fix)]

    def _check(self, files: SplitFiles) -> None:
        held = {source.split: source.name for source in self.sources if source.split}
        place = f"domains.{self.name}"
        split.check_left(files.counts["train"], held, self.dropped["exact-duplicate"], place)
        sizes = {part: files.counts[part] for part in SPLITS}

        def having(names: Sequence[str]) -> list[str]:
            counts = {part: sum(files.labels[part][name] for name in names) for part in SPLITS}
            return [f"{part}: {count:,} row{'s' if count > 1 else ''}" for part, count in counts.items() if count]

        split.check_counts(sizes, files.labels if self.names else {}, place, having)
