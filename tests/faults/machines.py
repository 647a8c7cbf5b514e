"""Faults of machines beside those of a training: folders, clocks, limits, locks; and of text, for those who read."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from machine import Ended
from place import TRAIN, Outcome, Place, judged
from saving import ARMED
from tiny import finish, labelled, start

LIMITS = "import resource; resource.setrlimit(resource.{name}, ({most}, {most}))"
LITTLE_MEMORY = """
import resource
pages = int(open('/proc/self/statm').read().split()[0])
most = pages * resource.getpagesize() + (24 << 20)
from hfadapt.train.cells import Training
real = Training.run
def limited(self):
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return real(self)
Training.run = limited
"""
CLOCK = """
import time
now, ns = time.time, time.time_ns
time.time, time.time_ns = lambda: now() - 3e7, lambda: ns() - 3 * 10**16
"""
NO_LOCKS = """
import errno, fcntl
def flock(*given): raise OSError(errno.{code}, 'no locks')
fcntl.flock = flock
"""
NO_ROOM = "import shutil; real = shutil.disk_usage; shutil.disk_usage = lambda path: real(path)._replace(free=1000)"
FORMULA, SCRIPT = "=cmd|' /C calc'!A0", "<script>alert('row')</script><img src=x onerror=alert(1)>"


def read_only(place: Place) -> Outcome:
    place.project()
    at_once = place.run("train", "tiny.yaml", at=1, fault=errno.EROFS)
    nothing = not (place.folder / "runs").exists()
    where = {"module": "hfadapt.train", "name": "checkpoint", "attribute": "save", "when": "given[1] >= 4"}
    place.run("train", "tiny.yaml", first=ARMED.format(**where, error=errno.EROFS))
    kept = {"nothing was begun": nothing, "where it happens later, step-000002": place.checkpoints == ["step-000002"]}
    return judged(at_once, code=2, says="the run folder cannot be written", kept=kept)


def working_folder_gone(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    shutil.copytree(place.folder, place.folder.with_name(f"{place.folder.name}-moved"))
    gone = place.run("train", "tiny.yaml", first="import os, shutil; shutil.rmtree(os.getcwd())")
    shutil.move(place.folder.with_name(f"{place.folder.name}-moved"), place.folder)
    again = place.run("train", "tiny.yaml")
    kept = {"a run that was moved away": place.as_uninterrupted}
    return judged(gone, code=2, says="the folder you are in is gone", kept=kept, also=[again])


def clock_set_back(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    again = place.run("run", "tiny.yaml", first=CLOCK)
    kept = {"step 4": place.cell.train.resumed_from_step == 4, "every bit": place.as_uninterrupted}
    return judged(again, code=0, says="going on from step 4", kept=kept)


def few_files(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    before = place.checkpoints
    done = place.run("train", "tiny.yaml", first=LIMITS.format(name="RLIMIT_NOFILE", most=6))
    kept = {"the checkpoints": place.checkpoints == before}
    again = place.run("train", "tiny.yaml")
    kept["every bit"] = place.as_uninterrupted
    return judged(done, code=done.code or 1, says="no more files may be opened at once", kept=kept, also=[again])


def little_memory(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    before = place.checkpoints
    done = place.run("train", "tiny.yaml", first=LITTLE_MEMORY)
    kept = {"the checkpoints": place.checkpoints == before}
    again = place.run("train", "tiny.yaml")
    return judged(done, code=1, says="out of memory during train", kept=kept, also=[again])


def no_room(place: Place) -> Outcome:
    place.copy(place.shared.interrupted)
    before = place.checkpoints
    done = place.run("train", "tiny.yaml", first=NO_ROOM)
    again = place.run("train", "tiny.yaml")
    kept = {"the checkpoints": len(before) == 2, "every bit": place.as_uninterrupted}
    return judged(done, code=1, says="not enough room for the checkpoints", kept=kept, also=[again])


def without_locks(place: Place) -> Outcome:
    place.project()
    done = place.run("train", "tiny.yaml", first=NO_LOCKS.format(code="ENOLCK"))
    (place.folder / "runs").rename(place.folder / "first")
    other = place.run("train", "tiny.yaml", first=NO_LOCKS.format(code="ENOSYS"))
    kept = {"every bit": place.as_uninterrupted}
    return judged(done, code=0, says="has no locks", kept=kept, also=[other])


def shared_caches(place: Place) -> Outcome:
    place.project()
    import os

    os.environ["HFADAPT_CACHE"], before = str(place.folder / "cache"), os.environ.get("HFADAPT_CACHE", "")
    both = [start("train", "tiny.yaml", "--runs", runs, folder=place.folder) for runs in ("runs", "others")]
    os.environ["HFADAPT_CACHE"] = before
    first, second = (Ended(each.code, each.out, each.err, 0, 0.0) for each in (finish(one, 400) for one in both))
    name = "tiny/one/this-machine/adapter/adapter_model.safetensors"
    same = (place.folder / "runs" / name).read_bytes() == (place.folder / "others" / name).read_bytes()
    return judged(first, code=0, says="step 6/6", kept={"both, alike to the last bit": same}, also=[second])


def hostile_text(place: Place) -> Outcome:
    rows = labelled(72)
    rows = [{**row, "text": f"{(FORMULA, SCRIPT)[n // 2 % 2]} {row['text']}"} for n, row in enumerate(rows)]
    place.project(rows=rows, train=TRAIN)
    done = place.run("run", "tiny.yaml")
    pages = [path for path in (place.folder / "runs").rglob("*") if path.suffix in (".html", ".md", ".svg")]
    clean = all(not each.lower().count(bad) for each in map(_text, pages) for bad in ("<script>alert", "<img src=x"))
    kept = {"pages and cards without the rows' markup": clean and len(pages) >= 4}
    kept["no table that a spreadsheet opens"] = not list((place.folder / "runs").rglob("*.csv"))
    return judged(done, code=0, says="accuracy", kept=kept)


def _text(path: Path) -> str:
    """What a reader's program takes for markup: not what stands between fences of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
