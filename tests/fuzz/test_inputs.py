"""Whatever rows, chats, recipes, records, pictures, bases and others' configurations hold, a command ends in time, with
a code of its own and with words.

`FUZZ_SEEDS=100:2000` takes other seeds than those of every run, for a search of an hour.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfadapt.formats.gguf import write_gguf

from . import inputs, more_inputs

KINDS = {**inputs.KINDS, **more_inputs.KINDS}
SECONDS = 60
"""In which a command has to end; on a machine that does nothing else none took ten."""
FIRST, LAST = map(int, os.environ.get("FUZZ_SEEDS", "0:20").split(":"))


@contextlib.contextmanager
def limited_to(seconds):
    """A command that hangs ends with TimeoutError, which hfadapt takes for a fault of its own."""

    def end(number, frame):
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def place(models, vision, tmp_path_factory) -> Path:
    """A folder with models and a finished run, in which the draws are made."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(models, folder / "models")
    shutil.copytree(vision, folder / "vision")
    model = AutoModelForCausalLM.from_pretrained(models / "lm")
    write_gguf(model, AutoTokenizer.from_pretrained(models / "lm"), folder / "models/lm.gguf", "float32", "lm")
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
    with limited_to(SECONDS):
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
