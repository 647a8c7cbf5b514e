"""Whatever rows, chats, recipes and records hold, a command ends with a code of its own and with words.

`FUZZ_SEEDS=100:2000` takes other seeds than those of every run, for a search of an hour.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from .inputs import KINDS

FIRST, LAST = map(int, os.environ.get("FUZZ_SEEDS", "0:30").split(":"))


@pytest.fixture(scope="module")
def place(models, tmp_path_factory) -> Path:
    """A folder with models and a finished run, in which the draws are made."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(models, folder / "models")
    finished = folder / "finished"
    finished.mkdir()
    write_rows(finished / "one.jsonl", labelled(60))
    fields = recipe_fields("../models/encoder", name="run", data={"validation": 8, "test": 8})
    fields |= {
        "train": {"batch_rows": 4, "max_steps": 2},
        "evaluate": {"resamples": 200, "security": False, "drift": False},
    }
    write_recipe(finished / "recipe.yaml", fields)
    done = command("run", "recipe.yaml", "--runs", ".", folder=finished)
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("seed", range(FIRST, LAST))
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_looks_like_a_crash(place, kind, seed):
    folder = place / f"{kind}-{seed}"
    folder.mkdir()
    words = KINDS[kind](random.Random(seed), folder)
    done = command(*words, folder=folder)
    shutil.rmtree(folder, ignore_errors=True)
    said = f"{done.out}\n{done.err}"
    assert done.code in (0, 1, 2), (words, said)
    assert "bug in hfadapt" not in said, (words, said)
    assert "Traceback" not in said, (words, said)
    if done.code:
        assert done.err.strip() or done.out.strip(), words


def test_sound_inputs_and_damaged_ones_are_drawn(place):
    """Else the property above says nothing."""
    codes = set()
    for seed in range(12):
        folder = place / f"sound-{seed}"
        folder.mkdir()
        codes.add(command(*KINDS["chats"](random.Random(seed), folder), folder=folder).code)
    assert {0, 2} <= codes
