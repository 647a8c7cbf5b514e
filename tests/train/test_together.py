"""Adapters trained together on one base are what they would be alone."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import epochs, labelled, make_lock, pairs, same_weights, stop_after
from tiny_images import pictured

from hfadapt.adapters import DEFAULT
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.models.attach import adapter_names, attach_adapters, save_adapter, trainable
from hfadapt.models.load import load_base
from hfadapt.train import can_share
from hfadapt.train.job import Job
from hfadapt.train.loop import Loop
from hfadapt.train.recorded import measured

LABELS = ("bad", "good", "so-so")


def loop_of(locks, folders, rows, held=(), products=None, labels=LABELS, **options):
    """A loop over one adapter for each lock."""
    lock = locks[0]
    task = registry.task(lock.task)
    base = load_base(lock, labels, torch.device("cpu"))
    names = adapter_names(len(locks))
    model = attach_adapters(base, dict(zip(names, locks, strict=True)))

    def encode(what):
        return task.encode(what, base.tokenizer, max_length=64, labels=labels)

    jobs = []
    for own, folder, name, mine in zip(locks, folders, names, rows, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        parameters = trainable(model, name if len(locks) > 1 else None)
        plain = encode(mine)
        augmented = epochs(own, mine, plain, encode)
        jobs.append(
            Job(own.train, plain, encode(held), folder, "same", parameters, name, folder.name, augmented=augmented)
        )
    return base, Loop.of(locks, base, model, jobs, Accelerator(cpu=True), products, **options)


def plain_names(job):
    return {name.replace(f".{job.name}.", f".{DEFAULT}."): p.detach().clone() for name, p in job.parameters.items()}


def log(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


SETTINGS = {
    "causal-lm": ("lm", pairs),
    "text-classification": ("encoder", labelled),
    "masked-lm": ("mlm", labelled),
}


@pytest.mark.parametrize("task", SETTINGS)
def test_together_equals_alone(models, tmp_path, task):
    """Other numbers of rows, steps, ranks and shares that are dropped, one augmented; in float32 to within rounding."""
    name, make = SETTINGS[task]
    locks = [
        make_lock(models / name, task, train__max_steps=5, train__evaluate_every_steps=2),
        make_lock(models / name, task, train__max_steps=3, adapter__dropout=0.1, adapter__rank=2),
        make_lock(
            *(models / name, task),
            train__max_steps=9,
            train__micro_batch_rows=2,
            adapter__dropout=0.3,
            data__augment={"typos": 0.4, "word_dropout": 0.1},
        ),
    ]
    rows, held = [make(20), make(13, seed=1), make(30, seed=2)], make(5, seed=3)
    alone = []
    for i, lock in enumerate(locks):
        _, loop = loop_of([lock], [tmp_path / f"alone-{i}"], [rows[i]], held)
        loop.run()
        alone.append(loop.jobs[0])
    _, loop = loop_of(locks, [tmp_path / f"together-{i}" for i in range(3)], rows, held)
    loop.run()
    assert [len(job.state.augmented) for job in loop.jobs] == [0, 0, 3], "a new epoch has other rows"
    for i, (one, other) in enumerate(zip(loop.jobs, alone, strict=True)):
        assert one.state.step == other.state.step == locks[i].train.max_steps
        found, wanted = log(tmp_path / f"together-{i}"), log(tmp_path / f"alone-{i}")
        assert [line["step"] for line in found] == [line["step"] for line in wanted]
        for line, expected in zip(found, wanted, strict=True):
            for key in ("loss", "validation_loss", "grad_norm"):
                if key in expected:
                    assert line[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6)
        assert one.state.tokens == other.state.tokens
        assert one.state.augmented == other.state.augmented
        mine, theirs = plain_names(one), plain_names(other)
        assert mine.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(mine[key], tensor, rtol=1e-4, atol=1e-5)


def test_blended_pictures_beside_plain_ones(vision, tmp_path):
    """A micro-batch may hold rows of one class and rows of shares of two."""
    settings = {"train__max_steps": 6, "train__micro_batch_rows": 3, "data__packing": False}
    make = partial(make_lock, vision / "dino", "image-classification", **settings)
    locks = [make(), make(data__augment={"mixup": 0.4, "cutmix": 0.4, "crop": 0.5})]
    rows, classes = [pictured(20), pictured(26, seed=1)], ("bar", "pole")
    _, loop = loop_of(locks, [tmp_path / "0", tmp_path / "1"], rows, pictured(4, seed=2), labels=classes)
    loop.run()
    assert [len(job.state.augmented) for job in loop.jobs] == [0, 2]
    for i, job in enumerate(loop.jobs):
        _, alone = loop_of([locks[i]], [tmp_path / f"alone-{i}"], [rows[i]], pictured(4, seed=2), labels=classes)
        alone.run()
        for line, expected in zip(log(tmp_path / f"{i}"), log(tmp_path / f"alone-{i}"), strict=True):
            for key in expected.keys() & {"loss", "validation_loss"}:
                assert line[key] == pytest.approx(expected[key], rel=1e-5)
        for key, tensor in plain_names(alone.jobs[0]).items():
            torch.testing.assert_close(plain_names(job)[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", SETTINGS)
def test_together_on_kept_outputs_of_frozen_layers(models, tmp_path, task):
    name, make = SETTINGS[task]
    settings = {"adapter__layers": 1, "train__max_steps": 6, "train__evaluate_every_steps": 2}
    locks = [make_lock(models / name, task, **settings), make_lock(models / name, task, adapter__rank=2, **settings)]
    rows, held = [make(20), make(13, seed=1)], make(5, seed=3)
    folders = [tmp_path / "0", tmp_path / "1"]
    _, loop = loop_of(locks, folders, rows, held, frozen_cache=True)
    loop.run()
    assert loop.frozen_layers == 1
    for i, (lock, job) in enumerate(zip(locks, loop.jobs, strict=True)):
        _, alone = loop_of([lock], [tmp_path / f"alone-{i}"], [rows[i]], held)
        alone.run()
        for line, expected in zip(log(folders[i]), log(tmp_path / f"alone-{i}"), strict=True):
            for key in expected.keys() & {"loss", "validation_loss"}:
                assert line[key] == pytest.approx(expected[key], rel=1e-5)
        for key, tensor in plain_names(alone.jobs[0]).items():
            torch.testing.assert_close(plain_names(job)[key], tensor, rtol=1e-4, atol=1e-5)


def test_interrupted_together_and_finished_alone_or_together(models, tmp_path):
    locks = [make_lock(models / "lm", train__max_steps=5), make_lock(models / "lm", train__max_steps=6)]
    rows = [pairs(20), pairs(20, seed=1)]
    _, whole = loop_of(locks, [tmp_path / "whole-0", tmp_path / "whole-1"], rows)
    whole.run()
    folders = [tmp_path / "parts-0", tmp_path / "parts-1"]
    _, loop = loop_of(locks, folders, rows, stop=stop_after(3))
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    _, again = loop_of(locks, folders, rows)
    again.run()
    for one, other in zip(again.jobs, whole.jobs, strict=True):
        assert one.state.resumed_from_step == 3
        assert same_weights(plain_names(one), plain_names(other))
    for folder in folders:
        for path in sorted((folder / "checkpoints").glob("*"))[4:]:
            path.rename(tmp_path / path.name)
    _, alone = loop_of(locks[:1], folders[:1], rows[:1])
    alone.run()
    for key, tensor in plain_names(whole.jobs[0]).items():
        torch.testing.assert_close(plain_names(alone.jobs[0])[key], tensor, rtol=1e-4, atol=1e-5)


def test_a_job_that_fails_leaves_the_others_alone(models, tmp_path):
    locks = [make_lock(models / "lm", train__max_steps=4) for _ in range(2)]
    rows = [pairs(20), pairs(20, seed=1)]
    _, loop = loop_of(locks, [tmp_path / "bad", tmp_path / "good"], rows)
    parameter = next(iter(loop.jobs[0].parameters.values()))
    # A job that takes no part any more has no gradient.
    parameter.register_hook(lambda g: g if g is None or loop.jobs[0].state.step != 2 else g * float("nan"))
    loop.run()
    bad, good = loop.jobs
    assert isinstance(bad.error, RunError)
    assert "step 3 is not finite" in str(bad.error)
    assert (bad.state.step, good.state.step) == (2, 4)
    assert [path.name for path in (tmp_path / "bad/checkpoints").iterdir()] == ["step-000002"]
    _, alone = loop_of(locks[1:], [tmp_path / "alone"], rows[1:])
    alone.run()
    for key, tensor in plain_names(alone.jobs[0]).items():
        torch.testing.assert_close(plain_names(good)[key], tensor, rtol=1e-4, atol=1e-5)


def test_gradients_of_one_that_overflow_leave_the_loss_scale_of_the_others(models, tmp_path):
    settings = {"dtype": "float16", "train__max_steps": 2}
    locks = [make_lock(models / "lm", **settings), make_lock(models / "lm", **settings)]
    _, loop = loop_of(locks, [tmp_path / "bad", tmp_path / "good"], [pairs(20), pairs(20, seed=1)])
    bad, good = loop.jobs
    # A job that takes no part any more has no gradient.
    spoiled = next(iter(bad.parameters.values()))
    spoiled.register_hook(lambda gradient: gradient if gradient is None else gradient * float("nan"))
    before = good.state.loss_scale
    loop.run()
    assert bad.error is not None
    assert bad.state.loss_scale == 1
    assert (good.error, good.state.step, good.state.loss_scale) == (None, 2, before)


def test_cells_share_a_base_whatever_each_would_compile(models):
    """By its own number of steps each decides for itself; which parts are fast must agree."""

    def cell(**more):
        return SimpleNamespace(lock=make_lock(models / "lm", **more), data=SimpleNamespace(labels=()), target="l4")

    assert can_share(cell(), cell(train__fast={"compile": True}))
    assert not can_share(cell(), cell(train__fast={"norms": False}))
    assert not can_share(cell(), cell(train__fast={"bfloat16": False}))


def test_the_prediction_for_all_is_the_mean_of_their_plans():
    """Each plan has every adapter at its own length, and memory grows with the sum of the lengths."""

    def cell(megabytes):
        phases = [SimpleNamespace(phase="train", total_bytes=megabytes << 20)]
        return SimpleNamespace(plan=SimpleNamespace(cells=[SimpleNamespace(memory=phases)]))

    peaks = {"train": SimpleNamespace(peak_bytes=5 << 20)}
    found = measured([cell(2), cell(10)], peaks)
    assert (found["train"].predicted_peak_bytes, found["train"].measured_peak_bytes) == (6 << 20, 5 << 20)


@pytest.mark.parametrize("task", SETTINGS)
def test_each_is_saved_as_if_alone(models, tmp_path, task):
    """Plain peft reads every adapter, and none holds a tensor of another."""
    from safetensors.torch import load_file

    name, make = SETTINGS[task]
    locks = [make_lock(models / name, task, train__max_steps=2) for _ in range(2)]
    rows = [make(20), make(20, seed=1)]
    base, loop = loop_of(locks, [tmp_path / "one", tmp_path / "two"], rows)
    loop.run()
    alone_base, alone = loop_of(locks[1:], [tmp_path / "alone"], rows[1:])
    alone.run()
    save_adapter(loop.model, base, locks[1], tmp_path / "saved", name=loop.jobs[1].name)
    save_adapter(alone.model, alone_base, locks[1], tmp_path / "alone-saved")
    saved, wanted = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("saved", "alone-saved"))
    assert saved.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(saved[key], tensor, rtol=1e-4, atol=1e-5)


def test_names_are_no_words_of_module_paths():
    assert adapter_names(1) == [DEFAULT]
    names = adapter_names(8)
    assert len(set(names)) == 8
    assert all(name.startswith("a") and name[1:].isalnum() and len(name) == 8 for name in names)
