"""Two processes do what one does: each recipe is trained by one, and by two under torchrun with gloo."""

from __future__ import annotations

import json
import math
import socket
from itertools import product

import pytest
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
from tiny_images import write_folders
from tiny_sounds import write_sounds

CLASSES = "text-classification"
SEVEN = ("augmented", "frozen", "joint", "hidden", "preferred", "pictures", "sounds", "streamed")
"""Recipes of 7 steps."""
TEXTS = ("mlm", "tsdae", "simcse", "clm")
"""Objectives by which an adapter is adapted to texts before its task."""
NAMES = (*SEVEN, "trial", *TEXTS)
EVALUATED = ("scored", "chosen")
BOTH = f"""
import runpy, sys

for name in {(*NAMES, *EVALUATED)}:
    verb = "run" if name in {EVALUATED} else "train"
    sys.argv = ["hfadapt", verb, f"{{name}}.yaml", "--runs", "two"]
    try:
        runpy.run_module("hfadapt", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""One command after the other: most of the time is the start of processes."""


def recipes(folder, models, vision, hearing):
    """Fields of each recipe: 7 rows a step shared by two, so that one process has more."""
    rows = {"uneven": uneven(60), "questions": questions(60), "labelled": labelled(100), "pairs": pairs(100)}
    rows |= {"few": labelled(40), "held": labelled(100, seed=5), "tested": labelled(30, seed=6)}
    rows |= {"labelled-test": labelled(45, seed=8), "held-test": labelled(37, seed=9)}
    rows["preferences"] = preferences(60)
    rows["texts"] = [{"text": row["text"]} for row in labelled(70, seed=7)]
    for name, made in rows.items():
        write_rows(folder / f"{name}.jsonl", made)
    write_folders(folder / "pictures", 60)
    write_sounds(folder / "sounds", 60)

    def fields(model, task, source, data=None, adapter=None, fast=None, **train):
        settings = {"batch_rows": 7, "micro_batch_rows": 2, "max_steps": 7, "evaluate_every_steps": 2, **train}
        made = recipe_fields(model, task, {"one": source if isinstance(source, dict) else {"source": source}})
        made["data"] = {"validation": 9, "test": 9, "dedupe": {"near": False}, **(data or {})}
        # In float32, so that they differ by rounding alone.
        made["train"] = {**settings, "fast": {"bfloat16": False, **(fast or {})}}
        return made | {"dtype": "float32", "adapter": adapter or {}}

    def with_texts(objective):
        model, task = {"mlm": (models / "mlm", CLASSES), "clm": (lm, "causal-lm")}.get(objective, (encoder, CLASSES))
        made = fields(
            model, task, "pairs.jsonl" if objective == "clm" else "labelled.jsonl", max_steps=4, learning_rate=2e-4
        )
        asked = {"objective": objective, "max_steps": 3, "batch_rows": 48, "learning_rate": 0.003}
        return made | {"pretrain": {"sources": ["texts.jsonl"], **asked}}

    def evaluated(model, task):
        two = {name: {"source": f"{name}.jsonl", "test": f"{name}-test.jsonl"} for name in ("labelled", "held")}
        made = fields(model, task, "labelled.jsonl", max_steps=3, learning_rate=0.003)
        if task != CLASSES:
            made["template"] = {"prompt": "{text}\nIt is", "completion": " {label}"}
        checks = {"security": True, "drift": True, "transfer": True, "general_text": False, "resamples": 200}
        # In 16 bits two answers may be equally likely.
        checks |= {"metrics": ["loss", "accuracy" if task == CLASSES else "label_accuracy"]}
        return made | {"domains": two, "data": {"validation": 9, "dedupe": {"near": False}}, "evaluate": checks}

    changes = {"augment": {"word_dropout": 0.3, "typos": 0.2}}
    layer, cached = {"dropout": 0.2, "layers": 1}, {"frozen_cache": True}
    held = {"source": "few.jsonl", "validation": "held.jsonl", "test": "tested.jsonl"}
    lm, encoder = models / "lm", models / "encoder"
    return {
        "augmented": fields(lm, "causal-lm", "uneven.jsonl", changes, {"dropout": 0.2}, {"frozen_cache": False}),
        "frozen": fields(lm, "causal-lm", "uneven.jsonl", None, layer, cached),
        "joint": fields(encoder, "embedding", "questions.jsonl", None, {"dropout": 0.2}),
        "hidden": fields(models / "mlm", "masked-lm", "texts.jsonl"),
        "preferred": fields(lm, "preference", "preferences.jsonl", None, {"dropout": 0.2}, learning_rate=5e-3),
        "pictures": fields(vision / "dino", "image-classification", "pictures", learning_rate=0.01),
        "sounds": fields(hearing / "wave", "audio-classification", "sounds", learning_rate=0.01),
        "streamed": fields(encoder, CLASSES, "labelled.jsonl", {"streaming": True}),
        "trial": fields(encoder, CLASSES, held, {"augment": "auto"}, max_steps=6),
        **{objective: with_texts(objective) for objective in TEXTS},
        "scored": evaluated(encoder, CLASSES),
        "chosen": evaluated(lm, "causal-lm"),
    }


