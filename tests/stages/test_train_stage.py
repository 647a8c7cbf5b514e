"""The same adapter for several targets is trained once."""

from __future__ import annotations

import json

from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core.hashing import kept_sha256


def test_an_adapter_that_would_be_the_same_is_taken(models, tmp_path) -> None:
    write_rows(tmp_path / "one.jsonl", labelled(120))
    train = {"batch_rows": 8, "max_steps": 12, "learning_rate": 3e-3}
    fields = recipe_fields(models / "encoder", train=train, targets=["this-machine", "browser-4gb"])
    done = command("train", write_recipe(tmp_path / "tiny.yaml", fields), folder=tmp_path)
    assert done.code == 0, done.err
    assert "the adapter of this-machine is taken" in done.err
    run = Run(tmp_path / "runs/tiny")
    first, second = (run.cell("one", target) for target in fields["targets"])
    assert (first.train.same_as, second.train.same_as) == ("", "this-machine")
    assert second.train.target == "browser-4gb"
    weights = [kept_sha256(cell.adapter / "adapter_model.safetensors") for cell in (first, second)]
    assert weights[0] == weights[1]
    assert second.steps() == first.steps()
    # Alone it would have become the same one.
    fields["targets"] = ["browser-4gb"]
    write_recipe(tmp_path / "tiny.yaml", fields)
    assert command("train", "tiny.yaml", "--runs", "alone", folder=tmp_path).code == 0
    alone = Run(tmp_path / "alone/tiny").cell("one", "browser-4gb")
    assert kept_sha256(alone.adapter / "adapter_model.safetensors") == weights[0]
    again = command("train", "tiny.yaml", folder=tmp_path)
    assert "done already" in again.err


def test_other_settings_are_trained_on_their_own(models, tmp_path) -> None:
    write_rows(tmp_path / "one.jsonl", labelled(120))
    train = {"batch_rows": 8, "max_steps": 4, "learning_rate": 3e-3}
    fields = recipe_fields(models / "encoder", train=train, targets=["this-machine", "cpu-8gb"])
    done = command("train", write_recipe(tmp_path / "tiny.yaml", fields), folder=tmp_path)
    assert done.code == 0, done.err
    locks = [Run(tmp_path / "runs/tiny").cell("one", target).lock for target in fields["targets"]]
    same = len({json.dumps(lock.train.model_dump(mode="json"), sort_keys=True) for lock in locks}) == 1
    assert ("is taken" in done.err) == (same and locks[0].dtype == locks[1].dtype)
