"""A Ray cluster: each job is a task with the cores, GPUs and memory of its plan.

`ray` joins the cluster of this machine, or starts one; `ray://HOST:PORT` is the one whose head `ray start --head` has
started there (port 6379), seen from one of its machines, or from outside by Ray Client (port 10001).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfadapt.backends import Backend, Workers, command, how, last_words, log_of, settings
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.show import show_bytes
from hfadapt.records.job import Job, Resources

CLIENT_PORT = "10001"
REACHED = 10.0
"""Seconds in which the head of a cluster has to answer."""
JOINED, TOLD_EVERY = 120.0, 15.0
"""Seconds in which the cluster has to take this command in, or to be started; how often it is said that this is waited
for."""
RESULT = 30.0
"""Seconds in which the result of a task that has ended has to be there."""
LOOKED, GONE = 5.0, 30.0
"""How often it is looked whether the head is there, and for how many seconds it may be gone: after 60 Ray itself ends
this process without a word."""
PATIENCE = 60.0
"""Seconds that workers have to save what they have."""
SAVING = 30.0
"""Seconds that a task has for that once it was cancelled."""


def work(path: str, place: str, variables: dict[str, str], threads: int) -> int | str:
    """What a task does on its machine: the job in a process of its own, which ends when the task does.

    Returns:
        The exit code; the machine's name where it does not see the job.
    """
    import signal
    import subprocess

    if not Path(path).is_file() or not Path(place).is_dir():
        return os.uname().nodename
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": str(threads)}
    with log_of(Path(path)).open("ab") as log:
        process = subprocess.Popen(
            command(Path(path), tied=True),
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAVING)
            process.kill()


class RayWorkers(Workers):
    """Tasks of a cluster.

    Args:
        ray: The module.
        head: Where the head of the cluster listens.
        say: Tells people.
    """

    def __init__(self, ray: Any, head: str, say: Callable[[str], None]) -> None:
        self.ray, self.head, self.say = ray, head, say
        self.looked = self.seen = time.monotonic()
        self.gone = False
        self.tasks: dict[Any, tuple[Path, Job]] = {}
        self.work = ray.remote(work)

    def submit(self, jobs: Mapping[Path, Job]) -> None:
        """A task each; the cluster says when."""
        for path, job in jobs.items():
            needs = self._fitted(job.resources)
            task = self.work.options(
                name=f"hfadapt {job.name}",
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                memory=needs.memory_bytes,
                # Whoever has handed it out does that, and says so.
                max_retries=0,
                scheduling_strategy="SPREAD",
            ).remote(str(path.absolute()), job.place, settings(), needs.cpus)
            self.tasks[task] = (path, job)

    def _fitted(self, needs: Resources) -> Resources:
        """No more cores than the largest machine has: with fewer it takes longer. What else none has is said."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        needs = needs.model_copy(update={"cpus": max(1, min(needs.cpus, cpus or needs.cpus))})
        able = [
            node
            for node in nodes
            if node.get("CPU", 0) >= needs.cpus
            and node.get("GPU", 0) >= needs.gpus
            and node.get("memory", 0) >= needs.memory_bytes
        ]
        if not able:
            gpu = f", {needs.gpus} GPU" if needs.gpus else ""
            wants = f"{needs.cpus} cores{gpu} and {show_bytes(needs.memory_bytes)}"
            self.say(f"no machine of the cluster has {wants} for a job: it waits for one")
        return needs

    def ended(self) -> Mapping[str, str]:
        """By the results of tasks."""
        self._look_for_the_head()
        over: dict[str, str] = {}
        ready, _ = self.ray.wait([*self.tasks], num_returns=len(self.tasks), timeout=0) if self.tasks else ([], [])
        for task in ready:
            path, job = self.tasks.pop(task)
            try:
                result = self.ray.get(task, timeout=RESULT)
            except Exception as error:
                # Of a lost machine, a killed worker, a cancelled task: each has a kind of its own.
                over[job.name] = f"{type(error).__name__} of Ray"
                continue
            if isinstance(result, str):
                raise RequestError(
                    "a machine of the cluster does not see the folder of the run",
                    place=str(path.absolute()),
                    got=f"it is not there on {result}",
                    allowed="a folder that all machines see at the same path",
                    fix="keep the recipe, its data and --runs on a shared file system",
                )
            over[job.name] = how(result) or last_words(path)
        return over

    def _look_for_the_head(self) -> None:
        now = time.monotonic()
        if now - self.looked < LOOKED:
            return
        try:
            _reach(self.head)
        except RequestError:
            if self.looked == self.seen:
                self.say(f"the head of the Ray cluster at {self.head} does not answer; looking for {GONE:.0f} s more")
            self.looked = time.monotonic()
            self.gone = self.looked - self.seen > GONE
        else:
            self.looked = self.seen = time.monotonic()
        if self.gone:
            raise RunError(
                "the Ray cluster is gone",
                place="--on",
                got=f"no answer from its head at {self.head} for {self.looked - self.seen:.0f} s",
                fix="start it again and run the command again: it goes on from the last checkpoints",
            )

    def stop(self) -> None:
        """Cancels tasks, which end their workers, and leaves the cluster."""
        if self.gone:
            return  # nobody is there to be told; workers end with the tasks of the cluster
        for task in self.tasks:
            with suppress(Exception):  # one that has just ended
                self.ray.cancel(task)
        until = time.monotonic() + PATIENCE
        while self.tasks and time.monotonic() < until:
            with suppress(RequestError, RunError):
                self.ended()
            time.sleep(0.2)
        self.ray.shutdown()


