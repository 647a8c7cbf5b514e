"""The security checks of one cell: what an attacker can learn from the adapter, and what careless input does to it.

Membership inference, exposure of planted canaries, verbatim repetition and personal data in generations, robustness.
Every check takes a seeded sample of rows, as many as a fixed amount of arithmetic allows, and says how many it took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfadapt.core import registry
from hfadapt.data import read_split
from hfadapt.evaluate.metrics.rows import sampling
from hfadapt.evaluate.privacy import membership as mia
from hfadapt.evaluate.privacy.exposure import exposure
from hfadapt.evaluate.privacy.regurgitation import personal_data, verbatim
from hfadapt.evaluate.privacy.token_scores import score_tokens
from hfadapt.evaluate.robustness import perturbations, robustness
from hfadapt.modalities import IGNORED, Example, Row
from hfadapt.records.evidence import Membership, SecurityRecord, Verbatim

if TYPE_CHECKING:
    from hfadapt.evaluate.context import EvaluationContext

MOST_ROWS, LEAST_ROWS = 200, 24
"""Rows of a check: members, non-members, perturbed rows. Fewer than the most where the arithmetic would take long."""

LIMIT_FLOPS = {"cpu": 5e12, "cuda": 5e14}
"""Arithmetic of one check on a kind of device, about half a minute of it; 2 operations a parameter and token."""

GENERATIONS = 24


def check(context: EvaluationContext) -> SecurityRecord:
    """All checks that fit the task; the parts of the record that do not fit are None.

    Canaries are looked for where `data.canaries` planted some; without them there is nothing to be found.
    """
    started = time.perf_counter()
    say = context.progress.say
    say(f"{context.cell.domain}: leak checks")
    inferred, repeated = _leaks(context)
    exposed = exposure(context)
    written = None
    if context.task.writes and not context.choices:
        prompts = context.encode(mia.sample(context.rows, GENERATIONS, context.lock.data.seed, "prompts"))
        written = personal_data(context, prompts, _training_texts(context))
    say(f"{context.cell.domain}: robustness checks")
    passes = 2 * (1 + len(perturbations(context.schema)))
    perturbed = mia.sample(context.rows, affordable(context, context.test, passes), context.lock.data.seed, "perturbed")
    return SecurityRecord(
        domain=context.cell.domain,
        target=context.cell.target,
        membership=inferred,
        canaries=exposed,
        verbatim=repeated,
        personal_data=written,
        robustness=robustness(context, perturbed),
        seconds=time.perf_counter() - started,
    )


def affordable(context: EvaluationContext, examples: Sequence[Example], passes: int) -> int:
    """How many rows of this length may be passed through the model so often: LEAST_ROWS … MOST_ROWS.

    It follows from the rows, the model and the kind of device alone, so that the same rows are taken every time.
    """
    if not examples:
        return MOST_ROWS
    tokens = float(np.mean([example.tokens for example in examples]))
    if any(len(choice) > 1 for choice in context.choices.values()):
        # Answers of several tokens are scored one by one.
        passes *= 1 + len(context.choices)
    limit = LIMIT_FLOPS.get(context.device.type, LIMIT_FLOPS["cpu"])
    return int(np.clip(limit / (2 * context.base.parameters * tokens * passes), LEAST_ROWS, MOST_ROWS))


def _leaks(context: EvaluationContext) -> tuple[Membership | None, Verbatim | None]:
    """Membership inference and verbatim repetition, from the same passes over the same rows."""
    seed = context.lock.data.seed
    trained = mia.sample(read_split(context.cell.folder, "train", limit=20 * MOST_ROWS), MOST_ROWS, seed, "members")
    held: list[Row] = [*context.rows, *read_split(context.cell.folder, "validation", limit=MOST_ROWS)]
    members, others = _scorable(context, trained), _scorable(context, mia.sample(held, MOST_ROWS, seed, "non-members"))
    # Members and non-members pass through adapter and base.
    count = affordable(context, [example for _, example in (*members, *others)], 4)
    members, others = (mia.sample(part, count, seed, "affordable") for part in (members, others))
    if len(members) < mia.FOLDS or len(others) < mia.FOLDS:
        return None, None
    examples = [example for _, example in (*members, *others)]
    first = len(members)
    repeated = None
    if context.task.writes and not context.choices:
        adapter, base = score_tokens(context, examples), score_tokens(context, examples, adapter=False)
        attacks = mia.token_attacks(adapter, base, examples, context.base.tokenizer.decode)
        repeated = verbatim(
            examples[:first],
            adapter[:first],
            base[:first],
            examples[first:],
            adapter[first:],
            confidence=context.lock.evaluate.confidence,
        )
    else:
        untrained = context.task.baseline == "base"
        attacks = mia.choice_attacks(
            context.score(examples), context.score(examples, adapter=False) if untrained else None
        )

    def seen(part: Sequence[tuple[Row, Example]]) -> list[Any]:
        if context.schema.media:
            return [registry.modality(context.schema.modality).vector(row["look"]) for row, _ in part]
        return [mia.row_text(context.schema, row) for row, _ in part]

    inferred = mia.membership(
        {name: (values[:first], values[first:]) for name, values in attacks.items()},
        (seen(members), seen(others)),
        **sampling(context.lock),
    )
    return inferred, repeated


def _scorable(context: EvaluationContext, rows: Sequence[Row]) -> list[tuple[Row, Example]]:
    """Rows with their examples, without those whose answer was cut off."""
    single = not context.task.writes
    return [
        (row, example)
        for row, example in zip(rows, context.encode(rows), strict=True)
        if single or any(label != IGNORED for label in example.labels[1:])
    ]


def _training_texts(context: EvaluationContext) -> Iterator[str]:
    """All training rows, one text a row, a few thousand rows at a time in memory."""
    from pyarrow import parquet

    with parquet.ParquetFile(context.cell.folder / "data" / "train.parquet") as file:
        for batch in file.iter_batches(batch_size=4096):
            rows: list[dict[str, Any]] = batch.to_pylist()
            yield from (mia.row_text(context.schema, row) for row in rows)
