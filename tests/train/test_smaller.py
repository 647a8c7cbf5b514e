"""Memory that runs out in the middle of a training: fewer rows at a time, the same steps, twice at most."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import NO_CHECKS, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.run_folder import Cell
from hfadapt.train.passes import Passes

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
ERRORS = {
    "of the device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "of Python": MemoryError,
    "of torch on a CPU": lambda: RuntimeError(f"{CPU} 8589934592 bytes. Error code 12 (Cannot allocate memory)"),
}


@pytest.fixture
def project(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(72))
    train = {"batch_rows": 8, "micro_batch_rows": 8, "max_steps": 4, "checkpoint_every_steps": 2}
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", train=train, evaluate=NO_CHECKS))
    return tmp_path


@pytest.fixture
def short_of_memory(monkeypatch):
    """Says at what step, and for how many rows at once, there is no memory."""
    loss = Passes.loss

    def limit(error, rows, step=3):
        def short(self, micro, weights):
            if len(micro.rows) >= rows and micro.rows[0].job.state.step >= step - 1 and torch.is_grad_enabled():
                raise error()
            return loss(self, micro, weights)

        monkeypatch.setattr(Passes, "loss", short)

    return limit


def trained(folder):
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.mark.parametrize("name", ERRORS)
def test_it_goes_on_from_the_checkpoint_with_half_the_rows(project, short_of_memory, name):
    short_of_memory(ERRORS[name], rows=8)
    done = command("train", "tiny.yaml", folder=project)
    assert done.code == 0, done.err
    assert "out of memory: one goes on from the last checkpoint with 4 rows at a time" in done.err
    assert "going on from step 2 of 4" in done.err
    cell = trained(project)
    assert (cell.train.halvings, cell.train.steps, cell.train.resumed_from_step) == (1, 4, 2)
    assert (cell.lock.train.micro_batch_rows, cell.lock.train.batch_rows) == (4, 8)


def test_the_losses_are_those_of_a_training_that_had_enough(project, short_of_memory):
    short_of_memory(MemoryError, rows=4)
    assert command("train", "tiny.yaml", folder=project).code == 0
    assert trained(project).train.halvings == 2
    losses = [step.loss for step in trained(project).steps() if step.loss is not None]
    (project / "runs").rename(project / "short")
    short_of_memory(MemoryError, rows=99)
    assert command("train", "tiny.yaml", folder=project).code == 0
    assert losses == pytest.approx([step.loss for step in trained(project).steps() if step.loss is not None], rel=1e-3)


def test_after_two_halvings_it_names_plans_that_need_less(project, short_of_memory):
    short_of_memory(MemoryError, rows=1)
    done = command("train", "tiny.yaml", folder=project)
    assert done.code == 1
    assert done.err.count("goes on from the last checkpoint") == 2
    assert "out of memory during train; the plan predicted" in done.err
    assert 1 <= done.err.count("\n  or:      ") <= 3
    assert "train.micro_batch_rows=1" in done.err
    state = json.loads((trained(project).folder / "cell.json").read_text())
    assert state["status"] == "failed"
    assert [path.name for path in (trained(project).folder / "checkpoints").iterdir()] == ["step-000002"]


def test_what_is_no_lack_of_memory_is_not_tried_again(project, short_of_memory):
    short_of_memory(lambda: RuntimeError("shape mismatch"), rows=1)
    done = command("train", "tiny.yaml", folder=project)
    assert done.code == 1
    assert "goes on from the last checkpoint" not in done.err
