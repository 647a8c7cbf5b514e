"""What a plan can know of the data within seconds: what was prepared and measured, else a look at the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import model_facts
from hfadapt.models.folders import model_folder
from hfadapt.plan.reasons import longest_planned
from hfadapt.recipe.schema import AUTO, Recipe
from hfadapt.records.stages import DataRecord
from hfadapt.report.run_view import Run
from hfadapt.run_folder import Cell
from hfadapt.stages import compared, narrow

if TYPE_CHECKING:
    from hfadapt.data import PreparedDomain
    from hfadapt.data.sources import Opened

HASHED_BYTES = 1 << 30
"""Of the files of all domains, that are read to see whether they are those that were prepared."""
READ_BYTES = 64 << 20
"""Of the files of a domain that was not prepared, that are read to count its rows."""


def known_data(recipe: Recipe, recipe_folder: Path, run: Run) -> dict[str, DataRecord]:
    """Rows, labels and lengths of the domains that are done, as far as they can be known: nothing is fetched.

    Where the sources as they are now have been prepared, by a run or by `hfadapt check`, these are the rows; where they
    have not, as after `hfadapt new`, they are counted. Lengths are those that were measured with this tokenizer, else
    of a sample of the rows. Domains of the Hub, and large ones that are not prepared, are known from a cell alone.
    """
    seen, known = _Seen(recipe, recipe_folder), {}
    for domain, target in recipe.cells():
        cell = run.cell(domain, target)
        measured = cell.has(DataRecord) and same_data(recipe, domain, cell)
        if measured and seen.fingerprint in (None, cell.data.fingerprint):
            known[domain] = cell.data
        elif domain not in known:
            with suppress(HfadaptError):  # check and run say what is wrong with the data
                record = seen.record(domain)
                known |= {domain: record} if record is not None else {}
    return known


def same_data(recipe: Recipe, domain: str, cell: Cell) -> bool:
    """Whether the rows of a cell are those that the recipe asks for, as far as its settings tell."""
    if not cell.planned:
        return False
    recipe, before = recipe.without_notes(), cell.lock.without_notes()
    asked, had = recipe.data.model_dump(mode="json"), before.data.model_dump(mode="json")
    same = all(had[name] == value for name, value in asked.items() if value != AUTO)
    alike = (recipe.template, recipe.task, recipe.model) == (before.template, before.task, before.model)
    return same and alike and recipe.domains[domain] == before.domains.get(domain)


class _Seen:
    """The sources of a recipe that are on this machine, as they are now."""

    def __init__(self, recipe: Recipe, recipe_folder: Path) -> None:
        from hfadapt.data.prepared import fingerprint_of, prepared_before
        from hfadapt.data.sources import bytes_here, open_domain

        self._recipe, whole = recipe, compared(recipe, recipe.chosen)
        self._opened: dict[str, list[Opened]] = {}
        self._bytes: dict[str, int] = {}
        left = HASHED_BYTES
        for name, domain in whole.domains.items():
            with suppress(HfadaptError, OSError):
                size = bytes_here(domain, recipe_folder)
                if size is not None and size[0] <= left:
                    self._opened[name] = open_domain(domain, recipe_folder, streaming=recipe.data.streaming)
                    self._bytes[name] = size[1]
                    left -= size[0]
        complete = self._opened.keys() == whole.domains.keys()
        self.fingerprint = fingerprint_of(whole, self._opened) if complete else None
        self._prepared = (prepared_before(whole, self._opened) if complete else None) or {}

    def record(self, domain: str) -> DataRecord | None:
        """What is known of a domain, with lengths where the tokenizer is here; None where that would take too long.

        Raises:
            HfadaptError: the data cannot be used.
        """
        from hfadapt.data.measured import estimated, keep_lengths, kept_lengths, sampled

        recipe = narrow(self._recipe, [domain])
        prepared: PreparedDomain | None = self._prepared.get(domain)
        if prepared is not None:
            fingerprint: str | None = prepared.record.fingerprint
        else:
            fingerprint = f"{self.fingerprint} sampled" if self.fingerprint else None
        if fingerprint and (kept := kept_lengths(fingerprint, domain, recipe)) is not None:
            return kept
        rows: Sequence[Mapping[str, Any]] = ()
        if prepared is not None:
            record = prepared.record
        elif self._bytes.get(domain, READ_BYTES + 1) <= READ_BYTES:
            record, rows = estimated(recipe, domain, self._opened[domain])
        else:
            return None
        if self._tokenizer is None:
            return record
        rows = prepared.rows("train") if prepared is not None else rows
        facts = model_facts(BaseRef.of(recipe).location, recipe.task, max(1, len(record.labels)))
        record = sampled(record, rows, recipe, self._tokenizer, longest_planned(recipe, facts))
        if prepared is None and fingerprint:  # the rows of a preparation are measured as a whole by the next run
            keep_lengths(record, recipe, recipe.model, fingerprint)
        return record

    @cached_property
    def _tokenizer(self) -> Any:
        """What makes inputs of rows, where it can be loaded without fetching or unpacking a model; else None."""
        from hfadapt.core.progress import quiet_libraries
        from hfadapt.models.load import load_processor, resolve_model

        folder = model_folder(self._recipe.model)
        if folder is None:
            return None
        try:
            with quiet_libraries():
                return load_processor(resolve_model(str(folder)), registry.task(self._recipe.task).modality)
        except Exception:  # the libraries raise many kinds; the plan is then made without
            return None