def _joined() -> str:
    """The address of the cluster that this machine has joined, as Ray notes it, also once it is gone; else ''."""
    if asked := os.environ.get("RAY_ADDRESS", "").removeprefix("ray://"):
        return asked if ":" in asked else ""
    noted = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray/ray_current_cluster"
    try:
        return noted.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _reach(address: str) -> None:
    """Somebody listens there: where nobody does, Ray itself tries for minutes before it says so.

    Raises:
        RequestError: nobody does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> RequestError:
    return RequestError(
        "there is no Ray cluster at this address",
        place="--on",
        got=f"{address}: {' '.join(str(error).split())[:200]}",
        allowed="ray://HOST:PORT as `ray start --head` shows it, on a machine of the cluster; or ray",
        fix="ray status says what runs here, ray stop forgets a cluster that is gone, and ray start "
        "--address=HOST:PORT joins one",
    )


def _in_time(work: Callable[[], None], waiting: str, say: Callable[[str], None]) -> None:
    """Does work that may never come back, in a thread that is left behind; it is said what is waited for. The thread
    stays: what Ray has started ends with the thread that has started it.

    Raises:
        TimeoutError: it has taken longer than `JOINED`.
    """
    failed: list[BaseException] = []
    done = threading.Event()

    def attempt() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        done.set()
        threading.Event().wait()

    started = time.monotonic()
    threading.Thread(target=attempt, daemon=True).start()
    while not done.wait(min(TOLD_EVERY, JOINED - (time.monotonic() - started))):
        waited = time.monotonic() - started
        if waited >= JOINED:
            raise TimeoutError(f"no answer in {waited:.0f} s")
        say(f"{waiting}, for {waited:.0f} of at most {JOINED:.0f} s")
    if failed:
        raise failed[0]


class Ray(Backend):
    """Tasks of a Ray cluster."""

    name = "ray"

    def check(self, address: str) -> None:
        """Ray is installed."""
        if importlib.util.find_spec("ray") is None:
            raise RequestError("Ray is not installed", place="--on ray", fix='pip install "hfadapt[ray]"')

    def open(self, address: str, folder: Path, say: Callable[[str], None]) -> Workers:
        """Joins the cluster."""
        # Asked of the user, it says to nobody that it was used.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # With a GPU for no task, Ray would hide all GPUs from it in the future and warns of that.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if known := address or _joined():
            _reach(known)
        ray: Any = importlib.import_module("ray")
        _, _, port = address.rpartition(":")
        named = f"ray://{address}" if port == CLIENT_PORT else address

        def join() -> None:
            ray.init(address=named or None, log_to_driver=False, logging_level="ERROR", namespace="hfadapt")

        what = f"the Ray cluster at {known}" if known else "a Ray cluster to be started on this machine"
        try:
            _in_time(join, f"waiting for {what}", say)
        except Exception as error:
            raise _unreachable(address or "ray", error) from None
        cores = ray.cluster_resources()
        say(
            f"Ray cluster of {len([node for node in ray.nodes() if node['Alive']])} machines: "
            f"{int(cores.get('CPU', 0))} cores, {int(cores.get('GPU', 0))} GPUs"
        )
        return RayWorkers(ray, known or str(ray.get_runtime_context().gcs_address), say)


KIND: Backend = Ray()
