"""`train.time`: as many steps as fit, planned, and corrected once their speed is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from tiny import NO_CHECKS, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import load_recipe, make_plan, run
from hfadapt.hardware import catalogue
from hfadapt.hardware.rates import Rates
from hfadapt.models.attach import WEIGHTS
from hfadapt.plan import duration
from hfadapt.records.search import SearchRecord
from hfadapt.run_folder import Cell
from hfadapt.train import loop as training
from hfadapt.train.loop import Loop

SLOW = {"float32": 0.1, "bfloat16": 0.1}
"""As slow as an old laptop: what a step begins with counts beside its products."""
STEP = 0.5
"""Seconds of a step by the clock of these tests."""


@pytest.fixture(autouse=True)
def steady(cache_folder, monkeypatch) -> Iterator[None]:
    """A clock that goes on by half a second a step, and by nothing else; plans on a machine of one known speed."""
    catalogue.keep_rates(catalogue.this_machine(), Rates(tflops=SLOW, measured_at=time.time(), torch=version("torch")))
    ticks = count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(ticks) * STEP)
    return


def recipe_of(folder, model, rows=400, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "one.jsonl", labelled(rows))
    given = {"train__max_steps": None, "dtype": "float32", "evaluate": {"resamples": 200, **NO_CHECKS}, **fields}
    given["data"] = {"validation": 16, "test": 24, "train_rows": 320}
    return load_recipe(write_recipe(folder / "tiny.yaml", recipe_fields(model, **given)))


def trained(folder, model, until="train", **fields):
    recipe = recipe_of(folder, model, **fields)
    run(recipe, recipe_folder=folder, folder=folder / "run", until=until)
    cell = Cell(folder / "run/one/this-machine")
    assert cell.state.status != "failed", cell.state.error
    return cell


def weights(cell):
    return load_file(cell.adapter / WEIGHTS)


def test_training_ends_in_time_at_the_speed_that_was_measured(models, tmp_path):
    """80 steps take 40 seconds; the plan thinks that all fit in 20, as a tiny model would be faster."""
    cell = trained(tmp_path / "a", models / "encoder", train__time="20s", train__epochs=2.0)
    planned = cell.plan.cells[0]
    assert "train.max_steps" not in [each.field for each in planned.decisions]
    assert "corrected after the first" in planned.decision("train.time").reason
    # Four validations of 16 rows are as long as four steps.
    assert cell.train.steps == 20 / STEP - 4 == cell.lock.train.max_steps
    assert cell.train.seconds == pytest.approx(cell.train.steps * STEP)
    assert cell.lock.train.time is None
    whole = trained(tmp_path / "b", models / "encoder", train__time="10m", train__epochs=2.0)
    assert whole.train.steps == 80
    assert [path.read_bytes() for path in sorted(cell.folder.glob("data/test.parquet"))] == [
        path.read_bytes() for path in sorted(whole.folder.glob("data/test.parquet"))
    ]


def test_it_is_training_with_what_the_lock_says(models, tmp_path):
    cell = trained(tmp_path / "a", models / "encoder", train__time="15s")
    names = ("max_steps", "learning_rate", "warmup_ratio", "hold_ratio", "evaluate_every_steps")
    fields = {f"train__{name}": getattr(cell.lock.train, name) for name in names}
    plain = trained(tmp_path / "b", models / "encoder", **fields)
    mine, theirs = weights(cell), weights(plain)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    rates, others = ([step.learning_rate for step in each.steps() if step.learning_rate] for each in (cell, plain))
    assert rates == others
    assert rates[-1] < rates[12] < rates[7] == max(rates)


@pytest.mark.parametrize("steps", [3, 12], ids=["before it is known", "after"])
def test_resumed_goes_by_what_was_decided(models, tmp_path, monkeypatch, steps):
    fields = {"train__time": "15s", "train__checkpoint_every_steps": 2}
    whole = trained(tmp_path / "whole", models / "encoder", **fields)
    done = Loop._step

    def step(loop, active):
        if active[0].state.step == steps:
            raise KeyboardInterrupt
        done(loop, active)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", models / "encoder", **fields)
    begun = Cell(tmp_path / "parts/run/one/this-machine").lock.train
    assert (begun.time is None) == (steps == 12)
    if steps == 12:
        # A slower clock changes nothing any more.
        ticks = count()
        monkeypatch.setattr(training.time, "perf_counter", lambda: next(ticks) * 9.0)
    parts = trained(tmp_path / "parts", models / "encoder", **fields)
    assert parts.train.steps == whole.train.steps
    mine, theirs = weights(parts), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_time_holds_for_the_tries_of_a_search_too(models, tmp_path):
    """What the tries have left of it is planned again for the one that goes on, whose rate decays in any case."""
    found = {}
    for limit in (10, 45):
        search = {"learning_rate": [1e-3, 1e-2]}
        limited = {"train__time": f"{limit}s", "train__epochs": 2.0}
        cell = trained(tmp_path / str(limit), models / "encoder", **limited, search=search)
        record = cell.read(SearchRecord)
        spent = record.further_seconds + record.compared_seconds + cell.train.seconds
        assert cell.lock.train.max_steps == cell.train.steps == record.training_steps
        found[limit] = (cell.train.steps, record.rungs[-1], spent)
    least = found[10]
    assert least[0] == -(-5 * least[1] // 4), "it was late already"
    assert found[45][0] == 80, "all fit"
    assert found[45][2] <= 45


def test_the_plan_cuts_epochs_then_rows_and_says_so(models, tmp_path):
    """With rows that are known, and no layers that could be left as they are."""

    def planned(seconds):
        fields = {"train__time": seconds, "train__epochs": 4.0, "adapter__layers": 2}
        return make_plan(recipe_of(tmp_path, models / "encoder", **fields)).cells[0]

    plan = planned(1000.0)
    whole = plan.predicted_seconds
    assert "train.max_steps" not in [each.field for each in plan.decisions]
    half, few = planned(whole / 2), planned(whole / 10)
    assert 60 <= half.value("train.max_steps") <= 80
    assert "rows are seen 1." in " ".join(half.warnings)
    assert few.value("train.max_steps") < 40
    assert f"{8 * few.value('train.max_steps')} of 320 rows are seen, once, the others never" in " ".join(few.warnings)
    assert few.predicted_seconds <= whole / 10
    assert few.value("train.evaluate_every_steps") == -(-few.value("train.max_steps") // 3), (
        "three take a fifth of 16 steps"
    )


def test_validations_take_little_of_a_short_time(models, tmp_path):
    """Four of 16 rows are as long as four of these steps: more than the time there is for two."""

    def planned(seconds, **fields):
        given = {"train__time": seconds, "train__epochs": 1.0, "adapter__layers": 2, **fields}
        return make_plan(recipe_of(tmp_path, models / "encoder", **given)).cells[0]

    step = planned(1000.0).predicted_seconds / 40
    short, middle = planned(4.5 * step), planned(11.5 * step)
    assert short.value("train.max_steps") == short.value("train.evaluate_every_steps") == 3
    assert "at the end only" in short.decision("train.evaluate_every_steps").reason
    assert middle.value("train.max_steps") == 9
    assert middle.value("train.evaluate_every_steps") == 5
    asked = planned(11.5 * step, train__evaluate_every_steps=2)
    assert asked.value("train.max_steps") == 7


def test_the_plan_leaves_layers_as_they_are_where_rows_would_not_be_seen(models, tmp_path, monkeypatch):
    monkeypatch.setattr(duration, "CHECK_COST", 0.0)

    def planned(seconds, **fields):
        given = {"train__time": seconds, "train__epochs": 1.5, **fields}
        return make_plan(recipe_of(tmp_path, models / "encoder", **given)).cells[0]

    whole = planned(1000.0).predicted_seconds
    fewer = planned(0.65 * whole)
    assert fewer.value("adapter.layers") == 1
    assert fewer.value("train.fast.frozen_cache") is True
    assert "the last 1 of 2 layers see all rows" in " ".join(fewer.warnings)
    assert fewer.predicted_seconds <= 0.65 * whole
    asked = planned(0.65 * whole, adapter__layers=2)
    assert asked.value("adapter.layers") == 2
    assert asked.value("train.max_steps") < 40
