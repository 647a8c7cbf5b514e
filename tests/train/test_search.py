"""Settings that are searched while training: the winner goes on, and is what it would be alone."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import NO_CHECKS, labelled, pairs, preferences, questions, recipe_fields, write_recipe, write_rows

from hfadapt import load_recipe, run
from hfadapt.core.errors import HfadaptError, RequestError
from hfadapt.core.show import Table
from hfadapt.hardware.processes import World
from hfadapt.models.attach import WEIGHTS
from hfadapt.plan.tries import LEAST_STEPS, halving
from hfadapt.records.search import SearchRecord
from hfadapt.run_folder import Cell
from hfadapt.train import cells as training
from hfadapt.train import search as searching
from hfadapt.train.job import Job
from hfadapt.train.loop import Loop

FLOAT32 = {"bfloat16": False}
RATES = [1e-3, 4e-3, 2e-2]


def trained(folder, model, rows, task="text-classification", until="train", **fields):
    """The cell of a run; `fields` as in `recipe_fields`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "one.jsonl", rows)
    evaluate = {"resamples": 200, **NO_CHECKS}
    given = {"train__max_steps": 40, "train__fast": FLOAT32, "dtype": "float32", "evaluate": evaluate, **fields}
    recipe = load_recipe(write_recipe(folder / "tiny.yaml", recipe_fields(model, task, **given)))
    run(recipe, recipe_folder=folder, folder=folder / "run", until=until)
    cell = Cell(folder / "run/one/this-machine")
    if until == "train":
        assert cell.state.status != "failed", cell.state.error
    return cell


def weights(cell):
    return load_file(cell.adapter / WEIGHTS)


def same(one, other, **within):
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, **within)


