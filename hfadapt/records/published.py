"""The records of what left a run: adapters that were published, and folders that were exported."""

from __future__ import annotations

from typing import ClassVar

from hfadapt.core.spec import Record, Spec
from hfadapt.records.stages import Versions

# --- publish.json ----------------------------------------------------------------------------------------------------


class PublishedFile(Spec):
    """One file as it was sent: `name` is its path in the repository."""

    name: str
    bytes: int
    sha256: str


class PublishRecord(Record):
    """Where a cell's adapter was published, and what was found when it was downloaded again.

    `new_commit` is false when the repository held the same files already; `loaded_difference` is the mean difference
    of a check row's loss between the trained adapter and the downloaded one, in nats, None where it was not scored.
    """

    FILE: ClassVar[str] = "publish.json"
    domain: str
    target: str
    repo: str
    folder: str
    private: bool
    commit: str
    tag: str
    new_commit: bool
    files: tuple[PublishedFile, ...]
    license: str
    loaded_difference: float | None
    collection: str | None = None
    versions: Versions


# --- export.json -----------------------------------------------------------------------------------------------------


class ExportRecord(Record):
    """An exported folder: in which form, and how it scored when it was opened again with plain transformers.

    `variant` is the form's name in drift.json, None where nothing can drift; `kl_nats` what was measured there.
    `difference` is the mean difference of a label's loss between what was written and what was read back, in nats, and
    `evaluated_difference` that between what was read back and the adapter as it was evaluated.
    """

    FILE: ClassVar[str] = "export.json"
    domain: str
    target: str
    format: str
    variant: str | None
    storage: str
    forced: str | None = None
    kl_nats: float | None = None
    delta: float | None = None
    rows: int
    difference: float
    tolerance: float
    evaluated_difference: float | None
    files: tuple[PublishedFile, ...]
    versions: Versions
