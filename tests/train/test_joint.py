"""Losses of whole batches: with other adapters, and with frozen layers run once."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import command, make_lock, questions, recipe_fields, train, write_recipe, write_rows

MODULES = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_adapters_that_are_trained_together_are_what_they_would_be_alone(models, tmp_path):
    for number, name in enumerate(("one", "two")):
        write_rows(tmp_path / f"{name}.jsonl", questions(60, seed=number))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    fields = recipe_fields(models / "encoder", "embedding", domains, dtype="float32", train__together=True)
    fields["train"] |= {"batch_rows": 8, "micro_batch_rows": 4, "max_steps": 5, "fast": {"bfloat16": False}}
    fields["data"] = {"validation": 9, "test": 9}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    for name in domains:
        alone = command("train", "tiny.yaml", "train.together=false", "--runs", "alone", "-d", name, folder=tmp_path)
        assert alone.code == 0, alone.err
        mine, theirs = (lines(tmp_path / runs / f"tiny/{name}/this-machine") for runs in ("alone", "runs"))
        assert [line["loss"] for line in theirs if "loss" in line] == pytest.approx(
            [line["loss"] for line in mine if "loss" in line], rel=1e-4
        )
    record = json.loads((tmp_path / "runs/tiny/one/this-machine/train.json").read_text())
    assert record["together"] == ["one", "two"]


def test_frozen_layers_that_run_once_change_nothing(models, tmp_path):
    found = {}
    for cached in (False, True):
        lock = make_lock(models / "encoder", "embedding", adapter__modules=MODULES, adapter__layers=1,
                         train__fast={"bfloat16": False, "frozen_cache": cached}, train__epochs=2.0,
                         train__max_steps=None, train__micro_batch_rows=3)  # fmt: skip
        found[cached] = train(lock, tmp_path / str(cached), questions(24), questions(8, seed=4), labels=())
    assert (found[False].loop.frozen_layers, found[True].loop.frozen_layers) == (0, 1)
    for name, weight in found[False].weights.items():
        torch.testing.assert_close(found[True].weights[name], weight, rtol=1e-4, atol=1e-6)


def test_a_pair_that_is_alone_in_its_step_has_nothing_to_learn_and_stops_nothing(models, tmp_path):
    # Of five rows in batches of four one is left, with nothing that it could be told apart from.
    lock = make_lock(models / "encoder", "embedding", adapter__modules=MODULES, train__batch_rows=4, train__max_steps=4)
    done = train(lock, tmp_path, questions(5), questions(4, seed=4), labels=())
    losses = done.losses
    assert 0.0 in losses[:2]
    assert max(losses) > 0.1
