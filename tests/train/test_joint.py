"""Losses of whole batches: in several processes, with other adapters, and with frozen layers run once."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import command, finish, make_lock, questions, recipe_fields, start, train, write_recipe, write_rows

MODULES = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def test_two_processes_learn_what_one_does(models, tmp_path):
    """7 rows a step are 14 texts, of which each process has 7; dropout, and validation in between."""
    write_rows(tmp_path / "one.jsonl", questions(60))
    fields = recipe_fields(
        models / "encoder",
        "embedding",
        data={"validation": 9, "test": 9},
        dtype="float32",
        adapter={"dropout": 0.2},
        train={"batch_rows": 7, "micro_batch_rows": 2, "max_steps": 5, "evaluate_every_steps": 2},
        train__fast={"bfloat16": False},
    )
    write_recipe(tmp_path / "tiny.yaml", fields)
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "hfadapt"]
    process = start("train", "tiny.yaml", "--runs", "two", folder=tmp_path, launcher=launcher)
    one = command("train", "tiny.yaml", folder=tmp_path)
    two = finish(process)
    assert one.code == 0, one.err
    assert two.code == 0, two.err
    alone, together = (lines(tmp_path / runs / "tiny/one/this-machine") for runs in ("runs", "two"))
    assert len(alone) == len(together) == 8
    for mine, theirs in zip(alone, together, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert theirs.get(key, 0.0) == pytest.approx(mine.get(key, 0.0), rel=1e-4)
        assert [mine.get(key) for key in ("step", "tokens")] == [theirs.get(key) for key in ("step", "tokens")]


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
