"""Ways to a cell that can be exported, and what every format has to keep of it."""

from __future__ import annotations

import pytest
from tiny import command, labelled, questions, recipe_fields, tagged, write_recipe, write_rows
from tiny_sounds import make_hearing_models, write_sounds

from hfadapt import load_adapted
from hfadapt.core.errors import RequestError
from hfadapt.export.write import export
from hfadapt.run_folder import Cell

OTHER_TASKS = {
    "token-classification": lambda: tagged(100),
    "text-regression": lambda: [{"text": row["text"], "score": float(len(row["text"]))} for row in labelled(100)],
    "multi-label-classification": lambda: [{"text": row["text"], "labels": [row["label"]]} for row in labelled(100)],
    "embedding": lambda: questions(100),
    "reranking": lambda: questions(100),
    "masked-lm": lambda: [{"text": row["text"]} for row in labelled(100)],
}
"""Rows by which an encoder learns other tasks than classes."""
TEXTS = ["lovely bright film superb", "dreadful stale film awful", "the paper window", "a", "warm " * 60]


def trained(folder, model, task, rows, **fields):
    """A cell that was trained and evaluated."""
    write_rows(folder / "one.jsonl", rows)
    fields = {"train": {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01}, **fields}
    fields = recipe_fields(model, task, **fields)
    fields["evaluate"] |= {"security": False}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


def trained_on_sounds(folder, model):
    """Likewise of recordings; returns the cell and some of their files."""
    make_hearing_models(folder)
    write_sounds(folder / "sounds", 80)
    domains = {"one": {"source": "sounds"}}
    cell = trained(folder, folder / model, "audio-classification", [], domains=domains, dtype="float32")
    return cell, sorted((folder / "sounds").rglob("*.wav"))[::20]


def answers_in_float32(folder, models, task, format):
    """Asserts that a format's float32 file answers as the cell does, and knows no variant of another name."""
    model = models / ("mlm" if task == "masked-lm" else "encoder")
    cell = trained(folder, model, task, OTHER_TASKS[task](), dtype="float32")
    done = export(cell, format, folder / "out", variant="float32")
    (judged,) = done.record.judged
    assert judged.agreement == 1.0
    assert judged.kl_nats < 1e-6
    expected, found = (load_adapted(place).predict(TEXTS) for place in (cell.folder, folder / "out"))
    assert [each.label for each in found] == [each.label for each in expected]
    for one, other in zip(found, expected, strict=True):
        numbers = [(each.number or 0.0, *(each.vector or ())) for each in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    with pytest.raises(RequestError, match="no such variant"):
        export(cell, format, folder / "none", variant="int4")
