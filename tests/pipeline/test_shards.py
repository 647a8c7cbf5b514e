"""A base divided over two processes (FSDP2) learns and scores what a whole one does, and training goes on either way.

Under torchrun with gloo. Each recipe asks for `train.shard: true`, which one process alone has no use for.
"""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
from test_two_processes import same, without_times
from tiny import (
    command,
    finish,
    labelled,
    pairs,
    preferences,
    questions,
    recipe_fields,
    start,
    uneven,
    write_recipe,
    write_rows,
)

from hfadapt.models.adapter_files import WEIGHTS

CLASSES = "text-classification"
EVALUATED = ("scored", "chosen")
SCRIPT = """
import json, runpy, sys
from unittest import mock

from hfadapt.train.loop import Loop


def hfadapt(verb, name):
    sys.argv = ["hfadapt", verb, f"{name}.yaml", "--runs", "two"]
    try:
        runpy.run_module("hfadapt", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code or 0
    return 0


step = Loop._step
def until_the_third(self, active):
    if active[0].state.step == 3:
        raise OSError("the power is gone")
    step(self, active)


for verb, name in WORK:
    with mock.patch.object(Loop, "_step", until_the_third if name == "stopped" else step):
        code = hfadapt(verb, name)
    assert bool(code) == (name == "stopped"), (name, code)
DIVIDED
"""
DIVIDED = """
import torch
from torch import distributed

from hfadapt.core.errors import RunError
from hfadapt.hardware.shards import divide, is_divided
from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_base

found = {}
for quant in ("none", "nf4"):
    ref = BaseRef("LM", "causal-lm", quant, "float32")
    base = load_base(ref, (), torch.device("cpu"), divided=True)
    own = {name: p for name, p in base.model.named_parameters() if is_divided(p)}
    found[quant] = {
        "divided": sorted(own),
        "local": sum(p.to_local().numel() for p in own.values()),
        "whole": sum(p.numel() for p in own.values()),
        "bytes": [base.shards.held_bytes, base.shards.divided_bytes],
        "logits": base.model(torch.arange(6)[None]).logits.sum().item(),
    }
    # One process runs the model five times more often than the other.
    times = 6 if distributed.get_rank() else 1
    work = lambda: [base.model(torch.arange(9)[None]).logits.sum().item() for _ in range(times)]
    found[quant]["times"] = len(base.shards.in_step(work))

def fails():
    if distributed.get_rank():
        raise RunError("no such file")
    return [base.model(torch.arange(9)[None]) for _ in range(3)]

def message(work):
    try:
        work()
    except RunError as error:
        return error.what

found["failed"] = message(lambda: base.shards.in_step(fails))
model = load_base(BaseRef("LM", "causal-lm", "none", "float32"), (), torch.device("cpu")).model
found["nothing"] = message(lambda: divide(model, model.model, [], lambda: None, torch.device("cpu")))
with open(f"divided-{distributed.get_rank()}.json", "w") as file:
    json.dump(found, file)
"""


def fields(model, task, source, quant="none", **train):
    """A recipe with 7 rows a step for two processes, so that one of them has more micro-batches."""
    made = recipe_fields(model, task, {"one": {"source": source}})
    made["data"] = {"validation": 9, "test": 37, "dedupe": {"near": False}}
    settings = {"batch_rows": 7, "micro_batch_rows": 2, "max_steps": 5, "evaluate_every_steps": 2}
    made["train"] = {**settings, "checkpoint_every_steps": 1, "shard": True, "fast": {"bfloat16": False}, **train}
    made["evaluate"] |= {"security": False, "drift": False, "general_text": False}
    return made | {"dtype": "float32", "quant": quant}


def write(folder, recipes):
    for name, made in {"uneven": uneven(60), "labelled": labelled(100), "pairs": pairs(100)}.items():
        write_rows(folder / f"{name}.jsonl", made)
    for name, made in recipes.items():
        write_recipe(folder / f"{name}.yaml", {**made, "name": name})


