"""A cluster under Slurm: array jobs by sbatch, followed by the records in the shared run folder.

What a site wants beside cores, GPUs, memory and time (partition, account) is said to sbatch as ever, by its variables
`SBATCH_PARTITION`, `SBATCH_ACCOUNT` … where the command is started; they go before what the script says.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hfadapt.backends import Backend, Left, Workers, last_words
from hfadapt.core.errors import RequestError
from hfadapt.core.spec import write_text
from hfadapt.hardware.processes import interruptible
from hfadapt.records.job import Job

MOST_TASKS = 1000
"""Of one array: one less than Slurm's own limit where a site has not changed it."""
WARNED_SECONDS = 120
"""So long before the end of its time a job is told to save what it has."""
LONGER, AT_LEAST_SECONDS = 3.0, 1800.0
"""The time that is asked for: so many times that of the plan, and this for loading and for what no plan knows."""
MIB = 1 << 20
NO_JOB = "invalid job id"
"""What squeue says of jobs that it no longer knows."""
PATIENCE = 60.0
"""Seconds that workers have to save what they have."""
SUBMITTED = "submitted.json"
"""In the folder of jobs: the tasks that were submitted from it, by their numbers in Slurm, with their jobs' names."""


class SlurmWorkers(Workers):
    """Tasks of array jobs.

    Args:
        folder: Where scripts and logs are written.
        say: Tells people.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.tasks = {task: (name, folder / f"{name}.json") for task, name in _submitted(folder).items()}
        """By their numbers in Slurm: the job's name, and its file."""
        self.missed: set[str] = set()
        self.arrays = len(list(folder.glob("array-*.sh")))

    def submit(self, jobs: Mapping[Path, Job]) -> None:
        """An array for each kind of resources."""
        alike: dict[tuple[int, int], dict[Path, Job]] = defaultdict(dict)
        for path, job in jobs.items():
            alike[job.resources.cpus, job.resources.gpus][path] = job
        for kind in alike.values():
            paths = list(kind)
            for place in range(0, len(paths), MOST_TASKS):
                self._array({path: kind[path] for path in paths[place : place + MOST_TASKS]})

    def _array(self, jobs: Mapping[Path, Job]) -> None:
        self.arrays += 1
        script = self.folder / f"array-{self.arrays}.sh"
        script.write_text(script_of(jobs, script), encoding="utf-8")
        # Between submitting and noting it nothing may end this command: the next one would submit it again.
        with interruptible() as stopped:
            done = _run(["sbatch", "--parsable", str(script.absolute())])
            number = done.stdout.strip().rpartition("\n")[2].partition(";")[0]
            if not done.returncode:
                tasks = {f"{number}_{place}": (job.name, path) for place, (path, job) in enumerate(jobs.items())}
                self.tasks |= tasks
                again = {name for name, _ in tasks.values()}
                known = {task: name for task, name in _submitted(self.folder).items() if name not in again}
                known |= {task: name for task, (name, _) in tasks.items()}
                write_text(self.folder / SUBMITTED, json.dumps(known, indent=1) + "\n")
        if done.returncode:
            raise RequestError(
                "sbatch refuses the jobs",
                place=str(script),
                got=" ".join((done.stderr or done.stdout).split()),
                fix="set SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT … as your cluster wants them, and run the "
                "command again",
            )
        self.say(f"array job {number} of {len(jobs)} submitted: {script}")
        if stopped:
            raise KeyboardInterrupt

    def ended(self) -> Mapping[str, str]:
        """Those that squeue does not list, twice in a row; nothing where there is no squeue: their events say it."""
        listed = _listed(self.tasks)
        if not self.tasks or listed is None:
            return {}
        missing = self.tasks.keys() - listed
        over = {task: self.tasks.pop(task) for task in sorted(missing & self.missed)}
        self.missed = missing - over.keys()
        states = _states([*over]) if over else {}
        return {name: states.get(task, "") or last_words(path) for task, (name, path) in over.items()}

    def stop(self) -> None:
        """SIGUSR1, which lets a worker save what it has, and scancel for those that are still there."""
        numbers = _arrays(self.tasks)
        if numbers and not shutil.which("scancel"):
            return
        (self.folder / SUBMITTED).unlink(missing_ok=True)
        if not numbers:
            return
        _run(["scancel", "--state=PENDING", *numbers])
        _run(["scancel", "--full", "--signal=USR1", *numbers])
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and _listed(self.tasks):
            time.sleep(1.0)
        _run(["scancel", *numbers])
        self.tasks.clear()

    def leave(self) -> bool:
        """They are the scheduler's."""
        if self.tasks:
            self.say(
                f"{_many(_arrays(self.tasks))} in Slurm without this command\n"
                f"  the same command follows it to its end; to end it: {_cancel(self.tasks)}"
            )
        return bool(self.tasks)


