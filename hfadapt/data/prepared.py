"""From sources to splits for all domains of a recipe, cached by what the sources hold and what was asked.

All domains are prepared together, since rows are compared across them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.cache import folder as cache_folder
from hfadapt.core.cache import made, there
from hfadapt.core.errors import DataError, Problem
from hfadapt.data import canaries, in_memory, stream
from hfadapt.data.sources import Opened, open_domain
from hfadapt.data.split_files import RECORD, read_split
from hfadapt.files import stored
from hfadapt.recipe.schema import NOTES, Domain, Recipe
from hfadapt.records.stages import DataRecord

CODE_VERSION = 15
"""Raised whenever the same sources and settings would give other rows."""

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

    def copy_into(self, cell_folder: Path) -> DataRecord:
        """Puts the splits, dropped.jsonl and data.json into a cell; each file appears whole or not at all.

        Returns:
            The record that was written.
        """
        target = cell_folder / "data"
        target.mkdir(parents=True, exist_ok=True)
        paths = sorted((self.folder / "data").iterdir())
        for name in {canaries.FILE, stored.FILE} - {path.name for path in paths}:
            (target / name).unlink(missing_ok=True)
        for path in paths:
            temporary = target / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"
            _copy(path, temporary)
            temporary.replace(target / path.name)
        self.record.write(cell_folder / RECORD)
        return self.record

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of one split."""
        return read_split(self.folder, split)


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
    opened = open_all(recipe, recipe_folder)
    fingerprint = fingerprint_of(recipe, opened)
    prepare = (stream if recipe.data.streaming else in_memory).prepare
    folder = made(
        (cache or cache_folder()) / "prepared" / fingerprint,
        lambda ready: prepare(recipe, opened, ready, fingerprint, say),
        check=lambda folder: _records(recipe, folder),
    )
    return _domains(recipe, opened, folder)


def prepared_before(recipe: Recipe, opened: Mapping[str, Sequence[Opened]]) -> dict[str, PreparedDomain] | None:
    """All domains, where these sources as they are now were prepared with these settings; None where they were not."""
    folder = there(cache_folder() / "prepared" / fingerprint_of(recipe, opened), lambda found: _records(recipe, found))
    return None if folder is None else _domains(recipe, opened, folder)


def open_all(recipe: Recipe, recipe_folder: Path) -> dict[str, list[Opened]]:
    """The sources of all domains. Raises DataError for those that cannot be found, all at once."""
    opened: dict[str, list[Opened]] = {}
    problems: list[Problem] = []
    for name, domain in recipe.domains.items():
        try:
            opened[name] = open_domain(domain, recipe_folder, streaming=recipe.data.streaming)
        except DataError as error:
            problems.extend(replace(each, place=f"domains.{name}: {each.place}") for each in error.problems)
    if problems:
        raise DataError("sources cannot be read", problems=problems)
    return opened


def _records(recipe: Recipe, folder: Path) -> dict[str, DataRecord]:
    return {name: DataRecord.read(folder / name / RECORD) for name in recipe.domains}


def _domains(recipe: Recipe, opened: Mapping[str, Sequence[Opened]], folder: Path) -> dict[str, PreparedDomain]:
    found = _records(recipe, folder)
    return {
        name: PreparedDomain(folder / name, noted(_noticing(found[name], opened[name]), domain))
        for name, domain in recipe.domains.items()
    }


def _noticing(record: DataRecord, sources: Sequence[Opened]) -> DataRecord:
    """The record with what was noticed on finding the sources: what lies beside the data may have changed since."""
    now = [each for source in sources for each in source.noticed]
    return record.model_copy(update={"noticed": (*now, *(each for each in record.noticed if each not in now))})


def _copy(path: Path, target: Path) -> None:
    """Files that are values are never written again: where the disk can, they are there once."""
    if path.name == stored.FILE:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def noted(record: DataRecord, domain: Domain) -> DataRecord:
    """The record with what the recipe notes of its sources."""
    notes = {name: value for name in NOTES if (value := getattr(domain, name))}
    return record.model_copy(update={"sources": tuple(each.model_copy(update=notes) for each in record.sources)})


def fingerprint_of(recipe: Recipe, opened: Mapping[str, Sequence[Opened]]) -> str:
    """Content, settings and code; neither model nor target, so that these can change without preparing again."""
    data = recipe.data.model_dump(
        mode="json", exclude={"max_length", "too_long", "packing", "workers", "augment", "allow"}
    )
    what = {
        "code": CODE_VERSION,
        "packages": [registry.made_by("schemas", name) for name in registry.names("schemas")],
        "forms": sorted(registry.task(recipe.task).schemas),
        "data": data,
        "template": recipe.template.model_dump(mode="json") if recipe.template else None,
        "domains": {name: domain.model_dump(mode="json") for name, domain in recipe.without_notes().domains.items()},
        "sources": {name: [(each.name, each.fingerprint) for each in sources] for name, sources in opened.items()},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
