"""student.json: a smaller model of the adapted one, and what it costs."""

from __future__ import annotations

from typing import ClassVar

from hfadapt.core.spec import Record, Spec
from hfadapt.records.evidence import Slice
from hfadapt.records.stages import Metric, Versions


class Part(Spec):
    """One of `embeddings` (with an output layer that is tied to them), `layers`, `head` and `other`."""

    name: str
    parameters: int
    bytes: int


class Shape(Spec):
    """The size of a model.

    `layers`, and `width`, the units of a feed-forward part, are None where these are not alike; `tokens` is its
    vocabulary, None where it has none. `embeddings` are the parameters that belong to tokens, `multiply_adds` those of
    a row of the longest length by kind, `integer_share` that of them which a dynamic form of 8 bits does in whole
    numbers, and `activation` is what the config says.
    """

    layers: int | None
    width: int | None
    tokens: int | None
    parameters: int
    embeddings: int
    activation: str | None = None
    parts: tuple[Part, ...] = ()
    multiply_adds: dict[str, int] = {}
    integer_share: float | None = None

    def beside(self, whole: Shape) -> list[str]:
        """What of another model it has, in words."""
        said = [f"{self.layers} of {whole.layers} layers"] if self.layers != whole.layers else []
        if self.width != whole.width:
            said.append(f"{self.width:,} of {whole.width:,} units in a feed-forward part")
        if self.tokens != whole.tokens:
            said.append(f"{self.tokens:,} of {whole.tokens:,} tokens")
        if self.activation != whole.activation:
            said.append(f"{self.activation} in the place of {whole.activation}")
        return said


class Considered(Spec):
    """A shape that was weighed against the target's budget; `bytes` and `seconds` are of the export that fits best.

    Of several that fit some were trained for `tried_steps`, and the one with the least `tried_loss` of validation rows
    was `taken`; `tried_from` is the hash of all that decided what such a training comes to.
    """

    layers: int
    ffn: float
    bytes: int
    seconds: float | None
    fits: bool
    tried_steps: int = 0
    tried_loss: float | None = None
    tried_from: str = ""
    taken: bool = False


class Rounding(Spec):
    """What rounding to 8 bits costs the student, worked out on validation rows without a runtime: points of the leading
    metric and nats of a label. `trained` are the steps in which it has learned how it will be rounded, and `before`
    what it cost without these, where that was tried; `dismissed` is what it cost with such steps, where they were of no
    use."""

    points: float
    kl_nats: float
    trained: int = 0
    before: tuple[float, float] | None = None
    dismissed: tuple[float, float] | None = None


class OnPolicy(Spec):
    """A second training on `rows` that the student wrote itself, for so many `steps`; the loss of validation rows in
    nats of a label `before` and `after` it, and whether it was `kept`."""

    rows: int
    steps: int
    before: float
    after: float
    kept: bool


class Check(Spec):
    """A check of an adapter that was made of the student too: `part` of the record, `name` of what was done, and what
    was found for each: the AUC of the strongest `membership` attack, or what a change of the rows (`robustness`) costs
    of the leading metric."""

    part: str
    name: str
    adapted: float
    student: float


class StudentRecord(Record):
    """The student beside the adapted model, on the same test rows; it lies in `folder`, a run of its own.

    Where the adapted model fits already none is `made`, and `note` says so. In `metrics` and `slices` the adapted model
    is the base; `points` of the leading metric are lost, by the interval `points_low` to `points_high`; `before` are
    the same metrics of what the adapter was compared with, and `checks` come from both models' security.json; the
    student's own records lie in its folder. `cut_otherwise` is the share of test rows that the smaller vocabulary cuts
    into other tokens. `texts` without labels were answered by the adapted model and learned too. Seconds are medians of
    one row and of 32 rows, of both models in turn; `teacher` are the hashes of the adapter's files.
    """

    FILE: ClassVar[str] = "student.json"
    domain: str
    target: str
    made: bool
    note: str = ""
    folder: str | None = None
    base: str | None = None
    adapted: Shape | None = None
    student: Shape | None = None
    cut_otherwise: float = 0.0
    considered: tuple[Considered, ...] = ()
    rows: int = 0
    texts: int = 0
    steps: int = 0
    training_seconds: float = 0.0
    metrics: tuple[Metric, ...] = ()
    before: dict[str, float] = {}
    slices: tuple[Slice, ...] = ()
    checks: tuple[Check, ...] = ()
    metric: str = ""
    points: float | None = None
    points_low: float | None = None
    points_high: float | None = None
    limit: float = 0.0
    adapted_seconds: float | None = None
    seconds: float | None = None
    adapted_seconds_of_32: float | None = None
    seconds_of_32: float | None = None
    rounding: Rounding | None = None
    on_policy: OnPolicy | None = None
    teacher: dict[str, str] = {}
    weights_sha256: str = ""
    versions: Versions | None = None