def launch(folder, work, more=""):
    script = SCRIPT.replace("WORK", repr(work)).replace("DIVIDED", more)
    (folder / "both.py").write_text(script)
    return start(folder=folder, launcher=["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "both.py"])


def done_in_time(process):
    two = finish(process)
    assert two.code == 0, two.err
    return two


def lines(folder, runs, name):
    path = folder / runs / name / "one/this-machine/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def alike(one, two, rounding):
    assert len(one) == len(two) > 5
    for alone, together in zip(one, two, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert (key in together) == (key in alone)
            assert together.get(key, 0.0) == pytest.approx(alone.get(key, 0.0), rel=rounding)
        for key in ("step", "tokens", "labelled_tokens"):
            assert together.get(key) == alone.get(key)


def adapter(folder, runs, name):
    from safetensors.torch import load_file

    return load_file(folder / runs / name / "one/this-machine/adapter" / WEIGHTS)


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """The folder in which two processes did it on a divided base and on a whole one, and one process alone."""
    folder = tmp_path_factory.mktemp("shards")
    lm = models / "lm-untied"
    recipes = {
        "float32": fields(lm, "causal-lm", "uneven.jsonl"),
        "whole": fields(lm, "causal-lm", "uneven.jsonl", shard=False),
        "nf4": fields(lm, "causal-lm", "uneven.jsonl", "nf4"),
    }
    write(folder, recipes)
    process = launch(folder, [("train", name) for name in recipes], DIVIDED.replace("LM", str(lm)))
    one = command("train", "float32.yaml", folder=folder)
    assert one.code == 0, one.err
    done_in_time(process)
    return folder


def test_what_they_learn_is_what_they_learn_on_a_whole_base(done):
    """Bit for bit, but for times."""
    divided, whole = ([{**line, "seconds": 0} for line in lines(done, "two", name)] for name in ("float32", "whole"))
    assert divided == whole
    one, other = (adapter(done, "two", name) for name in ("float32", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_they_learn_is_what_one_process_learns(done):
    alike(lines(done, "runs", "float32"), lines(done, "two", "float32"), 1e-5)


def test_a_divided_base_in_four_bits_is_learned_from(done):
    found = [line["loss"] for line in lines(done, "two", "nf4") if "loss" in line]
    exact = [line["loss"] for line in lines(done, "two", "float32") if "loss" in line]
    assert found == pytest.approx(exact, rel=0.05)
    assert found != exact


def test_each_process_holds_its_half_of_every_matrix(done):
    ranks = [json.loads((done / f"divided-{rank}.json").read_text()) for rank in (0, 1)]
    for quant in ("none", "nf4"):
        for one in ranks:
            # 7 linear layers in each of 2; not the embeddings, norms and the output layer.
            assert len(one[quant]["divided"]) == 14
            assert not any("norm" in name or "embed" in name or "lm_head" in name for name in one[quant]["divided"])
            held, whole = one[quant]["bytes"]
            assert held == whole / 2
        assert sum(one[quant]["local"] for one in ranks) == ranks[0][quant]["whole"]
        assert ranks[0][quant]["logits"] == ranks[1][quant]["logits"] != 0


def test_processes_run_it_as_often_as_they_like(done):
    ranks = [json.loads((done / f"divided-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["nf4"]["times"] for one in ranks] == [1, 6]
    assert [one["failed"] for one in ranks] == ["another process failed", "no such file"]
    assert {one["nothing"] for one in ranks} == {"the base is not divided over the processes"}


# --- slow ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_done(models, tmp_path_factory):
    """One that is stopped in step 4, and two whose adapters are evaluated."""
    folder = tmp_path_factory.mktemp("long-shards")
    recipes = {
        "float32": fields(models / "lm-untied", "causal-lm", "uneven.jsonl"),
        "stopped": fields(models / "lm-untied", "causal-lm", "uneven.jsonl"),
        "scored": fields(models / "encoder", CLASSES, "labelled.jsonl", max_steps=3),
        "chosen": fields(models / "lm-untied", "causal-lm", "labelled.jsonl", max_steps=3),
    }
    recipes["chosen"]["template"] = {"prompt": "{text}\nIt is", "completion": " {label}"}
    for name in EVALUATED:
        recipes[name]["evaluate"] |= {"security": True, "drift": True}
    write(folder, recipes)
    process = launch(folder, [("train", "stopped"), *(("run", name) for name in EVALUATED)])
    for verb, name in (("train", "float32"), *(("run", name) for name in EVALUATED)):
        one = command(verb, f"{name}.yaml", folder=folder)
        assert one.code == 0, one.err
    done_in_time(process)
    return folder


@pytest.mark.slow
def test_one_process_goes_on_where_two_had_divided_the_base(long_done):
    resumed = command("train", "stopped.yaml", "--runs", "two", folder=long_done)
    assert resumed.code == 0, resumed.err
    assert "going on from step 3 of 5" in resumed.err
    alike(lines(long_done, "runs", "float32"), lines(long_done, "two", "stopped"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATED)
def test_a_divided_base_scores_what_a_whole_one_does(long_done, name):
    for file in ("evaluation.json", "security.json", "drift.json"):
        place = f"{name}/one/this-machine/{file}"
        one, two = (json.loads((long_done / runs / place).read_text()) for runs in ("runs", "two"))
        same(without_times(one), without_times(two), place)


@pytest.mark.slow
def test_two_processes_divide_the_base_where_one_began(models, tmp_path):
    """And so they do with checkpointing, pre-training, co-training, preferences and joint losses."""
    from hfadapt.train.loop import Loop

    lm, encoder = models / "lm", models / "encoder"
    two = fields(lm, "causal-lm", "uneven.jsonl")
    two["domains"]["two"] = {"source": "pairs.jsonl"}
    two["train"]["together"] = True
    texts = fields(lm, "causal-lm", "pairs.jsonl")
    texts["pretrain"] = {"sources": ["texts.jsonl"], "objective": "clm", "max_steps": 3, "batch_rows": 8}
    recipes = {
        "begun": fields(lm, "causal-lm", "uneven.jsonl"),
        "again": fields(lm, "causal-lm", "uneven.jsonl", checkpointing=True),
        "joint": fields(encoder, "embedding", "questions.jsonl"),
        "preferred": fields(lm, "preference", "preferences.jsonl", learning_rate=5e-3),
        "cotrained": two,
        "texts": texts,
    }
    write(tmp_path, recipes)
    write_rows(tmp_path / "questions.jsonl", questions(60))
    write_rows(tmp_path / "preferences.jsonl", preferences(60))
    write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in labelled(70, seed=7)])
    step = Loop._step

    def until_the_third(self, active):
        if active[0].state.step == 3:
            raise OSError("the power is gone")
        step(self, active)

    with mock.patch.object(Loop, "_step", until_the_third):
        assert command("train", "begun.yaml", "--runs", "two", folder=tmp_path).code != 0
    process = launch(tmp_path, [("train", name) for name in recipes])
    for name in recipes:
        one = command("train", f"{name}.yaml", folder=tmp_path)
        assert one.code == 0, one.err
    assert "going on from step 3 of 5" in done_in_time(process).err
    for name in recipes:
        alike(lines(tmp_path, "runs", name), lines(tmp_path, "two", name), 1e-4)


@pytest.mark.slow
def test_a_process_that_fails_in_a_step_ends_the_others(models, tmp_path, monkeypatch):
    """Its cause is told, and nobody waits for the time of a step."""
    write(tmp_path, {"failing": fields(models / "lm", "causal-lm", "uneven.jsonl")})
    (tmp_path / "both.py").write_text(
        """
import os, runpy, sys

from hfadapt.train.passes import Passes

loss = Passes.loss
def fails(self, micro, weights):
    if os.environ["RANK"] == "1" and micro.rows[0].job.state.step == 2:
        raise OSError("the disk of this machine is gone")
    return loss(self, micro, weights)

Passes.loss = fails
sys.argv = ["hfadapt", "train", "failing.yaml"]
runpy.run_module("hfadapt", run_name="__main__", alter_sys=True)
"""
    )
    monkeypatch.setenv("HFADAPT_STEP_SECONDS", "120")
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "both.py"]
    two = finish(start(folder=tmp_path, launcher=launcher), seconds=110)
    assert two.code not in (0, -9)
    assert "the disk of this machine is gone" in two.err
