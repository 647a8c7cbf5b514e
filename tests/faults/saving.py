"""Faults of machines: killed, stopped, without space, memory or lock, with damaged checkpoints."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from unittest import mock

from filelock import FileLock
from machine import Ended
from place import Outcome, Place, judged
from tiny import finish, start

from hfadapt.records.stages import TrainRecord

ARMED = """
import ctypes, os
from {module} import {name} as target
real = target.{attribute}
def armed(*given, **named):
    if {when}: ctypes.CDLL(None).faults_arm(os.getcwd().encode(), ctypes.c_long(1), {error})
    return real(*given, **named)
target.{attribute} = armed
"""
"""From a call on, nothing that needs room can be written."""
CHECKPOINT = {"module": "hfadapt.train", "name": "checkpoint", "attribute": "save", "when": "given[1] >= 4"}
CARD = {"module": "hfadapt.stages.card", "name": "CardStage", "attribute": "run", "when": "True"}
SHORT = """
from hfadapt.train.passes import Passes
import torch
real = Passes.loss
def short(self, micro, weights):
    if torch.is_grad_enabled() and len(micro.rows) >= 8 and micro.rows[0].job.state.step >= {step}:
        raise {error}
    return real(self, micro, weights)
Passes.loss = short
"""
"""From a step on there is no memory for eight rows."""


WHICH = """
import os
LAST = os.environ["RANK"] == "1"
FIRST = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
"""


KILLED_ONCE = """
import signal
from hfadapt.train.passes import Passes
real = Passes.loss
def killed(self, micro, weights):
    if FIRST and LAST and micro.rows[0].job.state.step >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, micro, weights)
