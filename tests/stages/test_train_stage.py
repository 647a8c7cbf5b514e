"""The same adapter for several targets is trained once."""

from __future__ import annotations

import shutil

from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core.hashing import kept_sha256
from hfadapt.records.search import SearchRecord
from hfadapt.train import learned_from


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
    # Other settings or other rows would have become another one.
    assert learned_from(first) == learned_from(second)
    lock = second.lock
    second.save_lock(lock.model_copy(update={"train": lock.train.model_copy(update={"learning_rate": 1e-3})}))
    assert learned_from(first) != learned_from(second)
    second.save_lock(lock)
    assert learned_from(first) == learned_from(second)
    shutil.copy(second.folder / "data/validation.parquet", second.folder / "data/train.parquet")
    assert learned_from(first) != learned_from(second)


def test_what_a_search_has_found_is_taken_with_the_adapter(models, tmp_path) -> None:
    write_rows(tmp_path / "one.jsonl", labelled(120))
    fields = recipe_fields(
        models / "encoder",
        train={"batch_rows": 8, "max_steps": 20},
        search={"learning_rate": [1e-3, 3e-3], "budget": 3.0},
        targets=["this-machine", "browser-4gb"],
    )
    done = command("train", write_recipe(tmp_path / "tiny.yaml", fields), folder=tmp_path)
    assert done.code == 0, done.err
    first, second = (Run(tmp_path / "runs/tiny").cell("one", target) for target in fields["targets"])
    assert (first.train.same_as, second.train.same_as) == ("", "this-machine")
    found, taken = (cell.read(SearchRecord) for cell in (first, second))
    assert taken == found.model_copy(update={"target": "browser-4gb"})
    assert (second.lock.train, second.lock.search) == (first.lock.train, None)
    assert second.lock.train.learning_rate == found.tries[found.chosen].settings["train.learning_rate"]
    assert "done already" in command("train", "tiny.yaml", folder=tmp_path).err
