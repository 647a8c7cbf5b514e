"""Augmented training: new rows in every epoch, a function of (seed, epoch, row) and nothing else."""

from __future__ import annotations

import json

import pytest
from tiny import (
    chats,
    command,
    labelled,
    make_lock,
    make_loop,
    pairs,
    recipe_fields,
    same_weights,
    stop_after,
    train,
    write_recipe,
    write_rows,
)
from tiny_images import pictured

from hfadapt.modalities import IGNORED

ALL = {"word_dropout": 0.2, "word_swap": 0.2, "typos": 0.4, "case": 0.3}
TASKS = {"causal-lm": ("lm", pairs), "text-classification": ("encoder", labelled)}
STEPS_A_EPOCH = 3


def lock_of(models, task, augment=ALL, **more):
    settings = {"train__max_steps": 8, "train__micro_batch_rows": 2, **more}
    return make_lock(models / TASKS[task][0], task, data__augment=augment, **settings)


def batches(job, steps):
    """The rows of some steps as they go through the model."""
    found = []
    for step in range(steps):
        job.state.step = step
        found.append(job.next_batch())
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("step", [2, 3, 5], ids=["first epoch", "between epochs", "second epoch"])
def test_interrupted_and_resumed_equals_uninterrupted(models, tmp_path, task, step):
    lock, make = lock_of(models, task), TASKS[task][1]
    whole = train(lock, tmp_path / "whole", make(20), make(6, seed=1))
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", make(20), make(6, seed=1), stop=stop_after(step))
    parts = train(lock, tmp_path / "parts", make(20), make(6, seed=1))
    assert parts.state.resumed_from_step == step
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)
    assert parts.state.augmented == whole.state.augmented
    assert len(whole.state.augmented) == 3


def blended(vision, **more):
    changes = {"mixup": 0.3, "cutmix": 0.4, "trivial": 0.5}
    settings = {"train__max_steps": 7, "train__micro_batch_rows": 2, "data__packing": False, **more}
    return make_lock(vision / "dino", "image-classification", **{"data__augment": changes, **settings})


@pytest.mark.parametrize("step", [2, 3, 5])
def test_blended_pictures_are_the_same_after_a_resume(vision, tmp_path, step):
    classes = ("bar", "pole")
    whole = train(blended(vision), tmp_path / "whole", pictured(20), pictured(6, seed=1), classes)
    with pytest.raises(KeyboardInterrupt):
        train(blended(vision), tmp_path / "parts", pictured(20), (), classes, stop=stop_after(step))
    parts = train(blended(vision), tmp_path / "parts", pictured(20), pictured(6, seed=1), classes)
    assert parts.state.resumed_from_step == step
    assert same_weights(parts.weights, whole.weights)
    assert parts.state.augmented == whole.state.augmented
    plain = train(blended(vision, data__augment={}), tmp_path / "plain", pictured(20), (), classes)
    assert plain.losses != whole.losses


@pytest.mark.parametrize("task", TASKS)
def test_typos_make_another_training(models, tmp_path, task):
    plain, typed, other = (
        train(lock_of(models, task, augment, data__seed=seed), tmp_path / name, TASKS[task][1](20))
        for name, augment, seed in (("plain", {}, 17), ("typed", {"typos": 0.3}, 17), ("other", {"typos": 0.3}, 18))
    )
    assert plain.losses[:3] != typed.losses[:3]
    assert not same_weights(plain.weights, typed.weights)
    assert not same_weights(typed.weights, other.weights)
    assert plain.state.augmented == []
    assert all(0 < changed <= 20 for changed in typed.state.augmented)


