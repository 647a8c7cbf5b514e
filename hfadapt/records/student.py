"""student.json: a smaller model of the adapted one, and what it costs."""

from __future__ import annotations

from typing import ClassVar

from hfadapt.core.spec import Record, Spec
from hfadapt.records.stages import Metric, Versions


class Shape(Spec):
    """The size of a model: `width` are the units of a feed-forward part, `tokens` its vocabulary, None where it has
    none. `embeddings` are the parameters that belong to tokens."""

    layers: int
    width: int | None
    tokens: int | None
    parameters: int
    embeddings: int


class Considered(Spec):
    """A shape that was weighed against the target's budget; `bytes` and `seconds` are of the export that fits best."""

    layers: int
    ffn: float
    bytes: int
    seconds: float | None
    fits: bool


class StudentRecord(Record):
    """The student beside the adapted model, on the same test rows; it lies in `folder`, a run of its own.

    Where the adapted model fits already none is `made`, and `note` says so. In `metrics` the adapted model is the base;
    `points` of the leading one are lost, by the interval `points_low` to `points_high`; `before` are the same metrics
    of what the adapter was compared with. `cut_otherwise` is the share of test rows that the smaller vocabulary cuts
    into other tokens. Seconds are medians of one row and of 32 rows, of both models in turn; `teacher` are the hashes
    of the adapter's files.
    """

    FILE: ClassVar[str] = "student.json"
    domain: str
    target: str
    made: bool
    note: str = ""
    folder: str | None = None
    adapted: Shape | None = None
    student: Shape | None = None
    cut_otherwise: float = 0.0
    considered: tuple[Considered, ...] = ()
    rows: int = 0
    steps: int = 0
    training_seconds: float = 0.0
    metrics: tuple[Metric, ...] = ()
    before: dict[str, float] = {}
    metric: str = ""
    points: float | None = None
    points_low: float | None = None
    points_high: float | None = None
    limit: float = 0.0
    adapted_seconds: float | None = None
    seconds: float | None = None
    adapted_seconds_of_32: float | None = None
    seconds_of_32: float | None = None
    teacher: dict[str, str] = {}
    weights_sha256: str = ""
    versions: Versions | None = None
