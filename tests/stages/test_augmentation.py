"""`data.augment: auto`: what is tried on which rows, what is taken, and that everybody takes the same."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from tiny import command, finish, labelled, recipe_fields, start, write_recipe, write_rows

from hfadapt.modalities.text import punctuation
from hfadapt.plan.augment import MOST_ROWS, SEEDS, to_try
from hfadapt.recipe.schema import Recipe
from hfadapt.train.loop import Loop

MARKS = {"punctuation": 0.2}


def write(folder, models, noisy, **more):
    """Clean rows to train on; with `noisy` all others have marks between their words, so that marks help."""
    write_rows(folder / "one.jsonl", labelled(120))
    held = [
        {**row, "text": punctuation(row["text"], 0.7, random.Random(number)) if noisy else row["text"]}
        for number, row in enumerate(labelled(200, seed=5))
    ]
    write_rows(folder / "held.jsonl", held[:100])
    write_rows(folder / "tested.jsonl", held[100:])
    domain = {"source": "one.jsonl", "validation": "held.jsonl", "test": "tested.jsonl"}
    fields = recipe_fields(models / "encoder", domains={"one": domain}, data={"augment": "auto"})
    # In float32, so that two processes differ by rounding alone.
    fields["train"] = {"batch_rows": 8, "max_steps": 60, "learning_rate": 0.005, "fast": {"bfloat16": False}, **more}
    fields["evaluate"] = {"resamples": 200, "security": False, "drift": False, "transfer": False}
    return write_recipe(folder / "tiny.yaml", fields)


def record(folder, name="augment.json", runs="runs"):
    return json.loads((folder / runs / "tiny/one/this-machine" / name).read_text())


@pytest.fixture(scope="module")
def helped(models, tmp_path_factory):
    """A run in which the validation rows have what one of the changes brings."""
    folder = tmp_path_factory.mktemp("helped")
    write(folder, models, noisy=True)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder, done


def test_what_lowers_the_validation_loss_by_more_than_chance_is_taken(helped):
    folder, done = helped
    found = record(folder)
    assert found["taken"] == MARKS
    plain, marks, words = found["tried"]
    assert plain["shares"] == {}
    assert len(plain["losses"]) == len(marks["losses"]) == len(found["seeds"]) == SEEDS
    assert all(own < none for own, none in zip(marks["losses"], plain["losses"], strict=True))
    assert marks["low"] < marks["delta"] < marks["high"] < 0
    assert words["shares"] == {"word_dropout": 0.1, "word_swap": 0.1}
    assert f"validation loss {plain['losses'][0]:.4f}" in done.err
    assert "Trial of augmentation" in done.out
    assert (found["rows"], found["validation_rows"], found["steps"]) == (120, 100, 60)


def test_it_stands_in_plan_lock_training_and_card(helped):
    folder, _ = helped
    decisions = {each["field"]: each for each in record(folder, "plan.json")["cells"][0]["decisions"]}
    assert decisions["data.augment"]["value"] == MARKS
    assert "more than chance" in decisions["data.augment"]["reason"]
    assert record(folder, "train.json")["augmented_rows"][0] == record(folder, "data.json")["augmented"]["changed"] > 0
    cell = folder / "runs/tiny/one/this-machine"
    card = (cell / "README.md").read_text()
    assert "## Augmentation" in card
    assert "punctuation: 0.2" in card
    assert not (cell / "augment").exists()
    again = command("run", "tiny.yaml", folder=folder)
    assert "done already" in again.err
    checked = command("card", "check", cell)
    assert "the license" in checked.err
    assert len(checked.err.split("README.md:")) == 2, "nothing else is wrong with the card"


def test_its_lock_trains_the_same_without_a_trial(helped, tmp_path):
    folder, _ = helped
    cell = folder / "runs/tiny/one/this-machine"
    for name in ("one", "held", "tested"):
        shutil.copy(folder / f"{name}.jsonl", tmp_path)
    shutil.copy(cell / "lock.yaml", tmp_path / "tiny.yaml")
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert not (tmp_path / "runs/tiny/one/this-machine/augment.json").exists()
    assert record(tmp_path, "train.json")["final_loss"] == record(folder, "train.json")["final_loss"]


@pytest.mark.slow
def test_a_lost_record_is_found_again_and_the_same(helped):
    folder, _ = helped
    path = folder / "runs/tiny/one/this-machine/augment.json"
    before = record(folder)
    path.unlink()
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    assert record(folder)["tried"] == before["tried"]


def test_an_interrupted_trial_goes_on_where_it_was(helped, models, tmp_path, monkeypatch):
    write(tmp_path, models, noisy=True)
    run, calls = Loop.run, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run(self)

    monkeypatch.setattr(Loop, "run", interrupted)
    assert command("train", "tiny.yaml", folder=tmp_path).code == 130
    assert record(tmp_path, "cell.json")["status"] == "interrupted"
    assert command("train", "tiny.yaml", folder=tmp_path).code == 0
    found = record(tmp_path)
    assert found["tried"] == record(helped[0])["tried"]
    # Each training of the trial once, the one that was cut off, and the training itself.
    assert len(calls) == sum(len(each["losses"]) for each in found["tried"]) + 1 + 1
    assert record(tmp_path, "train.json")["final_loss"] == record(helped[0], "train.json")["final_loss"]


@pytest.mark.slow
def test_two_processes_take_what_one_takes(helped, models, tmp_path):
    write(tmp_path, models, noisy=True)
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "hfadapt"]
    done = finish(start("train", "tiny.yaml", folder=tmp_path, launcher=launcher))
    assert done.code == 0, done.err
    two, one = record(tmp_path), record(helped[0])
    assert two["taken"] == one["taken"] == MARKS
    for mine, other in zip(two["tried"], one["tried"], strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=2e-2)
    assert record(tmp_path, "train.json")["augmented_rows"] == record(helped[0], "train.json")["augmented_rows"]


def test_what_gains_nothing_is_left_off(models, tmp_path):
    write(tmp_path, models, noisy=False, max_steps=20)
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    found = record(tmp_path)
    assert found["taken"] == {}
    assert len(found["tried"]) == 3
    assert record(tmp_path, "train.json")["augmented_rows"] == []
    # The first training of a trial is the training itself.
    lines = (tmp_path / "runs/tiny/one/this-machine/metrics.jsonl").read_text().splitlines()
    assert found["tried"][0]["losses"][0] == pytest.approx(json.loads(lines[-1])["validation_loss"], rel=1e-3)


def test_few_validation_rows_tell_nothing(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(120))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", data__augment="auto"))
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    found = record(tmp_path)
    assert (found["taken"], found["tried"], found["steps"]) == ({}, [], 0)
    assert "validation rows" in found["reason"]


# --- what is tried ---------------------------------------------------------------------------------------------------


def recipe(task, **more):
    return Recipe.model_validate(
        {"name": "a", "model": "m", "task": task, "domains": {"d": "d.csv"}, "data": {"augment": "auto"}, **more}
    )


def test_many_rows_are_left_as_they_are():
    found, why = to_try(recipe("text-classification"), MOST_ROWS + 1, ("a", "b"))
    assert found == []
    assert "1,001 training rows are more than 1,000" in why
    assert to_try(recipe("text-classification"), MOST_ROWS, ("a", "b"))[0]


def test_digits_are_not_mirrored_and_texts_not_blended():
    digits, _ = to_try(recipe("image-classification"), 200, tuple("0123456789"))
    animals, _ = to_try(recipe("image-classification"), 200, ("cat", "dog"))
    assert {"crop": 1.0} in digits
    assert {"crop": 1.0, "flip": 1.0} in animals
    assert any("mixup" in each for each in animals)
    assert not any("mixup" in each for each in to_try(recipe("text-classification"), 200, ())[0])


def test_kept_outputs_of_frozen_layers_leave_rows_as_they_are():
    found, why = to_try(recipe("text-classification", train={"fast": {"frozen_cache": True}}), 200, ())
    assert found == []
    assert "frozen_cache" in why
