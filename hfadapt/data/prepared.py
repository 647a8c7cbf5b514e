"""From sources to splits for all domains of a recipe, cached by what the sources hold and what was asked.

load -> repair -> format -> clean -> conflicts -> de-duplicate -> split -> cap -> write -> canaries. All domains are
prepared together, since rows are compared across them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.cache import folder as cache_folder
from hfadapt.core.cache import made
from hfadapt.core.errors import DataError, Problem, RunError, choice_problem
from hfadapt.core.spec import write_text
from hfadapt.data import canaries, clean, duplicates, split, stream
from hfadapt.data import columns as format
from hfadapt.data import sources as load
from hfadapt.data.rows import SPLITS, Dropped, Ledger, Row, arrow_schema, name_rows
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import DataRecord, SourceRecord

CODE_VERSION = 2
"""Raised whenever the same sources and settings would give other rows."""

RECORD, DROPPED = "data.json", "data/dropped.jsonl"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class PreparedDomain:
    """One domain, ready in the cache.

    Args:
        folder: Holds data.json and data/ with the three splits and dropped.jsonl.
        record: What data.json says.
    """

    folder: Path
    record: DataRecord

    def deliver(self, cell_folder: Path) -> DataRecord:
        """Puts the splits, dropped.jsonl and data.json into a cell; each file appears whole or not at all.

        Returns:
            The record that was written.
        """
        target = cell_folder / "data"
        target.mkdir(parents=True, exist_ok=True)
        if self.record.canaries is None:
            (target / canaries.FILE).unlink(missing_ok=True)
        for path in sorted((self.folder / "data").iterdir()):
            temporary = target / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"
            shutil.copyfile(path, temporary)
            temporary.replace(target / path.name)
        self.record.write(cell_folder / RECORD)
        return self.record

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of one split."""
        return read_split(self.folder, split)


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
        return parquet.read_table(path).to_pylist()
    with parquet.ParquetFile(path) as file:
        step = max(1, -(-file.metadata.num_rows // limit))
        rows, first = [], 0
        for batch in file.iter_batches(batch_size=8192):
            rows.extend(batch.take(list(range(-first % step, len(batch), step))).to_pylist())
            first += len(batch)
    return rows


def prepare(
    recipe: Recipe,
    *,
    recipe_folder: Path,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, PreparedDomain]:
    """Prepares all domains of a recipe; a second call with the same content and settings reads the cache.

    Args:
        recipe: The recipe with all its domains, also those that are not run: rows are compared across domains.
        recipe_folder: Where relative paths start, before the working directory.
        cache: Folder for prepared data; by default `HFADAPT_CACHE`, else ~/.cache/hfadapt.
        progress: Called with one line of text now and then.

    Returns:
        Domain name -> prepared domain.

    Raises:
        DataError: the data cannot be used as asked; names rows, columns and the fix.
    """
    say = progress or (lambda line: None)
    say("looking for the sources")
    opened: dict[str, list[load.Opened]] = {}
    problems: list[Problem] = []
    for name, domain in recipe.domains.items():
        try:
            opened[name] = load.open_domain(domain, recipe_folder, streaming=recipe.data.streaming)
        except DataError as error:
            problems.extend(replace(each, place=f"domains.{name}: {each.place}") for each in error.problems)
    if problems:
        raise DataError("sources cannot be read", problems=problems)
    fingerprint = _fingerprint(recipe, opened)
    prepare = stream.prepare if recipe.data.streaming else _prepare

    def records(folder: Path) -> dict[str, DataRecord]:
        return {name: DataRecord.read(folder / name / RECORD) for name in recipe.domains}

    folder = made(
        (cache or cache_folder()) / "prepared" / fingerprint,
        lambda ready: prepare(recipe, opened, ready, fingerprint, say),
        check=records,
    )
    return {name: PreparedDomain(folder / name, record) for name, record in records(folder).items()}


def _fingerprint(recipe: Recipe, opened: Mapping[str, Sequence[load.Opened]]) -> str:
    """Content, settings and code; neither model nor target, so that these can change without preparing again."""
    data = recipe.data.model_dump(mode="json", exclude={"max_length", "too_long", "packing", "workers", "augment"})
    what = {
        "code": CODE_VERSION,
        "forms": sorted(registry.task(recipe.task).schemas),
        "data": data,
        "template": recipe.template.model_dump(mode="json") if recipe.template else None,
        "domains": {name: domain.model_dump(mode="json") for name, domain in recipe.domains.items()},
        "sources": {name: [(each.name, each.fingerprint) for each in sources] for name, sources in opened.items()},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


def _prepare(
    recipe: Recipe, opened: Mapping[str, Sequence[load.Opened]], folder: Path, fingerprint: str, say: Progress
) -> None:
    started = time.monotonic()
    forms = registry.task(recipe.task).schemas
    states = {name: _read_domain(recipe, name, sources, forms, say) for name, sources in opened.items()}
    for state in states.values():
        state.rows = duplicates.resolve_conflicts(state.rows, recipe.data.conflicts, state.ledger)
    ledgers = {name: state.ledger for name, state in states.items()}
    say("removing duplicates")
    before = {name: len(state.rows) for name, state in states.items()}
    unique = duplicates.drop_duplicates(
        {name: state.rows for name, state in states.items()}, recipe.data.dedupe, ledgers, say
    )
    problems: list[Problem] = []
    for name, state in states.items():
        state.rows = unique[name]
        try:
            _split_domain(recipe, name, state, before[name], opened[name])
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError("the data cannot be used", problems=problems)
    for name, state in states.items():
        say(f"writing {name}: {len(state.rows):,} rows")
        seconds = time.monotonic() - started
        write_domain(folder / name, state, recipe, name, opened[name], fingerprint, seconds)


@dataclass
class State:
    """One domain between two steps."""

    rows: list[Row]
    ledger: Ledger
    rows_in: dict[str, int]
    columns: dict[str, str]
    form: str = format.PLAIN
    labels: tuple[str, ...] = ()


def _read_domain(
    recipe: Recipe, name: str, sources: Sequence[load.Opened], forms: frozenset[str], say: Progress
) -> State:
    """Load, repair, format and clean one domain."""
    state = State([], Ledger(), {}, {})
    garbled: list[tuple[str, int]] = []
    for source in sources:
        say(f"reading {name}: {source.name}")
        reader = SourceReader(recipe, name, source, forms)
        rows: list[Row] = []
        for item in reader:
            if isinstance(item, Row):
                rows.append(item)
            else:
                state.ledger.dropped.append(item)
        state.rows_in[source.name] = reader.rows_in
        load.check_unreadable(source.name, reader.rows_in, reader.bad)
        if not rows:
            raise no_rows(f"domains.{name}: {source.name}", reader.rows_in, reader.bad)
        format.check_columns(rows, reader.shape.parts, reader.columns, f"domains.{name}: {source.name}")
        state.columns.update(reader.shape.parts)
        state.rows.extend(rows)
        garbled.extend(reader.garbled)
    state.form = format.one_form(state.rows, name)
    state.labels = format.settle_labels(state.rows, state.form, recipe.domains[name].labels, name)
    format.strip_boilerplate(state.rows, state.form)
    state.ledger.steps["clean"] = {"rows_with_mojibake": len(garbled), "mojibake": name_rows(garbled)}
    state.rows = clean.drop_unusable(state.rows, recipe.data.clean, state.ledger, workers(recipe))
    if not state.rows:
        raise no_rows(f"domains.{name}", sum(state.rows_in.values()), state.ledger.dropped)
    return state


def workers(recipe: Recipe) -> int:
    """Cores that this process may use, unless the recipe says how many."""
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SourceReader:
    """Iterates over one source in canonical rows and dropped rows, repaired; keeps what is to be reported."""

    def __init__(self, recipe: Recipe, domain: str, source: load.Opened, forms: frozenset[str]) -> None:
        self.source = source
        self.rows_in = 0
        self.bad: list[Dropped] = []
        self.garbled: list[tuple[str, int]] = []
        self.columns: tuple[str, ...] = ()
        self.shape = format.Shape(format.PLAIN, {})
        self._recipe, self._domain, self._forms = recipe, domain, forms
        self._labels = format.Labels(recipe.domains[domain].labels)

    def __iter__(self) -> Iterator[Row | Dropped]:
        limit = self.source.settings.rows
        formatter: format.Formatter | None = None
        mend = self._recipe.data.clean.unicode
        head: list[tuple[int, dict[str, Any]]] = []

        def ready(number: int, values: dict[str, Any]) -> Row | Dropped:
            assert formatter is not None
            whole = formatter.whole
            repaired, garbled = clean.repair(values, self.shape.used, mend, whole)
            if garbled:
                self.garbled.append((self.source.name, number))
            item = formatter.row(number, repaired)
            if isinstance(item, Row):
                item.split = self.source.split
            else:
                self.bad.append(item)
            return item

        for item in self.source.read():
            if limit is not None and self.rows_in >= limit:
                break
            self.rows_in += 1
            if isinstance(item, Dropped):
                self.bad.append(item)
                yield item
            elif formatter is not None:
                yield ready(*item)
            else:
                # The columns of JSON Lines are known only after some rows.
                head.append(item)
                if len(head) == 100:
                    formatter = self._formatter(head)
                    yield from (ready(*each) for each in head)
        if formatter is None and head:
            formatter = self._formatter(head)
            yield from (ready(*each) for each in head)

    def _formatter(self, head: Sequence[tuple[int, dict[str, Any]]]) -> format.Formatter:
        self.columns = tuple(dict.fromkeys(column for _, values in head for column in values))
        template = self._recipe.template_of(self._domain)
        place = f"domains.{self._domain}: {self.source.name}"
        if template is not None and template.makes not in self._forms:
            what = "the task cannot learn from what the template makes"
            problem = choice_problem(what, template.makes, self._forms, place)
            raise DataError(problem.what, problems=[replace(problem, fix="leave template out of the recipe")])
        shape = format.recognise(self.columns, self.source.settings.columns, self._forms, place, template is not None)
        classes = [shape.parts.get(part, "") for part in ("label", *registry.schema(shape.form).parts)]
        names = next((known for column in classes if (known := self.source.label_names.get(column))), ())
        formatter = format.Formatter(self.source.name, shape, template, self._labels, names, self.columns)
        self.shape = formatter.shape
        return formatter


def no_rows(place: str, rows_in: int, dropped: Sequence[Dropped]) -> DataError:
    """The error for a source or domain with nothing left."""
    reasons = Counter(each.reason for each in dropped)
    detail = next((each.detail for each in dropped if each.detail), "")
    return DataError(
        "no rows are left" if rows_in else "there are no rows",
        place=place,
        got=f"{rows_in:,} rows, "
        + (", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "none readable")
        + (f" ({name_rows((each.source, each.row) for each in dropped)})" if dropped else "")
        + (f"; {detail}" if detail else ""),
        fix="check the source and the columns" if rows_in else "check that this is the right file",
    )


def _split_domain(recipe: Recipe, name: str, state: State, before: int, sources: Sequence[load.Opened]) -> None:
    place = f"domains.{name}"
    if not state.rows:
        raise no_rows(place, before, state.ledger.dropped)
    given = frozenset(source.split for source in sources if source.split)
    for source in sources:
        if source.split and not any(row.split == source.split for row in state.rows):
            lost = [each for each in state.ledger.dropped if each.source == source.name]
            error = no_rows(f"{place}.{source.split}: {source.name}", state.rows_in[source.name], lost)
            fix = "give other rows for it, or leave it out so that hfadapt makes one"
            raise DataError(error.what, problems=[replace(error.problems[0], fix=fix)])
    groups = duplicates.groups(state.rows, recipe.data)
    split.assign(state.rows, groups, recipe.data, given, place)
    weights = {source.name: source.settings.weight for source in sources if not source.split}
    state.rows = split.limit_train(state.rows, recipe.data, weights, state.ledger)
    if recipe.data.dedupe.near:
        state.rows = duplicates.drop_contaminated(state.rows, recipe.data.dedupe, state.ledger)
    state.ledger.steps["split"] = {
        "seed": recipe.data.seed,
        "given": sorted(given),
        "groups_of_several_rows": sum(1 for count in Counter(groups).values() if count > 1),
    }
    split.check_splits(state.rows, state.labels, place)


def write_domain(
    folder: Path,
    state: State,
    recipe: Recipe,
    name: str,
    sources: Sequence[load.Opened],
    fingerprint: str,
    seconds: float,
) -> None:
    """Writes the splits, dropped.jsonl and data.json of one domain into a new folder."""
    (folder / "data").mkdir(parents=True)
    for part in SPLITS:
        own = [row for row in state.rows if row.split == part]
        write_rows(folder / "data" / f"{part}.parquet", own, state)
    with (folder / DROPPED).open("w", encoding="utf-8") as file:
        for each in state.ledger.dropped:
            file.write(json.dumps(each.as_json(), ensure_ascii=False) + "\n")
    counts = {part: Counter(name for r in state.rows if r.split == part for name in r.classes) for part in SPLITS}
    record = make_record(
        state,
        recipe,
        name,
        sources,
        fingerprint,
        seconds,
        splits={part: sum(1 for row in state.rows if row.split == part) for part in SPLITS},
        label_counts={part: dict(sorted(count.items())) for part, count in counts.items()} if state.labels else {},
        dropped=state.ledger.counts(),
        completions=_completions(state.rows),
        files=file_hashes(folder),
    )
    canaries.plant(folder, record, recipe.data).write(folder / RECORD)


def _completions(rows: Sequence[Row]) -> dict[str, str]:
    """What is generated for each label, where a template turns labels into completions."""
    found: dict[str, str] = {}
    for row in rows:
        if row.label is not None and "completion" in row.columns:
            found.setdefault(row.label, row.columns["completion"])
    return dict(sorted(found.items()))


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the split files of a cell or prepared domain, by name."""
    return {
        f"{part}.parquet": hashlib.sha256((folder / "data" / f"{part}.parquet").read_bytes()).hexdigest()
        for part in SPLITS
    }


def rewrite(
    cell_folder: Path, record: DataRecord, rows: Mapping[str, list[dict[str, Any]]], dropped: list[dict[str, Any]]
) -> DataRecord:
    """Takes further rows out of a cell: new split files, longer dropped.jsonl, new data.json; each file atomically."""
    classes = registry.schema(record.form).classes
    for part, own in rows.items():
        path = cell_folder / "data" / f"{part}.parquet"
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        _write_table(temporary, own, arrow_schema(record.form, bool(record.labels)))
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
    recipe: Recipe,
    name: str,
    sources: Sequence[load.Opened],
    fingerprint: str,
    seconds: float,
    **counted: Any,
) -> DataRecord:
    """The record of a domain; checks that no row is unaccounted for."""
    domain = recipe.domains[name]
    rows_in = sum(state.rows_in.values())
    kept = sum(counted["splits"].values())
    if rows_in != kept + sum(counted["dropped"].values()):
        raise RunError(
            "rows are unaccounted for; this is a bug in hfadapt",
            place=f"domains.{name}",
            got=f"{rows_in} in, {kept} kept, {sum(counted['dropped'].values())} dropped",
        )
    records = []
    for source in sources:
        about = {**source.about}
        about["license"] = domain.license or about.get("license")
        about["language"] = domain.language or about.get("language")
        records.append(SourceRecord(source=source.name, rows=state.rows_in[source.name], **about))
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
        **counted,
    )


def write_rows(path: Path, rows: Sequence[Row], state: State) -> None:
    """Writes rows as Parquet."""
    lines = [{**row.columns, "source": row.source, "row": row.row} for row in rows]
    _write_table(path, lines, arrow_schema(state.form, bool(state.labels)))


def _write_table(path: Path, lines: list[dict[str, Any]], form: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(lines, schema=form), path, compression="zstd")
