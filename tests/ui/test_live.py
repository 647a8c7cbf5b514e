"""What the page shows of a run is folded from its events, and only settings go into its command."""

from __future__ import annotations

import json

import pytest
from tiny import recipe_fields, write_recipe

from hfadapt.core import progress
from hfadapt.core.errors import RequestError
from hfadapt.core.json_lines import as_line
from hfadapt.ui import live

EVENTS = [
    progress.RunStarted("tiny", "runs/tiny", ("one/here", "two/here"), ("prepare", "train")),
    progress.StageStarted("prepare", "preparing", ("one/here", "two/here")),
    progress.Said("reading one"),
    progress.StageFinished("prepare", "preparing", ("one/here", "two/here"), 1.0),
    progress.StageStarted("train", "training", ("one/here", "two/here"), 30.0),
    progress.Stepped((progress.Part("one/here", 1, 9, 0.5), progress.Part("two/here", 1, 9, 0.4, "rate 0.1")), 80, 9),
    progress.Validated("one/here", 1, 0.7),
]


def lines(*events):
    return [as_line(event).encode() for event in events]


def test_events_say_where_a_run_stands():
    state = live.folded(lines(*EVENTS))
    assert (state.run, state.status, state.doing) == ("tiny", "", "training: one/here, two/here")
    assert state.stages == {"prepare": "done", "train": "running"}
    assert state.cells == {"one/here": "step 1 of 9", "two/here": "step 1 of 9"}
    # What is tried is no part of the result's curve.
    assert state.steps == {"one/here": [{"step": 1, "loss": 0.5}, {"step": 1, "validation_loss": 0.7}]}
    assert (state.rate, state.said) == (80, ["reading one"])


def test_the_end_and_failures_are_told():
    failed = progress.failure(RequestError("no room", fix="free some"), stage="train", cell="one/here")
    ends = [failed, progress.CellFinished("one/here", "failed"), progress.RunFinished("failed", 3.0)]
    state = live.folded(lines(*EVENTS, *ends))
    assert (state.status, state.doing, state.stages["train"]) == ("failed", "", "failed")
    assert state.cells["one/here"] == "failed"
    assert "one/here: no room" in state.failures[0]
    assert "free some" in state.failures[0]


def test_a_command_that_cannot_begin_has_failed():
    state = live.folded(lines(progress.failure(RequestError("no such recipe"))))
    assert (state.status, state.failures) == ("failed", ["no such recipe"])


def test_unknown_events_and_half_lines_change_nothing():
    known = lines(*EVENTS)
    other = [b'{"event": "new_one", "cells": 3}\n', b'{"event": "run_fin']
    assert live.folded([*known, *other]) == live.folded(known)


@pytest.mark.parametrize("text", ["--publish somebody/name", "train.epochs", "-q", "a=1 --fresh", 'name="x'])
def test_what_is_no_setting_does_not_get_into_the_command(text):
    with pytest.raises(RequestError):
        live.settings(text)


def test_settings_are_split_as_a_shell_does():
    assert live.settings("train.epochs=3 'name=a b'") == ["train.epochs=3", "name=a b"]


def test_recipes_are_found_and_nothing_else(tmp_path):
    (tmp_path / "recipes").mkdir()
    write_recipe(tmp_path / "recipes/one.yaml", recipe_fields("somebody/encoder"))
    (tmp_path / "other.yaml").write_text("services: {}\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (found,) = live.recipes(tmp_path)
    assert (str(found.path), found.name) == ("recipes/one.yaml", "tiny")
    assert str(live.chosen(tmp_path, "recipes/one.yaml")) == "recipes/one.yaml"
    with pytest.raises(RequestError, match="no such recipe"):
        live.chosen(tmp_path, "other.yaml")


@pytest.mark.slow
def test_a_run_is_started_watched_and_stopped(models, tmp_path):
    from tiny import NO_CHECKS, labelled, write_rows

    write_rows(tmp_path / "one.jsonl", labelled(80))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", train={"max_steps": 4}, evaluate=NO_CHECKS))
    runs = live.Live(tmp_path / "runs", tmp_path)
    try:
        number = runs.start("tiny.yaml")
        with pytest.raises(RequestError, match="another run goes on"):
            runs.start("tiny.yaml")
        runs._processes[number].wait()
        state = runs.state(number)
        assert state.status == "done", state.failures
        found = (tmp_path / "runs/tiny/one/this-machine/metrics.jsonl").read_text().splitlines()
        told = [line["loss"] for line in state.steps["one/this-machine"] if "loss" in line]
        assert told == [json.loads(line)["loss"] for line in found if "loss" in json.loads(line)]
        number = runs.start("tiny.yaml", "train.max_steps=100000")
        while not runs.state(number).steps:
            assert runs.busy == number, runs.state(number).failures
        runs.stop(number)
        runs._processes[number].wait()
        assert runs.state(number).status == "interrupted"
        bad = runs.start("tiny.yaml", "train.epoch=1")
        runs._processes[bad].wait()
        assert "did you mean" in runs.state(bad).failures[0]
    finally:
        runs.close()
