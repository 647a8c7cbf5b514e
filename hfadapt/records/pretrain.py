"""pretrain.json and without_pretrain.json: the adaptation to texts before the task, and what it changed."""

from __future__ import annotations

from typing import ClassVar

from hfadapt.core.spec import Record
from hfadapt.records.evidence import Compute
from hfadapt.records.stages import Metric, Phase, PhaseMeasure, Versions


class PretrainRecord(Record):
    """What was learned of texts without labels, before the task.

    `texts` were learned from, with `general` ones beside them; `own` are those of the domain's training rows.
    `like_held_out` texts were left out because they are like a validation or test row. `loss_before` and `loss_after`
    are the mean loss per label on the `validation` texts that were held back. `tensors` low-rank weights came out.
    """

    FILE: ClassVar[str] = "pretrain.json"
    domain: str
    target: str
    objective: str
    learned: str
    own: bool
    texts: int
    general: int
    validation: int
    like_held_out: int
    steps: int
    epochs: float
    tokens: int
    labelled_tokens: int
    first_loss: float | None
    final_loss: float | None
    loss_before: float | None
    loss_after: float | None
    seconds: float
    predicted_seconds: float | None = None
    resumed_from_step: int | None = None
    fast_path: str | None = None
    tensors: int
    trainable_parameters: int
    weights_sha256: str = ""
    memory: dict[Phase, PhaseMeasure] = {}
    compute: Compute | None = None
    versions: Versions


class WithoutPretrainRecord(Record):
    """The adapter against one that was trained on the task alone, for as many steps, on the same test rows.

    In `metrics` that other adapter is the base. `seconds` are those of its training.
    """

    FILE: ClassVar[str] = "without_pretrain.json"
    domain: str
    target: str
    rows: int
    steps: int
    metrics: tuple[Metric, ...]
    seconds: float
    versions: Versions