def test_epochs_differ_and_come_again(models, tmp_path):
    def epochs(folder):
        job = make_loop(lock_of(models, "causal-lm"), folder, pairs(20)).job
        found = batches(job, 2 * STEPS_A_EPOCH)
        halves = found[:STEPS_A_EPOCH], found[STEPS_A_EPOCH:]
        return job, found, [{r: e for b in half for r, e in zip(b.rows, b.examples, strict=True)} for half in halves]

    job, found, (first, second) = epochs(tmp_path / "one")
    _, again, _ = epochs(tmp_path / "two")
    assert again == found
    assert first.keys() == second.keys() == set(range(20))
    assert sum(first[row] != second[row] for row in first) > 10
    for row, plain in enumerate(job.train):
        for example in (first[row], second[row]):
            assert [each for each in example.labels if each != IGNORED] == [
                each for each in plain.labels if each != IGNORED
            ]
            assert example.row == plain.row
    assert [batch.labels for batch in found] == [sum(e.label_count for e in batch.examples) for batch in found]


@pytest.mark.parametrize("micro_batch_rows", [1, 3])
def test_micro_batches_keep_to_the_planned_tokens(models, tmp_path, micro_batch_rows):
    """Capitals are spelt in several tokens: rows grow, up to the longest length, and stand alone where they must."""
    lock = lock_of(models, "causal-lm", {"case": 0.9}, data__max_length=24, train__micro_batch_rows=micro_batch_rows)
    trained = make_loop(lock, tmp_path, pairs(20))
    job, loop = trained.job, trained.loop
    planned, grow = micro_batch_rows * max(job.lengths), 0
    for found in batches(job, STEPS_A_EPOCH):
        parts = list(loop.passes.micro_batches([(job, found)]))
        assert sorted(id(row.example) for part in parts for row in part) == sorted(map(id, found.examples))
        for part in parts:
            lengths = [row.example.size for row in part]
            assert max(lengths) <= 24
            assert len(part) == 1 or len(part) * max(lengths) <= planned
            grow += sum(length > max(job.lengths) for length in lengths)
        assert job.tokens(found) == sum(example.size for example in found.examples)
    assert grow > 3


def test_a_change_never_costs_an_answer(models, tmp_path):
    """A chat that would lose the end of its last answer stays as it is for this epoch."""
    lock = make_lock(models / "lm", data__augment={"case": 0.95}, data__max_length=48)
    job = make_loop(lock, tmp_path, chats(20)).job
    found = job.augmented(0)
    kept = [new is old for new, old in zip(found, job.train, strict=True)]
    assert 0 < sum(kept) < 20
    assert all(new.label_count >= old.label_count for new, old in zip(found, job.train, strict=True))


def test_outputs_of_frozen_layers_are_not_kept(models, tmp_path):
    lock = lock_of(models, "causal-lm", adapter__layers=1, train__fast={"frozen_cache": True})
    assert train(lock, tmp_path, pairs(20)).loop.frozen_layers == 0


def test_text_that_is_itself_learned_stays_and_the_audit_says_so(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", [{"text": row["text"]} for row in labelled(120)])
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", data__augment={"typos": 0.3}))
    done = command("check", "tiny.yaml", "--json", folder=tmp_path)
    (record,) = json.loads(done.out)
    assert record["augmented"]["changed"] == 0
    assert "augmentation-idle" in {finding["code"] for finding in record["audit"]["findings"]}


def test_a_run_says_what_was_changed(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(120))
    fields = recipe_fields(
        models / "encoder",
        data__augment={"typos": 0.3},
        data__canaries={"count": 3},
        adapter__layers=1,
        train={"batch_rows": 32, "max_steps": 8},
    )
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    cell = tmp_path / "runs/tiny/one/this-machine"
    data, trained, plan = (json.loads((cell / f"{name}.json").read_text()) for name in ("data", "train", "plan"))
    planted, augmented = data["canaries"]["rows"], data["augmented"]
    assert augmented["rows"] == data["splits"]["train"] == 80
    assert 60 < augmented["changed"] < 80
    assert augmented["lengths"]["mean"] > data["lengths"]["train"]["mean"]
    assert trained["augmented_rows"][0] == augmented["changed"]
    assert len(trained["augmented_rows"]) == -(-8 // -(-(80 + planted) // 32))
    decisions = {each["field"]: each for each in plan["cells"][0]["decisions"]}
    assert decisions["train.fast.frozen_cache"]["value"] is False
    assert "changes the rows in every epoch" in decisions["train.fast.frozen_cache"]["reason"]
    assert "as augmented" in plan["cells"][0]["data_basis"]
