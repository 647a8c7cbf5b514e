"""Prepares data in memory: near-duplicates, conflicts and splits by label and group over all domains together.

load -> repair -> format -> clean -> conflicts -> de-duplicate -> split -> cap -> write -> canaries.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hfadapt.core import registry
from hfadapt.core.errors import DataError, Problem
from hfadapt.data import canaries, clean, duplicates, split
from hfadapt.data import columns as format
from hfadapt.data.labels import Labels
from hfadapt.data.lost import LostClasses
from hfadapt.data.reading import SourceReader, State, keep_columns, no_rows, workers
from hfadapt.data.rows import SPLITS, Ledger, Row
from hfadapt.data.sources import Opened
from hfadapt.data.split_files import DROPPED, RECORD, file_hashes, keep, make_record, write_rows
from hfadapt.data.unreadable import check_unreadable
from hfadapt.files import stored
from hfadapt.files.places import Place, name_rows
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import Finding


def prepare(
    recipe: Recipe,
    opened: Mapping[str, Sequence[Opened]],
    folder: Path,
    fingerprint: str,
    say: Callable[[str], None],
) -> None:
    """Prepares all domains into a folder of each; raises DataError with the problems of all."""
    started = time.monotonic()
    with stored.passing(folder) as passing:
        states = {name: _read_domain(recipe, name, sources, passing, say) for name, sources in opened.items()}
        _settle(recipe, opened, states, say)
        for name, state in states.items():
            say(f"writing {name}: {len(state.rows):,} rows")
            seconds = time.monotonic() - started
            _write_domain(folder / name, state, recipe, name, opened[name], fingerprint, seconds)


def _settle(
    recipe: Recipe, opened: Mapping[str, Sequence[Opened]], states: Mapping[str, State], say: Callable[[str], None]
) -> None:
    """Takes out duplicates and contradictions over all domains, and splits each."""
    every = {name: list(state.rows) for name, state in states.items()}
    for state in states.values():
        if recipe.data.conflicts != "keep":
            state.rows, averaged = duplicates.average(state.rows, state.ledger)
            state.noticed += averaged
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
        state.noticed += _classes_lost(every[name], state)
    if problems:
        raise DataError("the data cannot be used", problems=problems)


def _classes_lost(every: Sequence[Row], state: State) -> list[Finding]:
    """What is to be said of classes of which no row is left.

    Args:
        every: The rows before any were taken out.
    """
    lost = LostClasses()
    kept = {row.place for row in state.rows}
    why = {each.where[:2]: each.reason for each in state.ledger.dropped}
    for row in every:
        if row.place not in kept:
            lost.add(row, why.get(row.place, ""))
    return lost.findings({name for row in state.rows for name in row.classes})


def _read_domain(
    recipe: Recipe, name: str, sources: Sequence[Opened], passing: stored.Store, say: Callable[[str], None]
) -> State:
    """Load, repair, format and clean one domain; files that are its values lie in `passing`."""
    forms = registry.task(recipe.task).schemas
    state = State([], Ledger(), {}, {})
    garbled: list[Place] = []
    labels = Labels(recipe.domains[name].labels, recipe.domains[name].no_label)
    for source in sources:
        say(f"reading {name}: {source.name}")
        reader = SourceReader(recipe, name, source, forms, labels)
        rows: list[Row] = []
        for item in reader:
            if isinstance(item, Row):
                rows.append(keep(item, passing))
            else:
                state.ledger.dropped.append(item)
        state.rows_in[source.name] = reader.rows_in
        check_unreadable(source.split, reader.rows_in, reader.bad)
        if not rows:
            raise no_rows(f"domains.{name}: {source.name}", reader.rows_in, reader.bad)
        reader.check_columns(rows)
        keep_columns(reader, state)
        state.rows.extend(rows)
        garbled.extend(reader.garbled)
        state.noticed += reader.noticed
    state.form = format.one_form(state.rows, name)
    state.labels = format.settle_labels(state.rows, state.form, labels, name)
    found = sorted({each for row in state.rows for each in row.classes})
    state.noticed += labels.findings(found, state.form, f"domains.{name}")
    format.strip_boilerplate(state.rows, state.form)
    state.ledger.steps["clean"] = {"rows_with_mojibake": len(garbled), "mojibake": name_rows(garbled)}
    state.rows = clean.drop_unusable(state.rows, recipe.data.clean, state.ledger, workers(recipe))
    if not state.rows:
        raise no_rows(f"domains.{name}", sum(state.rows_in.values()), state.ledger.dropped)
    return state


def _split_domain(recipe: Recipe, name: str, state: State, before: int, sources: Sequence[Opened]) -> None:
    place = f"domains.{name}"
    if not state.rows:
        raise no_rows(place, before, state.ledger.dropped)
    held = {row.split: row.source for row in state.rows if row.split}
    held |= {source.split: source.name for source in sources if source.split}
    given = frozenset(held)
    for source in sources:
        if source.split and not any(row.split == source.split for row in state.rows):
            lost = [each for each in state.ledger.dropped if each.where.source == source.name]
            error = no_rows(f"{place}.{source.split}: {source.name}", state.rows_in[source.name], lost)
            fix = "give other rows for it, or leave it out so that hfadapt makes one"
            raise DataError(error.what, problems=[replace(error.problems[0], fix=fix)])
    twins = sum(each.duplicate_of is not None for each in state.ledger.dropped)
    split.check_left(sum(row.split not in given for row in state.rows), held, twins, place)
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


def _write_domain(
    folder: Path,
    state: State,
    recipe: Recipe,
    name: str,
    sources: Sequence[Opened],
    fingerprint: str,
    seconds: float,
) -> None:
    """Writes the splits, dropped.jsonl and data.json of one domain into a new folder."""
    (folder / "data").mkdir(parents=True)
    store = stored.Store(folder / "data" / stored.FILE)
    for part in SPLITS:
        own = [row for row in state.rows if row.split == part]
        write_rows(folder / "data" / f"{part}.parquet", own, state, store)
    with (folder / DROPPED).open("w", encoding="utf-8") as file:
        for each in state.ledger.dropped:
            file.write(json.dumps(each.as_json(), ensure_ascii=False) + "\n")
    counts = {part: Counter(name for r in state.rows if r.split == part for name in r.classes) for part in SPLITS}
    record = make_record(
        state,
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