@pytest.fixture(scope="module")
def done(models, vision, hearing, tmp_path_factory):
    """The folder in which one process and two did the same."""
    folder = tmp_path_factory.mktemp("two")
    for name, fields in recipes(folder, models, vision, hearing).items():
        write_recipe(folder / f"{name}.yaml", {**fields, "name": name})
    (folder / "both.py").write_text(BOTH)
    process = start(
        folder=folder, launcher=["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "both.py"]
    )
    for name in NAMES:
        one = command("train", f"{name}.yaml", folder=folder)
        assert one.code == 0, one.err
    for name in EVALUATED:
        one = command("run", f"{name}.yaml", folder=folder)
        assert one.code == 0, one.err
    two = finish(process)
    assert two.code == 0, two.err
    assert two.err.count("step 7/7") == len(SEVEN), "only the first process speaks"
    return folder


def records(done, name, file):
    """Of one process, and of two."""
    return [json.loads((done / runs / name / "one/this-machine" / file).read_text()) for runs in ("runs", "two")]


def lines_of(done, name, file="metrics.jsonl"):
    """Those of one process, and of two."""
    return [
        [json.loads(line) for line in (done / runs / name / "one/this-machine" / file).read_text().splitlines()]
        for runs in ("runs", "two")
    ]


@pytest.mark.parametrize("name", SEVEN)
def test_they_learn_what_one_does(done, name):
    """Losses of whole batches differ by the order in which processes add."""
    lines, rounding = lines_of(done, name), 1e-4 if name in ("joint", "preferred") else 1e-5
    assert len(lines[0]) == len(lines[1]) == 11
    for alone, together in zip(*lines, strict=True):
        for key in ("loss", "validation_loss", "grad_norm"):
            assert (key in together) == (key in alone)
            assert together.get(key, 0.0) == pytest.approx(alone.get(key, 0.0), rel=rounding)
        for key in ("step", "tokens", "labelled_tokens"):
            assert together.get(key) == alone.get(key)
    alone, train = records(done, name, "train.json")
    assert (alone["world_size"], train["world_size"]) == (1, 2)
    assert train["frozen_layers"] == alone["frozen_layers"] == (name == "frozen")
    assert train["augmented_rows"] == alone["augmented_rows"]
    assert len(train["augmented_rows"]) == (2 if name == "augmented" else 0)


@pytest.mark.parametrize("objective", TEXTS)
def test_they_learn_from_texts_what_one_does(done, objective):
    for file, count in (("pretrain/metrics.jsonl", 3), ("metrics.jsonl", 4)):
        one, two = lines_of(done, objective, file)
        assert len(one) == len(two) >= count
        for alone, together in zip(one, two, strict=True):
            for key in ("loss", "grad_norm", "labelled_tokens"):
                assert (key in together) == (key in alone)
                assert together.get(key, 0.0) == pytest.approx(alone.get(key, 0.0), rel=1e-4)


def test_they_try_augmentation_together(done):
    one, two = records(done, "trial", "augment.json")
    assert two["taken"] == one["taken"]
    assert len(one["tried"]) == 3
    for mine, other in zip(two["tried"], one["tried"], strict=True):
        assert all(map(math.isfinite, mine["losses"]))
        assert mine["losses"] == pytest.approx(other["losses"], rel=2e-2)


def without_times(record):
    """A record but for times, memory and what follows from them, and the most that 16 bits round away anywhere."""
    apart = ("seconds", "memory", "efficiency", "versions", "rows_per_second", "tokens_per_second", "inputs_sha256")
    apart += ("max_logit_difference",)
    if isinstance(record, dict):
        return {name: without_times(value) for name, value in record.items() if name not in apart}
    return [without_times(value) for value in record] if isinstance(record, list) else record


def same(one, two, place=""):
    """Whether two records say the same but for rounding."""
    if isinstance(one, dict):
        assert list(one) == list(two), place
        for name in one:
            same(one[name], two[name], f"{place}/{name}")
    elif isinstance(one, list):
        assert len(one) == len(two), place
        for number, each in enumerate(one):
            same(each, two[number], f"{place}/{number}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-3, abs=2e-3 if "drift" in place else 1e-4), place
    else:
        assert one == two, place


@pytest.mark.parametrize("name", EVALUATED)
def test_they_score_what_one_does(done, name):
    for domain, file in product(("labelled", "held"), ("evaluation.json", "security.json", "drift.json")):
        place = f"{name}/{domain}/this-machine/{file}"
        one, two = (json.loads((done / runs / place).read_text()) for runs in ("runs", "two"))
        same(without_times(one), without_times(two), place)
    one, two = (json.loads((done / runs / name / "transfer.json").read_text()) for runs in ("runs", "two"))
    same(without_times(one), without_times(two), name)
    assert len(one["targets"][0]["cells"]) == 4


@pytest.mark.slow
def test_two_machines_of_two_processes_do_what_one_process_does(done):
    """They are two launchers here, which meet on loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meet = ["--nnodes", "2", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    for name in ("scored", "pictures", "sounds"):
        words = ("run" if name in EVALUATED else "train", f"{name}.yaml", "--runs", "four")
        launchers = [["torch.distributed.run", *meet, "--node_rank", each, "-m", "hfadapt"] for each in "01"]
        for ended in map(finish, [start(*words, folder=done, launcher=each) for each in launchers]):
            assert ended.code == 0, ended.err
        domain = "labelled" if name in EVALUATED else "one"
        for file in ("metrics.jsonl", *(("evaluation.json", "drift.json") if name in EVALUATED else ())):
            one, four = (read(done / runs / name / domain / "this-machine" / file) for runs in ("runs", "four"))
            same(without_times(one), without_times(four), f"{name}/{file}")


def read(path):
    text = path.read_text()
    return [json.loads(each) for each in (text.splitlines() if path.suffix == ".jsonl" else [text])]
