"""Robustness to careless input: the leading metric on test rows with typos, other casing, spacing and word order.

The changes are those of augmentation and leave the answer right; what a model has to produce is never touched. They
are drawn at random, so this is no search for the worst case. Libraries that search for it (TextAttack 0.3.11) cannot be
installed beside the versions that hfadapt pins.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.hashing import stable_hash
from hfadapt.evaluate.metrics.rows import ROW_PARTS, compare, leading, sampling
from hfadapt.modalities import Example, Operation, Row
from hfadapt.records.evidence import Estimate, Perturbation
from hfadapt.schemas import RowSchema
from hfadapt.tasks import Scores

if TYPE_CHECKING:
    from hfadapt.evaluate.context import EvaluationContext
    from hfadapt.records.stages import Metric


def perturbations(schema: RowSchema) -> Mapping[str, tuple[Operation, float]]:
    """The changes of the rows' modality, each with the share of a value that is changed."""
    return registry.modality(schema.modality).perturbations


def perturb(schema: RowSchema, rows: Sequence[Row], name: str, seed: int) -> list[dict[str, Any]]:
    """Copies of rows with one change to what the model is shown: text beside a label, prompt, or the user's turns.

    Args:
        schema: What the rows look like.
        rows: Prepared rows with `source` and `row`; they are not changed themselves.
        name: One of `perturbations`.
        seed: The data seed; a row is changed in the same way whichever rows are with it.
    """
    return [_changed(schema, row, name, seed) for row in rows]


def robustness(context: EvaluationContext, rows: Sequence[Row]) -> tuple[Perturbation, ...]:
    """The leading metric of baseline and adapter on the rows before and after each change.

    The interval of a drop is that of a paired bootstrap: the same rows with and without the change. Plain text that a
    language model learns to write has no part that could be changed alone, so there is nothing to report.
    """
    if not rows or all(context.schema.changed(row, lambda text, _: f"{text}.") == dict(row) for row in rows):
        return ()
    clean = context.encode(rows)
    base, adapter = context.score(clean, adapter=False), context.score(clean)
    name = leading(context.lock.evaluate.metrics, adapter).name
    found = []
    for change, (_, share) in perturbations(context.schema).items():
        changed = perturb(context.schema, rows, change, context.lock.data.seed)
        count = sum(new != dict(old) for new, old in zip(changed, rows, strict=True))
        if not count:
            continue
        examples = context.encode(changed)
        drop, value = _drop(context, name, adapter, _scores(context, adapter, clean, examples, adapter=True))
        base_drop, base_value = _drop(context, name, base, _scores(context, base, clean, examples, adapter=False))
        found.append(
            Perturbation(
                name=change,
                share=share,
                changed_rows=count,
                rows=len(rows),
                metric=name,
                base_clean=base_value.base,
                base_changed=base_value.adapter,
                adapter_clean=float(value.base or 0.0),
                adapter_changed=value.adapter,
                drop=drop,
                base_drop=base_drop,
            )
        )
    return tuple(found)


def _scores(
    context: EvaluationContext, before: Scores, clean: Sequence[Example], changed: Sequence[Example], *, adapter: bool
) -> Scores:
    """Scores of the changed rows; rows that the tokenizer reads as before (an uncased one, say) keep theirs."""
    if context.task.joint:
        # What a row has to find stands in the others.
        return context.score(changed, adapter=adapter)
    new = [i for i, (old, example) in enumerate(zip(clean, changed, strict=True)) if old.inputs != example.inputs]
    if not new:
        return before
    after = context.score([changed[i] for i in new], adapter=adapter)

    def merged(name: str) -> Any:
        old, own = getattr(before, name), getattr(after, name)
        if old is None or own is None:
            return None
        found = old.copy()
        found[new] = own
        return found

    return replace(before, **{name: merged(name) for name in ROW_PARTS})


def _drop(context: EvaluationContext, name: str, clean: Scores, changed: Scores) -> tuple[Estimate, Metric]:
    metric = compare(name, clean, changed, **sampling(context.lock))
    assert metric.delta is not None
    assert metric.low is not None
    assert metric.high is not None
    rows = metric.rows
    if metric.higher_is_better:
        # 0 - x rather than -x, which would write an unchanged metric as -0.
        return Estimate(value=0 - metric.delta, low=0 - metric.high, high=0 - metric.low, rows=rows), metric
    return Estimate(value=metric.delta, low=metric.low, high=metric.high, rows=rows), metric


def _changed(schema: RowSchema, row: Row, name: str, seed: int) -> dict[str, Any]:
    operation, share = perturbations(schema)[name]

    def change(value: Any, place: int) -> Any:
        key = stable_hash(seed, "perturb", row.get("source", ""), row.get("row", 0), name, place)
        return operation(value, share, random.Random(key))

    return schema.changed(row, change)