Passes.loss = killed
"""


def killed_in_a_save(place: Place) -> Outcome:
    place.project()
    writes = place.run("train", "tiny.yaml").writes
    shutil.rmtree(place.folder / "runs")
    at = random.Random(7).randint(writes // 2, writes - 10)
    first = place.run("train", "tiny.yaml", at=at)
    again = place.run("train", "tiny.yaml")
    kept = {"the newest whole checkpoint": first.code == -signal.SIGKILL, "every bit": place.as_uninterrupted}
    return judged(again, code=0, says="previous run was killed during", kept=kept)


def _full(place: Place, where: dict[str, str], command: str) -> Ended:
    return place.run(command, "tiny.yaml", first=ARMED.format(**where, error=errno.ENOSPC))


def full_in_a_save(place: Place) -> Outcome:
    place.project()
    first = _full(place, CHECKPOINT, "train")
    old = place.checkpoints
    again = place.run("train", "tiny.yaml")
    kept = {"step-000002": old == ["step-000002"], "every bit after space was freed": place.as_uninterrupted}
    return judged(first, code=1, says="the checkpoint could not be written", kept=kept, also=[again])


def full_in_the_card(place: Place) -> Outcome:
    place.project()
    first = _full(place, CARD, "run")
    path = place.cell.adapter / "adapter_model.safetensors"
    before = path.stat().st_mtime_ns
    again = place.run("run", "tiny.yaml")
    kept = {"the adapter": place.as_uninterrupted and path.stat().st_mtime_ns == before}
    kept["the card of the next run"] = (place.cell.folder / "README.md").exists()
    return judged(first, code=1, says="the disk is full", kept=kept, also=[again])


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _damaged(place: Place, name: str, harm: Callable[[os.PathLike[str]], object], says: str) -> Outcome:
    place.copy(place.shared.interrupted)
    harm(place.cell.folder / "checkpoints/step-000004" / name)
    again = place.run("train", "tiny.yaml")
    older = place.cell.train.resumed_from_step == 2
    return judged(again, code=0, says=says, kept={"step-000002": older, "every bit": place.as_uninterrupted})


def flipped(place: Place) -> Outcome:
    def flip(path: os.PathLike[str]) -> None:
        with open(path, "r+b") as file:
            file.seek(-5, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-5, os.SEEK_END)
            file.write(bytes([byte ^ 0x10]))

    return _damaged(place, "adapter.safetensors", flip, "step-000004 skipped: adapter.safetensors is damaged")


def without_optimizer(place: Place) -> Outcome:
    return _damaged(place, "optimizer.pt", os.unlink, "step-000004 skipped: incomplete")


def foreign(place: Place) -> Outcome:
    def strange(path: os.PathLike[str]) -> None:
        shutil.rmtree(path)
        os.makedirs(path)
        with open(os.path.join(path, "pytorch_model.bin"), "wb") as file:
            file.write(b"of something else")

    return _damaged(place, "", strange, "step-000004 skipped: incomplete")


def changed_since(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    again = place.run("train", "tiny.yaml", "train.learning_rate=0.001")
    kept = {"nothing of another training goes on": place.cell.train.resumed_from_step is None}
    return judged(again, code=0, says="skipped: it belongs to another recipe, data or base", kept=kept)


def another_world(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    launcher = ("torch.distributed.run", "--nproc_per_node", "2", "-m")
    done = finish(start("hfadapt", "train", "tiny.yaml", folder=place.folder, launcher=launcher), 300)
    ended = Ended(done.code, done.out, done.err, 0, 0.0)
    record = place.cell.train
    kept = {"step 4": record.resumed_from_step == 4, "the number of processes in train.json": record.world_size == 2}
    return judged(ended, code=0, says="going on from step 4 of 6", kept=kept)


# --- memory ----------------------------------------------------------------------------------------------------------


def _short(place: Place, step: int, error: str, resumed: int | None) -> Outcome:
    place.project()
    done = place.run("train", "tiny.yaml", first=SHORT.format(step=step, error=error))
    record = place.cell.train
    same = (record.steps, place.cell.lock.train.batch_rows, record.halvings) == (6, 8, 1)
    kept = {"the effective batch": same, "what was learned": record.resumed_from_step == resumed}
    return judged(done, code=0, says="goes on from the last checkpoint with 4 rows at a time", kept=kept)


def short_at_once(place: Place) -> Outcome:
    return _short(place, 0, "MemoryError", None)


def short_later(place: Place) -> Outcome:
    return _short(place, 4, "torch.OutOfMemoryError('CUDA out of memory.')", 4)


def killed_for_memory(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    again = place.run("train", "tiny.yaml")
    kept = {"step 4": place.cell.train.resumed_from_step == 4, "every bit": place.as_uninterrupted}
    return judged(again, code=0, says="killed during train, probably out of memory", kept=kept)


# --- signals ---------------------------------------------------------------------------------------------------------


def stopped(place: Place) -> Outcome:
    place.project()
    outcomes = []
    for kind, code, when in (
        (signal.SIGTERM, 143, "step 1/6"),
        (signal.SIGUSR1, 143, "scoring the adapter"),
        (signal.SIGINT, 130, "writing one"),
    ):
        for folder in ("runs", "cache"):
            shutil.rmtree(place.folder / folder, ignore_errors=True)
        cache = {"HFADAPT_CACHE": str(place.folder / "cache")} if kind == signal.SIGINT else {}
        first = place.run("run", "tiny.yaml", when=when, send=kind, variables=cache)
        again = place.run("run", "tiny.yaml")
        kept = {"all within 25 s": first.seconds < 25, "every bit": place.as_uninterrupted}
        outcomes.append(
            judged(first, code=code, says="interrupted; what was finished is kept", kept=kept, also=[again])
        )
    wrong = tuple(each for outcome in outcomes for each in outcome.wrong)
    return Outcome(outcomes[0].said, outcomes[0].code, outcomes[0].kept, wrong)


# --- processes and locks ---------------------------------------------------------------------------------------------


def rows_vanish(place: Place) -> Outcome:
    place.project()
    place.run("prepare", "tiny.yaml")
    (place.cell.folder / "data/train.parquet").unlink()
    again = place.run("train", "tiny.yaml")
    return judged(
        again, code=0, says="not as they were saved and are made again", kept={"every row": place.as_uninterrupted}
    )


def short_beside_another(place: Place) -> Outcome:
    short = SHORT.format(step=5, error="MemoryError").replace("len(micro.rows) >= 8", "len(micro.rows) >= 4 and LAST")
    kept = {"the effective batch": lambda record: place.cell.lock.train.batch_rows == 8 and record.halvings == 1}
    return _started_again(place, short, says="out of memory in one of 2 processes; the same command goes on", kept=kept)


def dies_once(place: Place) -> Outcome:
    return _started_again(place, KILLED_ONCE, says="going on from step 4 of 6", kept={})


def _started_again(place: Place, first: str, says: str, kept: Mapping[str, Callable[[TrainRecord], bool]]) -> Outcome:
    """The launcher starts two processes again, once, of which the second has ended after step 4."""
    place.project(processes=2)
    (place.folder / "both.py").write_text(
        f"{WHICH}{first}\nimport runpy\nrunpy.run_module('hfadapt', run_name='__main__')\n"
    )
    launcher = ("torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--max-restarts", "1", "both.py")
    done = finish(start("train", "tiny.yaml", folder=place.folder, launcher=launcher), 300)
    own = "\n".join(line for line in done.err.splitlines() if "Traceback" not in line)
    record = place.cell.train
    held = {"step 4": record.resumed_from_step == 4, **{what: holds(record) for what, holds in kept.items()}}
    return judged(Ended(done.code, done.out, own, 0, 0.0), code=0, says=says, kept=held)


def a_rank_dies(place: Place) -> Outcome:
    return _one_of_two(place, signal.SIGKILL, says="exitcode: -9", ends=60)


def a_rank_hangs(place: Place) -> Outcome:
    with mock.patch.dict(os.environ, HFADAPT_STEP_SECONDS="20"):
        # The launcher waits half a minute for the one that hangs before it kills it.
        return _one_of_two(place, signal.SIGSTOP, says="another process of this run does not answer", ends=110)


def _one_of_two(place: Place, kind: signal.Signals, says: str, ends: float) -> Outcome:
    """One of two processes gets a signal in the middle of a training."""
    place.project(train={"batch_rows": 8, "max_steps": 400, "checkpoint_every_steps": 2})
    process = start(
        *("hfadapt", "train", "tiny.yaml"),
        folder=place.folder,
        launcher=("torch.distributed.run", "--nproc_per_node", "2", "-m"),
    )
    folder = place.cell.folder / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(folder.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), kind)
    started = time.monotonic()
    done = finish(process, 120)
    took = time.monotonic() - started
    again = place.run("train", "tiny.yaml", "train.max_steps=400")
    kept = {"the other process ends": took < ends, "a checkpoint": bool(place.cell.train.resumed_from_step)}
    # What the launcher itself says holds tracebacks.
    own = "\n".join(line for line in done.err.splitlines() if "Traceback" not in line)
    return judged(Ended(done.code, done.out, own, 0, took), code=1, says=says, kept=kept, also=[again])


def fewer_processes(place: Place) -> Outcome:
    place.project()
    done = place.run("train", "tiny.yaml", "processes=2")
    kept = {"nothing was loaded or written": not (place.folder / "runs").exists()}
    return judged(done, code=2, says="1 process started, but the recipe asked for 2", kept=kept)


def two_runs(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    before = place.checkpoints
    with FileLock(place.folder / "runs/tiny/.lock"):
        second = place.run("train", "tiny.yaml")
    kept = {"the first run's files": place.checkpoints == before}
    # The file of a lock that nobody holds is no lock.
    again = place.run("train", "tiny.yaml")
    kept["every bit, once the first has ended"] = place.as_uninterrupted
    return judged(second, code=2, says="another run is using this folder", kept=kept, also=[again])
