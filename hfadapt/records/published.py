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


class Judged(Spec):
    """A form of a format with a runtime of its own: its files as that runtime runs them, beside the adapter as it was
    trained, on the same test rows.

    `value` is the task's leading metric, and `points` what was lost of it, hundredths of a share or percent, with the
    interval of a paired bootstrap. `kl_nats` and `most_kl_nats` are the mean and
    largest divergence of a label's answer. `agreement` is the share of answers that are alike (`alike` says when), and
    `decisive_agreement` that of the `decisive` ones, in which the adapter is not close to another answer. `latency_ms`
    is the median of one row here; where the cell's target only serves, `there_seconds` is what an answer takes there,
    right within a factor of two, None where that is not known, and `there` what that and the bytes are to its budget.
    `refused` are the reasons why it must not be shipped; `by_chance` says that all of them are losses which so few rows
    may show of a form that is within the limits.
    """

    form: str
    bytes: int
    rows: int
    metric: str
    value: float
    points: float
    points_low: float
    points_high: float
    kl_nats: float
    most_kl_nats: float
    answers: int
    agreement: float
    decisive: int
    decisive_agreement: float | None
    alike: str
    latency_ms: float
    there_seconds: float | None = None
    there: str = ""
    operators: dict[str, int] = {}
    refused: tuple[str, ...] = ()
    by_chance: bool = False


class DeviceRecord(Record):
    """What of a cell left for a target that only serves, against the target's budget; its export.json says the rest.

    `folder` is its name in the cell's; `format` is None where hfadapt writes nothing that runs there, and `note` says
    why. `seconds` is the median of a row here, `estimated_seconds` what an answer takes there, right within a factor of
    two, None where nothing is known of such a device. `proved` is false where the estimate is too near to the budget
    (`most_seconds`) to tell. Where a student left (`of_student`), `points` are lost against that.
    """

    FILE: ClassVar[str] = "device.json"
    domain: str
    target: str
    of_student: bool = False
    format: str | None
    form: str | None = None
    folder: str | None = None
    runtime: str = ""
    bytes: int = 0
    most_bytes: int | None = None
    seconds: float | None = None
    estimated_seconds: float | None = None
    most_seconds: float | None = None
    proved: bool = False
    metric: str = ""
    points: float | None = None
    points_low: float | None = None
    points_high: float | None = None
    note: str = ""


class ExportRecord(Record):
    """An exported folder: in which form, and how it scored when it was opened again in its own runtime.

    `variant` is the form's name in drift.json, None where nothing can drift; `kl_nats` or,
    of numbers, `spreads` what was measured there.
    `difference` is the mean difference of a label's loss between what was written and what was read back, in nats, and
    `evaluated_difference` that between what was read back and the adapter as it was evaluated. `tolerance` is None for
    a form that rounds; `judged` are then all forms that were tried, but for those that `failed` to run, and `limits`
    what they had to keep. `runtime` ran the files on a machine with the instruction sets in `features`, which integer
    arithmetic may depend on.
    """

    FILE: ClassVar[str] = "export.json"
    domain: str
    target: str
    format: str
    variant: str | None
    storage: str
    forced: str | None = None
    kl_nats: float | None = None
    spreads: float | None = None
    delta: float | None = None
    rows: int
    difference: float
    tolerance: float | None
    runtime: str = ""
    features: tuple[str, ...] = ()
    limits: dict[str, float] = {}
    judged: tuple[Judged, ...] = ()
    failed: dict[str, str] = {}
    evaluated_difference: float | None
    files: tuple[PublishedFile, ...]
    versions: Versions
