"""What a student writes itself, as rows of which it learns what the adapted model says of each token.

It makes other mistakes than its training rows show, and learns there what would have been better (Agarwal et al. 2024,
On-Policy Distillation of Language Models, arXiv 2306.13649).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hfadapt.core import registry
from hfadapt.data import lengths, read_split
from hfadapt.data.rows import SPLITS
from hfadapt.evaluate.generation import MOST_BATCH_ROWS, chosen_prompts, new_tokens
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.models.base import BaseRef
from hfadapt.models.generate import continuations
from hfadapt.models.merge import open_merged, save_base
from hfadapt.records.stages import SourceRecord
from hfadapt.run_folder import Cell
from hfadapt.student.texts import append

MOST_WRITTEN = 1000
SOURCE = "written by the student"


def write_own(
    student: Cell, folder: Path, device: torch.device, say: Callable[[str], None]
) -> tuple[BaseRef, int] | None:
    """Lets a trained student answer the prompts of its training rows, and adds what it drew to these rows.

    Args:
        folder: For the trained student as a base, from which it goes on.

    Returns:
        This base, and how many rows were added; None, and nothing is written, where no row asks for a text or all that
        it wrote is known.
    """
    lock, record = student.lock, student.data
    task, schema = registry.task(lock.task), registry.schema(record.form)
    base = open_merged(lock, record.labels, student.adapter, "float32", device)
    rows = {split: read_split(student.folder, split) for split in SPLITS}
    examples = task.encode(rows["train"], base.tokenizer, max_length=lock.data.max_length, labels=record.labels)
    prompts = chosen_prompts(examples, MOST_WRITTEN)
    say(f"{student.domain}: the student answers {len(prompts):,} prompts of its training rows")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(lock.train.seed)
        written = continuations(
            base.model.eval(),
            base.tokenizer,
            [prompt.ids for prompt in prompts],
            new_tokens(prompts),
            batch_rows=MOST_BATCH_ROWS,
            sampled=True,
        )
    added = []
    for prompt, ids in zip(prompts, written, strict=True):
        row = rows["train"][prompt.row]
        own = schema.reanswered(row, base.tokenizer.decode(ids, skip_special_tokens=True))
        if own is not None and schema.answers(own) != schema.answers(row)[-1:]:
            added.append(own)
    if not added:
        return None
    ref = save_base(
        base, folder, parent=BaseRef.of(lock), made_by="student", how="trained on the adapted model's answers"
    )
    rows["train"] = [*rows["train"], *added]
    sizes = lengths(rows["train"], task, base.tokenizer, labels=record.labels)
    append(student, rows, len(added), sizes, [SourceRecord(source=SOURCE, rows=len(added))])
    base.model = None
    release_memory()
    return ref.stored(lock.quant, "float32"), len(added)