CLOSE = {"rtol": 1e-3, "atol": 2e-5}
EQUAL = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize(
    ("task", "model", "make", "more"),
    [
        ("text-classification", "encoder", labelled, {}),
        ("text-classification", "encoder", labelled, {"adapter__layers": 1, "train__epochs": 4.0}),
        ("causal-lm", "lm", pairs, {}),
        ("embedding", "encoder", questions, {"train__micro_batch_rows": 4}),
        # At higher rates rounding grows within the 40 steps.
        ("preference", "lm", preferences, {"search": {"learning_rate": [5e-4, 1e-3, 2e-3]}}),
    ],
    ids=["classes", "frozen layers", "language model", "joint losses", "reference"],
)
def test_the_winner_is_plain_training_with_what_the_lock_says(models, tmp_path, task, model, make, more):
    """Side by side, then alone; the tries that were given up leave nothing but their record."""
    search = {"search": {"learning_rate": RATES}, **more}
    found = trained(tmp_path / "found", models / model, make(200), task, **search)
    lock, record = found.lock, found.read(SearchRecord)
    rate = record.tries[record.chosen].settings["train.learning_rate"]
    assert (lock.train.learning_rate, lock.search) == (rate, None)
    assert record.together
    assert found.train.steps == 40 == record.training_steps
    assert found.train.frozen_layers == ("adapter__layers" in more)
    assert not [path for path in found.folder.iterdir() if path.name in ("search", "checkpoints")]
    assert [path.name for path in found.adapter.glob("*.safetensors")] == [WEIGHTS]
    train = {f"train__{name}": getattr(lock.train, name) for name in ("learning_rate", "warmup_ratio", "hold_ratio")}
    plain = trained(tmp_path / "plain", models / model, make(200), task, **{**more, **train, "search": None})
    same(found, plain, **CLOSE)
    losses = [[step.loss for step in cell.steps() if step.loss is not None] for cell in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_one_candidate_is_plain_training_in_every_bit(models, tmp_path):
    found = trained(tmp_path / "one", models / "encoder", labelled(120), search={"learning_rate": [4e-3]})
    plain = trained(tmp_path / "plain", models / "encoder", labelled(120), train__learning_rate=4e-3)
    same(found, plain, **EQUAL)
    assert found.lock.train == plain.lock.train


@pytest.mark.parametrize("method", ["lora", "dora", "full", "head"])
def test_one_after_the_other_is_side_by_side(models, tmp_path, method):
    """The adapter is set back for every try; methods that cannot share a base are trained so, and go on as alone."""
    fields = {"search": {"learning_rate": RATES}, "adapter__method": method}
    found = trained(tmp_path / "found", models / "encoder", labelled(200), train__together=False, **fields)
    record, lock = found.read(SearchRecord), found.lock
    assert not record.together
    if method == "lora":
        beside = trained(tmp_path / "beside", models / "encoder", labelled(200), **fields)
        other = beside.read(SearchRecord)
        assert other.together
        assert other.chosen == record.chosen
        assert other.rungs == record.rungs
        for one, two in zip(record.tries, other.tries, strict=True):
            assert one.losses == pytest.approx(two.losses, rel=1e-4)
            assert one.steps == two.steps
        same(found, beside, **CLOSE)
        return
    train = {f"train__{name}": getattr(lock.train, name) for name in ("learning_rate", "warmup_ratio", "hold_ratio")}
    plain = trained(tmp_path / "plain", models / "encoder", labelled(200), adapter__method=method, **train)
    name = WEIGHTS if method != "full" else "model.safetensors"
    mine, theirs = (load_file(cell.adapter / name) for cell in (found, plain))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(("steps", "together"), [(2, True), (9, False), (25, True)])
def test_resumed_is_uninterrupted(models, tmp_path, monkeypatch, steps, together):
    """Killed in the middle of a comparison, or after the search, which is not done again."""
    fields = {
        "search": {"learning_rate": RATES},
        "train__checkpoint_every_steps": 3,
        "adapter__dropout": 0.1,
        "train__together": "auto" if together else False,
    }
    whole = trained(tmp_path / "whole", models / "encoder", labelled(200), **fields)
    done, made = Loop._step, []

    def step(loop, active):
        if active[0].state.step == steps and not made:
            made.append(steps)
            raise KeyboardInterrupt
        return done(loop, active)

    monkeypatch.setattr(Loop, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", models / "encoder", labelled(200), **fields)
    begun = Cell(tmp_path / "parts/run/one/this-machine")
    assert made
    assert begun.has(SearchRecord) == (steps == 25)
    if steps == 25:
        monkeypatch.setattr(searching, "SearchTraining", None)
        assert begun.lock.search is None
    parts = trained(tmp_path / "parts", models / "encoder", labelled(200), **fields)
    one, other = whole.read(SearchRecord), parts.read(SearchRecord)
    assert [each.losses for each in one.tries] == [pytest.approx(each.losses) for each in other.tries]
    assert (one.chosen, one.rungs, one.further_steps) == (other.chosen, other.rungs, other.further_steps)
    same(parts, whole, **CLOSE)


def test_test_rows_are_never_read(models, tmp_path):
    cell = trained(tmp_path, models / "encoder", labelled(200), until="plan", search={"learning_rate": RATES})
    (cell.folder / "data/test.parquet").unlink()
    searching.search_cell(cell, World(), identity="same", progress=training.Silent())
    assert cell.has(SearchRecord)


def test_a_rate_that_diverges_is_out_at_once(models, tmp_path, monkeypatch):
    """One of a loss that is no number, one whose loss rises far above its start."""
    update = Job.update

    def bad(job, batch, loss):
        rate = job.settings.learning_rate
        return update(job, batch, float("nan") if rate == RATES[2] and batch.step == 3 else loss)

    monkeypatch.setattr(Job, "update", bad)
    cell = trained(tmp_path, models / "encoder", labelled(200), search={"learning_rate": [*RATES, 1.0]})
    record = cell.read(SearchRecord)
    assert record.tries[2].failed == "the loss of step 3 is not finite"
    assert record.tries[2].steps == 2
    assert record.tries[3].failed == "the loss rises"
    assert record.tries[3].steps < record.rungs[0]
    assert record.chosen in (0, 1)
    assert not record.tries[2].losses


def test_ranks_lie_side_by_side_and_the_winners_is_saved(models, tmp_path):
    search = {"rank": [2, 8], "dropout": [0.0, 0.2], "weight_decay": [0.0, 0.1], "budget": 3}
    cell = trained(tmp_path, models / "encoder", labelled(200), until="card", search=search)
    record = cell.read(SearchRecord)
    rank = record.tries[record.chosen].settings["adapter.rank"]
    assert len(record.tries) == 8
    assert (cell.lock.adapter.rank, cell.lock.adapter.alpha) == (rank, 2 * rank)
    assert all(len(tensor) == rank for name, tensor in weights(cell).items() if "lora_A" in name)
    card = (cell.folder / "README.md").read_text()
    assert "## Search" in card
    assert f"| rank: {rank:g}, dropout" in card.replace("weight_decay: 0, ", "")
    assert cell.state.status == "done"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("steps", [40, 312, 5000])
@pytest.mark.parametrize("budget", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("rows", [40, 4000])
def test_tries_cost_no_more_than_their_budget(count, steps, budget, rows):
    found = halving(count, steps, budget, rows, 16)
    if found is None:
        assert (budget - 1) * steps < 2 * LEAST_STEPS * count
        return
    assert found.cost <= (budget - 1) * steps + 1e-9
    ends, entering = [end for end, _ in found.rungs], [each for _, each in found.rungs]
    assert ends == sorted(set(ends))
    assert found.last <= steps / 2
    assert entering == sorted(set(entering), reverse=True)
    assert not entering or entering[0] == count


def test_rungs_of_five_rates_at_twice_the_cost():
    assert [round(steps / 8000, 2) for steps, _ in halving(5, 8000, 2.0, 0, 16).rungs] == [0.12, 0.25, 0.5]


def refused(folder, model, **fields):
    write_rows(folder / "one.jsonl", labelled(200))
    try:
        path = write_recipe(folder / "tiny.yaml", recipe_fields(model, **fields))
        run(load_recipe(path), recipe_folder=folder, folder=folder / "run", until="plan")
    except HfadaptError as error:
        return str(error)
    return ""


def test_what_cannot_be_searched_is_refused(models, tmp_path):
    encoder = models / "encoder"
    said = refused(tmp_path, encoder, search={"rank": [2, 4]}, adapter__method="dora", train__max_steps=40)
    assert "search.rank needs adapters side by side" in said
    assert "dora trains alone" in said
    said = refused(tmp_path, encoder, search={"batch_rows": [8, 16]})
    assert "`batch_rows` cannot be tried: all tries see the same rows in the same order" in said
    said = refused(tmp_path, encoder, search={"budget": 1.5})
    assert "there is nothing to try" in said
    assert "learning_rate: find" in said
    said = refused(tmp_path, encoder, search={"rank": [2, 4]}, adapter__rank=8)
    assert "said twice" in said
    assert "delete `adapter.rank`" in said
    said = refused(tmp_path, encoder, train__time="90s")
    assert "the end of training is said twice" in said


def test_too_few_steps_are_said_in_the_plan(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(200))
    fields = recipe_fields(models / "encoder", train__max_steps=8, train__learning_rate="find")
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", fields))
    with pytest.raises(RequestError, match="5 tries cannot be compared within 8 steps"):
        run(recipe, recipe_folder=tmp_path, folder=tmp_path / "run", until="plan")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_the_plan_says_what_a_search_costs(models, tmp_path):
    fields = {"train__learning_rate": "find", "train__max_steps": 400}
    cell = trained(tmp_path, models / "encoder", labelled(200), until="plan", **fields)
    plan = cell.plan.cells[0]
    prior = plan.value("train.learning_rate")
    assert [each["train.learning_rate"] for each in plan.search.tries] == [prior * by for by in (0.25, 0.5, 1, 2, 4)]
    assert 0 < plan.search.steps <= 400
    assert plan.search.seconds > 0
    assert plan.search.together
    assert f"{plan.search.steps} further steps" in str(cell.plan).replace("\n", " ")
    # Another domain has the same tries, which take longer: they are shown once.
    times = plan.search.model_copy(update={"seconds": plan.search.seconds + 100})
    both = cell.plan.model_copy(update={"cells": (plan, plan.model_copy(update={"domain": "b", "search": times}))})
    [tries] = [block for block in both.blocks() if isinstance(block, Table) and "tried" in block.columns]
    assert " to 1 min " in tries.rows[0][-1]
