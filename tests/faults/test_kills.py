"""`kill -9` at every write of a whole run, and at any moment: the next run leaves what an uninterrupted one leaves."""

from __future__ import annotations

import random
import shutil
import signal

import pytest
from alike import different
from machine import machine
from project import project
from tiny import make_models

SEED = 11
QUICK, MOMENTS = 3, 20
PARTS = {
    # Every stage of one domain.
    "one": {"domains": ("one",)},
    # What works on several: co-training, the matrix.
    "two": {"domains": ("one", "two"), "pretrain": None, "evaluate__security": False, "evaluate__drift": False},
}


class Whole:
    """An uninterrupted run, and others beside it.

    Args:
        folder: Holds the rows and the recipe.
        writes: How many the run has.
        seconds: It took.
    """

    def __init__(self, folder, models, part):
        self.folder = project(folder, models, **PARTS[part])
        done = machine().run("run", "all.yaml", folder=self.folder)
        assert done.code == 0, done.err
        self.writes, self.seconds = done.writes, done.seconds
        (self.folder / "runs").rename(self.folder / "whole")

    def killed(self, **how):
        """What differs after a run that was killed, and another that went to its end."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        first = machine().run("run", "all.yaml", folder=self.folder, **how)
        if first.code != -signal.SIGKILL:
            return [f"it was not killed but ended with {first.code}", first.err]
        again = machine().run("run", "all.yaml", folder=self.folder)
        if again.code != 0:
            return [f"the next run ended with {again.code}", again.err]
        return different(self.folder / "whole/tiny", self.folder / "runs/tiny")


@pytest.fixture(scope="module", params=PARTS)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    make_models(folder / "models")
    return Whole(folder / request.param, folder / "models", request.param)


def test_two_runs_leave_the_same(whole):
    assert machine().run("run", "all.yaml", folder=whole.folder).code == 0
    assert different(whole.folder / "whole/tiny", whole.folder / "runs/tiny") == []


def test_killed_at_a_few_writes(whole):
    for at in random.Random(SEED).sample(range(1, whole.writes + 1), QUICK):
        assert whole.killed(at=at) == [], at


@pytest.mark.slow
def test_killed_at_every_write(whole):
    found = {at: said for at in range(1, whole.writes + 1) if (said := whole.killed(at=at))}
    assert found == {}


@pytest.mark.slow
def test_killed_at_any_moment(whole):
    draw = random.Random(SEED)
    for after in [draw.uniform(0, 0.95 * whole.seconds) for _ in range(MOMENTS)]:
        assert whole.killed(after=after) == [], after
