"""What was written is opened again without hfadapt and scored; it has to be what was to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.export.choice import measured
from hfadapt.records.evidence import DriftRecord
from hfadapt.records.published import ExportRecord
from hfadapt.run_folder import PREDICTIONS, Cell, read_rows

if TYPE_CHECKING:
    import torch

    from hfadapt.formats import Form, Format
    from hfadapt.tasks import Scores

ROWS = 64
"""Test rows on which the folder is compared."""
BATCH_ROWS = 16


def scores_of(cell: Cell, model: Any, device: torch.device) -> Scores:
    """Losses of the first test rows."""
    import torch

    from hfadapt.data import read_split
    from hfadapt.models.base import BaseRef
    from hfadapt.models.load import load_processor, pad_token_id, source_of
    from hfadapt.train.batches import padded

    lock, task = cell.lock, registry.task(cell.lock.task)
    tokenizer = load_processor(source_of(BaseRef.of(lock)), task.modality, lock.data.max_length)
    rows = read_split(cell.folder, "test")[:ROWS]
    examples = task.encode(rows, tokenizer, max_length=lock.data.max_length, labels=cell.data.labels)
    pad = pad_token_id(tokenizer)
    with torch.inference_mode():
        scores: Scores = task.score(model, examples, lambda each: padded(task, each, pad, device, BATCH_ROWS))
    return scores


def record_of(
    cell: Cell,
    kind: Format,
    form: Form | None,
    drift: DriftRecord | None,
    forced: str | None,
    written: Scores,
    found: Scores,
) -> ExportRecord:
    """What was found; raises RunError where it is not what was written."""
    from hfadapt.hardware.versions import versions

    difference, allowed = _difference(found, written.losses), kind.tolerance(cell, form)
    if not difference <= allowed:
        raise RunError(
            "the exported model does not score as the one that was written",
            place=kind.name,
            got=f"mean difference of a label's loss: {difference:.3g} nats",
            allowed=f"at most {allowed:g}",
            fix="export again; if it happens again, report it with lock.yaml",
        )
    variant = measured(form.name, drift) if form else None
    return ExportRecord(
        domain=cell.domain,
        target=cell.target,
        format=kind.name,
        variant=form.name if form else None,
        storage=form.storage if form else cell.lock.dtype,
        forced=forced,
        kl_nats=variant.kl_nats if variant else None,
        delta=variant.delta if variant else None,
        rows=len(found.losses),
        difference=difference,
        tolerance=allowed,
        evaluated_difference=_from_evaluation(cell, found),
        files=(),
        versions=versions("cpu"),
    )


def _difference(found: Scores, losses: Any) -> float:
    """Mean over the rows of the difference of their losses, per label."""
    import numpy as np

    return float(np.mean(np.abs(found.losses - np.asarray(losses)) / np.maximum(found.tokens, 1)))


def _from_evaluation(cell: Cell, found: Scores) -> float | None:
    """The difference from predictions.parquet, where the cell was evaluated."""
    path = cell.folder / PREDICTIONS
    if not path.exists():
        return None
    losses = [row["adapter_loss"] for row in read_rows(path, ["adapter_loss"])]
    return _difference(found, losses[: len(found.losses)])