def _submitted(folder: Path) -> dict[str, str]:
    """What was submitted from a folder of jobs: tasks by their numbers in Slurm, with their jobs' names."""
    try:
        found = json.loads((folder / SUBMITTED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {str(task): str(name) for task, name in found.items() if (folder / f"{name}.json").exists()}


def _arrays(tasks: Iterable[str]) -> list[str]:
    """The numbers of their array jobs."""
    return sorted({task.partition("_")[0] for task in tasks})


def _listed(tasks: Iterable[str]) -> set[str] | None:
    """Those tasks of the same array jobs that squeue lists; None where it does not answer."""
    numbers = _arrays(tasks)
    if not numbers or not shutil.which("squeue"):
        return None
    done = _run(["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(numbers)}"])
    if done.returncode and NO_JOB not in done.stderr.lower():
        return None
    return {*done.stdout.split()}


def _many(numbers: Sequence[str]) -> str:
    return f"array job {numbers[0]} goes on" if len(numbers) == 1 else f"array jobs {', '.join(numbers)} go on"


def _cancel(tasks: Iterable[str]) -> str:
    return " ".join(["scancel", *_arrays(tasks)])


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command of Slurm."""
    # Not in the terminal's group: Ctrl-C is for this command alone.
    return subprocess.run(
        words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _states(tasks: Sequence[str]) -> dict[str, str]:
    """How tasks ended, as sacct says it; {} where there is none or it keeps no records."""
    if not shutil.which("sacct"):
        return {}
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    done = _run([*words, f"--jobs={','.join(tasks)}"])
    pairs = (line.split("|") for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1] != "COMPLETED"}


def script_of(jobs: Mapping[Path, Job], path: Path) -> str:
    """What sbatch is given for jobs that want the same cores and GPUs: the most memory and time of any of them."""
    first = next(iter(jobs.values())).resources
    memory = max(job.resources.memory_bytes for job in jobs.values())
    known = [job.resources.seconds for job in jobs.values()]
    seconds = [each for each in known if each is not None]
    # Where nothing is known of one, the cluster's own limit is the better guess.
    minutes = int((AT_LEAST_SECONDS + LONGER * max(seconds)) / 60) + 1 if len(seconds) == len(known) else None
    asked = {
        "job-name": f"hfadapt-{Path(next(iter(jobs.values())).folder).name}",
        "array": f"0-{len(jobs) - 1}",
        "ntasks": 1,
        "cpus-per-task": first.cpus,
        "gres": f"gpu:{first.gpus}" if first.gpus else None,
        "mem": f"{-(-memory // MIB)}M",
        "time": minutes,
        "signal": f"B:USR1@{WARNED_SECONDS}",
        "output": f"{path.absolute().with_suffix('')}-%a.log",
        "open-mode": "append",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]
    lines += ["#SBATCH --requeue", "", "jobs=("]
    lines += [f"  {shlex.quote(str(each.absolute()))}" for each in jobs]
    lines += [
        ")",
        'job="${jobs[$SLURM_ARRAY_TASK_ID]}"',
        f"export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-{first.cpus}}}",
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        # In the place of the shell, so that signals of Slurm come to it.
        f'exec {shlex.quote(sys.executable)} -m hfadapt work "$job" >> "${{job%.json}}.log" 2>&1',
    ]
    return "\n".join([*lines, ""])


class Slurm(Backend):
    """Array jobs."""

    name = "slurm"
    seconds_between = 10.0

    def check(self, address: str) -> None:
        """There is an sbatch."""
        if address:
            raise RequestError(
                "Slurm has no address",
                place="--on",
                got=f"slurm://{address}",
                fix="--on slurm, and SBATCH_PARTITION, SBATCH_CLUSTERS … for where the jobs are to go",
            )
        if not shutil.which("sbatch"):
            raise RequestError(
                "there is no sbatch on this machine",
                place="--on slurm",
                fix="start it on a machine of the cluster from which jobs are submitted, or use --on local",
            )

    def left(self, folder: Path) -> Left:
        """The tasks in `submitted.json`."""
        tasks = _submitted(folder)
        if not tasks:
            return Left()
        if (listed := _listed(tasks)) is None:
            raise RequestError(
                "whether the jobs of an earlier command are still in Slurm's queue cannot be found out",
                place=str(folder / SUBMITTED),
                got="squeue does not answer" if shutil.which("squeue") else "there is no squeue on this machine",
                fix=f"run it where squeue answers; or end them ({_cancel(tasks)}) and delete that file",
            )
        there = frozenset(name for task, name in tasks.items() if task in listed)
        return Left(there, frozenset(tasks.values()) - there, _cancel(tasks)) if there else Left()

    def open(self, address: str, folder: Path, say: Callable[[str], None]) -> Workers:
        """Arrays that this command submits, or an earlier one has submitted."""
        return SlurmWorkers(folder, say)


KIND: Backend = Slurm()
