"""`kill -9` at every write of a whole run, of an export and of what is published, at every request to the Hub, and at
any moment of a run: the next command leaves what an uninterrupted one leaves."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal

import pytest
from alike import different
from hub_server import Fault, hub_server
from leaving import REPO, SENDING, reaching
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
    # A student for a device, and its file there.
    "student": {
        "domains": ("one",),
        "pretrain": None,
        "targets": ["browser-4gb"],
        "student": {"layers": 1, "limit": 100, "epochs": 1.0, "learning_rate": 3e-3},
        "export": {"format": "onnx", "storage": "float32", "limits": {"points": 100}},
        "evaluate__security": False,
        "evaluate__drift": False,
    },
}
CELL, TO = "runs/tiny/one/this-machine", "out/folder"
LEAVING = {
    "exported": ("export", CELL, "--format", "merged", "--to", TO),
    "published": ("publish", CELL, "--license", "mit", "--to", TO),
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

    def killed_after(self, share):
        """The same after a share of the time; a run that was sooner ready, as on a machine that had more to do before,
        tells how long it takes now."""
        while True:
            shutil.rmtree(self.folder / "runs", ignore_errors=True)
            first = machine().run("run", "all.yaml", folder=self.folder, after=share * self.seconds)
            if first.code != 0:
                return self._next(first)
            self.seconds = first.seconds

    def killed(self, **how):
        """What differs after a run that was killed, and another that went to its end."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        return self._next(machine().run("run", "all.yaml", folder=self.folder, **how))

    def _next(self, first):
        if first.code != -signal.SIGKILL:
            return [f"it was not killed but ended with {first.code}", first.err]
        again = machine().run("run", "all.yaml", folder=self.folder)
        if again.code != 0:
            return [f"the next run ended with {again.code}", again.err]
        return different(self.folder / "whole/tiny", self.folder / "runs/tiny")


class Leaving:
    """What leaves a finished run for a folder, by a command that is not interrupted; and others beside it.

    Args:
        folder: Holds the run.
        words: The command.
        writes: How many it has.
    """

    def __init__(self, folder, words):
        self.folder, self.words = folder, words
        done = machine().run(*words, folder=folder)
        assert done.code == 0, done.out + done.err
        self.writes = done.writes
        (folder / TO).parent.rename(folder / "undisturbed")

    def killed(self, at):
        """What differs after the command was killed, and given again."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        first = machine().run(*self.words, folder=self.folder, at=at)
        if first.code != -signal.SIGKILL:
            return [f"it was not killed but ended with {first.code}", first.err]
        # Of a command that was killed at its last write, the folder may be whole.
        whole = (self.folder / TO).exists() and different(self.folder / "undisturbed", self.folder / "out") == []
        if whole:
            return []
        again = machine().run(*self.words, folder=self.folder)
        if again.code != 0:
            return [f"the next command ended with {again.code}", again.err]
        return different(self.folder / "undisturbed", self.folder / "out")


class Sending:
    """What is published to a Hub by a command that is not interrupted; and by others.

    Args:
        folder: Holds the run.
        requests: How many the command makes.
    """

    def __init__(self, folder):
        self.folder = folder
        with hub_server() as hub:
            done = self._send(hub)
            assert done.code == 0, done.out + done.err
            self.requests, self.left = len(hub.requests), self._of(hub)

    def killed(self, number, done):
        """What differs on the Hub after the command was killed at a request, which was done or not, and given again."""
        with hub_server() as hub:
            hub.fault_for = self._killer(number, done)
            first = self._send(hub)
            if first.code != -signal.SIGKILL:
                return [f"it was not killed but ended with {first.code}", first.err]
            del hub.fault_for
            again = self._send(hub)
            if again.code != 0:
                return [f"the next command ended with {again.code}", again.err]
            return [] if self._of(hub) == self.left else [f"on the Hub is {self._of(hub)}, not {self.left}"]

    def _killer(self, number, done):
        def kill():
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)

        at, numbers = Fault("", how="" if done else "down", first=kill), itertools.count(1)
        return lambda request: at if next(numbers) == number else None

    def _send(self, hub):
        how = reaching(hub, self.folder)
        how["first"] += "; import os; open('pid', 'w').write(str(os.getpid()))"
        return machine().run("publish", CELL, *SENDING, folder=self.folder, **how)

    def _of(self, hub):
        """Files by name, what was done in which order, and what the tags name."""
        repo = hub.repos[REPO]
        files = {name: hashlib.sha256(data).hexdigest() for name, data in repo.head.files.items()}
        return files, [each.message for each in repo.commits], [repo.at(tag) is repo.head for tag in repo.tags]


@pytest.fixture(
    scope="module",
    params=[pytest.param(part, marks=pytest.mark.slow if part == "student" else ()) for part in PARTS],
)
def whole(request, tmp_path_factory):
    if request.param == "student":
        pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("killed")
    make_models(folder / "models")
    return Whole(folder / request.param, folder / "models", request.param)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run that went to its end."""
    folder = tmp_path_factory.mktemp("left")
    make_models(folder / "models")
    project(folder, folder / "models", ("one",), pretrain=None)
    done = machine().run("run", "all.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(params=LEAVING)
def leaving(request, finished):
    for name in ("undisturbed", "out"):
        shutil.rmtree(finished / name, ignore_errors=True)
    return Leaving(finished, LEAVING[request.param])


@pytest.fixture
def sending(finished):
    return Sending(finished)


def test_two_runs_leave_the_same(whole):
    assert machine().run("run", "all.yaml", folder=whole.folder).code == 0
    assert different(whole.folder / "whole/tiny", whole.folder / "runs/tiny") == []


def test_killed_at_a_few_writes(whole):
    for at in random.Random(SEED).sample(range(1, whole.writes + 1), QUICK):
        assert whole.killed(at=at) == [], at


def test_what_leaves_is_killed_at_a_few_writes(leaving):
    for at in random.Random(SEED).sample(range(1, leaving.writes + 1), QUICK):
        assert leaving.killed(at) == [], at


def test_what_is_sent_to_the_hub_is_killed_at_a_few_requests(sending):
    for number in random.Random(SEED).sample(range(1, sending.requests + 1), QUICK):
        assert sending.killed(number, done=bool(number % 2)) == [], number


@pytest.mark.slow
def test_what_is_sent_to_the_hub_is_killed_at_every_request(sending):
    each = ((number, done) for number in range(1, sending.requests + 1) for done in (False, True))
    assert {which: said for which in each if (said := sending.killed(*which))} == {}


@pytest.mark.slow
def test_what_leaves_is_killed_at_every_write(leaving):
    found = {at: said for at in range(1, leaving.writes + 1) if (said := leaving.killed(at))}
    assert found == {}


@pytest.mark.slow
def test_killed_at_every_write(whole):
    found = {at: said for at in range(1, whole.writes + 1) if (said := whole.killed(at=at))}
    assert found == {}


@pytest.mark.slow
def test_killed_at_any_moment(whole):
    draw = random.Random(SEED)
    for share in [draw.uniform(0, 0.95) for _ in range(MOMENTS)]:
        assert whole.killed_after(share) == [], share
