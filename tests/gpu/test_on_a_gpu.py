"""What must hold on a CUDA device as it does on a CPU; `benchmarks/gpu.sh` runs these. DRY=1 runs them on
whatever device there is."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch
from tiny import After, command, labelled, pairs, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.models.attach import open_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_base
from hfadapt.models.merge import open_merged
from hfadapt.run_folder import Cell, read_steps

CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (CUDA or os.environ.get("DRY")), reason="there is no CUDA device"),
]
NEAR = {"none": 2e-2 if CUDA else 1e-3, "int8": 3e-2, "nf4": 3e-2}
"""Losses in 16 bits, and on bases of 8 and 4."""


def train(folder, model, rows, task="causal-lm", *, fails=False, runs="runs", **fields) -> Cell:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "one.jsonl", rows)
    own = {"batch_rows": 8, "max_steps": 8, "learning_rate": 3e-3, **fields.pop("train", {})}
    write_recipe(folder / "tiny.yaml", recipe_fields(model, task, train=own, **fields))
    done = command("train", "tiny.yaml", "--runs", runs, folder=folder)
    assert (done.code == 0) != fails, done.err
    return Run(folder / runs / "tiny").cell("one", "this-machine")


def losses(cell: Cell) -> list[float]:
    return [step["loss"] for step in read_steps(cell.folder / "metrics.jsonl") if "loss" in step]


@pytest.mark.parametrize("quant", ["none", "int8", "nf4"])
def test_fast_is_plain(models, tmp_path, quant) -> None:
    fast = train(tmp_path / "fast", models / "lm", pairs(60), quant=quant)
    plain = train(tmp_path / "plain", models / "lm", pairs(60), quant=quant, train={"fast": False})
    assert losses(fast) == pytest.approx(losses(plain), rel=NEAR[quant])


def test_resumed_equals_uninterrupted(models, tmp_path, monkeypatch) -> None:
    @contextmanager
    def interrupted():
        yield After(3)

    whole = train(tmp_path, models / "encoder", labelled(80), "text-classification")
    with monkeypatch.context() as patch:
        patch.setattr("hfadapt.train.cells.interruptible", interrupted)
        train(tmp_path, models / "encoder", labelled(80), "text-classification", runs="parts", fails=True)
    parts = train(tmp_path, models / "encoder", labelled(80), "text-classification", runs="parts")
    assert parts.train.resumed_from_step
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3 if CUDA else 1e-6)


def test_co_trained_adapters_are_what_they_are_alone(models, tmp_path) -> None:
    domains = {"one": {"source": "one.jsonl"}, "two": {"source": "two.jsonl"}}
    write_rows(tmp_path / "two.jsonl", labelled(80, seed=3))
    about = {"domains": domains, "data": {"dedupe": {"across_domains": False}, "validation": 8, "test": 8}}
    found = [
        train(
            *(tmp_path, models / "encoder", labelled(80), "text-classification"),
            **(about | {"train": {"together": together}, "runs": f"together-{together}"}),
        )
        for together in (True, False)
    ]
    assert losses(found[0]) == pytest.approx(losses(found[1]), rel=NEAR["none"])


def test_merged_answers_as_the_adapter(models, tmp_path) -> None:
    cell = train(tmp_path, models / "encoder", labelled(80), "text-classification", dtype="float32")
    device = torch.device("cuda" if CUDA else "cpu")
    labels, lock = cell.data.labels, cell.lock
    base = load_base(BaseRef.of(lock), labels, device)
    adapted = open_adapter(base, cell.adapter, lock.adapter.method, device).eval()
    merged = open_merged(lock, labels, cell.adapter, "float32", device).model
    batch = base.tokenizer([row["text"] for row in cell.read_split("test")], padding=True, return_tensors="pt")
    with torch.no_grad():
        one, other = (model(**batch.to(device)).logits for model in (adapted, merged))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not CUDA, reason="torch counts the memory of CUDA devices alone")
def test_memory_is_as_planned(models, tmp_path) -> None:
    cell = train(tmp_path, models / "lm", pairs(60))
    measured = cell.train.memory["train"]
    assert measured.measured_peak_bytes <= 1.15 * measured.predicted_peak_bytes
