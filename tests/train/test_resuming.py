"""What a resumed training equals, and from which checkpoint it goes on."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tiny import labelled, make_lock, make_loop, pairs, same_weights, stop_after, train

from hfadapt.core.hashing import file_sha256
from hfadapt.core.progress import Silent


class Listener(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.mark.parametrize("step", [1, 3, 5, 6])
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_interrupted_and_resumed_equals_uninterrupted(models, tmp_path, step, quant):
    lock = make_lock(
        models / "lm",
        quant=quant,
        adapter__dropout=0.2,
        train__max_steps=7,
        train__micro_batch_rows=3,
        train__evaluate_every_steps=2,
        train__checkpoint_every_steps=2,
    )
    rows, held = pairs(20), pairs(6, seed=1)
    whole = train(lock, tmp_path / "whole", rows, held)
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", rows, held, stop=stop_after(step))
    torch.manual_seed(99)
    listener = Listener()
    parts = train(lock, tmp_path / "parts", rows, held, progress=listener)
    assert parts.state.resumed_from_step == step
    assert any(f"step {step} of 7" in said for said in listener.said)
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)
    assert (parts.state.tokens, parts.state.best_loss) == (whole.state.tokens, whole.state.best_loss)


def test_stopped_within_a_step_it_goes_on_from_the_step_before(models, tmp_path):
    lock = make_lock(models / "lm", train__max_steps=4, train__micro_batch_rows=2, data__packing=False)
    whole = train(lock, tmp_path / "whole", pairs(20))
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", pairs(20), interrupted=stop_after(5))
    (kept,) = (tmp_path / "parts/checkpoints").iterdir()
    parts = train(lock, tmp_path / "parts", pairs(20))
    assert kept.name == f"step-{parts.state.resumed_from_step:06d}"
    assert 0 < parts.state.resumed_from_step < 4
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


def test_several_interruptions_of_a_classifier(models, tmp_path):
    lock = make_lock(models / "encoder", "text-classification", train__max_steps=6)
    rows = labelled(30)
    whole = train(lock, tmp_path / "whole", rows)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(lock, tmp_path / "parts", rows, stop=stop_after(2))
    parts = train(lock, tmp_path / "parts", rows)
    assert parts.state.resumed_from_step == 4
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


def test_the_best_weights_survive_an_interruption(models, tmp_path):
    """Early stopping: the best step lies before the interruption, and its weights are the result."""
    settings = {"train__max_steps": 8, "train__patience": 3, "train__evaluate_every_steps": 1}
    # The labels of the validation rows are swapped: learning makes them worse.
    swapped = [{**row, "label": {"good": "bad", "bad": "good"}[row["label"]]} for row in labelled(20)]
    lock = make_lock(models / "encoder", "text-classification", train__learning_rate=2e-2, **settings)
    whole = train(lock, tmp_path / "whole", labelled(20), swapped)
    assert whole.state.stopped_early
    best = whole.state.best_step
    assert best < whole.state.step < 8
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", labelled(20), swapped, stop=stop_after(best + 1))
    parts = train(lock, tmp_path / "parts", labelled(20), swapped)
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


def test_early_stopping_gives_the_weights_of_the_best_step(models, tmp_path):
    swapped = [{**row, "label": {"good": "bad", "bad": "good"}[row["label"]]} for row in labelled(20)]
    settings = {"train__max_steps": 8, "train__learning_rate": 2e-2, "train__evaluate_every_steps": 1}
    patient = train(
        make_lock(models / "encoder", "text-classification", **settings, train__patience=2),
        tmp_path / "patient",
        labelled(20),
        swapped,
    )
    seen = {}

    def remember(loop):
        def stop():
            job = loop.jobs[0]
            seen[job.state.step] = {name: p.detach().clone() for name, p in job.parameters.items()}
            return False

        return stop

    watched = make_loop(
        make_lock(models / "encoder", "text-classification", **settings), tmp_path / "all", labelled(20), swapped
    )
    watched.loop.stop = remember(watched.loop)
    watched.loop.run()
    assert same_weights(patient.weights, seen[patient.state.best_step])


def damage_byte(folder):
    path = folder / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x10
    path.write_bytes(content)


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


def damage_short(folder):
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-200])


def only_weights(folder):
    for name in ("optimizer.pt", "state.json", "manifest.json"):
        (folder / name).unlink()


def damage_foreign(folder):
    """Whole, and of another training."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "identity": "another"}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = file_sha256(folder / "state.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage_strange(folder):
    damage_empty(folder)
    (folder / "pytorch_model.bin").write_bytes(b"of another program")


def damage_empty(folder):
    for path in folder.iterdir():
        path.unlink()


DAMAGES = {
    "a byte of the adapter flipped": (damage_byte, "adapter.safetensors is damaged"),
    "the optimizer cut": (damage_short, "optimizer.pt is damaged"),
    "the state missing": (lambda folder: (folder / "state.json").unlink(), "incomplete"),
    "the manifest missing": (lambda folder: (folder / "manifest.json").unlink(), "incomplete"),
    "the manifest cut": (damage_manifest, "incomplete"),
    "an empty folder": (damage_empty, "incomplete"),
    "killed after the weights": (only_weights, "incomplete"),
    "the state cut": (lambda folder: os.truncate(folder / "state.json", 20), "state.json is damaged"),
    "the state empty": (lambda folder: os.truncate(folder / "state.json", 0), "state.json is damaged"),
    "the optimizer missing": (lambda folder: (folder / "optimizer.pt").unlink(), "incomplete"),
    "the adapter cut": (
        lambda folder: os.truncate(folder / "adapter.safetensors", 999),
        "adapter.safetensors is damaged",
    ),
    "of another program": (damage_strange, "incomplete"),
    "of another training": (damage_foreign, "it belongs to another recipe, data or base"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(models, tmp_path, damage):
    lock = make_lock(models / "lm", train__max_steps=6, train__checkpoint_every_steps=2)
    whole = train(lock, tmp_path / "whole", pairs(20))
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", pairs(20), stop=stop_after(5))
    saved = sorted(path.name for path in (tmp_path / "parts/checkpoints").iterdir())
    assert saved == ["step-000004", "step-000005"]
    harm, said = DAMAGES[damage]
    harm(tmp_path / "parts/checkpoints/step-000005")
    listener = Listener()
    parts = train(lock, tmp_path / "parts", pairs(20), progress=listener)
    assert parts.state.resumed_from_step == 4
    assert any("step-000005 skipped" in line and said in line for line in listener.said)
    assert parts.lines == whole.lines
    assert same_weights(parts.weights, whole.weights)


def test_a_checkpoint_of_something_else_is_not_continued(models, tmp_path):
    lock = make_lock(models / "lm", train__max_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "parts", pairs(20), stop=stop_after(2), identity="before")
    listener = Listener()
    again = train(lock, tmp_path / "parts", pairs(20), progress=listener, identity="after")
    whole = train(lock, tmp_path / "whole", pairs(20))
    assert again.state.resumed_from_step is None
    assert any("starting over" in said for said in listener.said)
    assert again.lines == whole.lines
    assert same_weights(again.weights, whole.weights)
