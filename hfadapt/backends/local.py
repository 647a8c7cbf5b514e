"""This machine: a worker on each GPU, or as many as cores and memory allow.

The cores are divided among the workers. Each is a process of its own, so that one that is killed takes no other along.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hfadapt.backends import Backend, Workers, command, divided, how, log_of
from hfadapt.core.errors import RequestError
from hfadapt.hardware import catalogue, processor
from hfadapt.hardware.allocator import environment
from hfadapt.records.job import Job

PATIENCE = 120.0
"""Seconds that a worker has to save what it has."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


@dataclass
class Worker:
    """A process that does a job, and the device that it has."""

    job: Job
    process: subprocess.Popen[bytes]
    device: str | None


class LocalWorkers(Workers):
    """Processes on this machine.

    Args:
        most: No more workers than this at the same time; None for as many as there is room for.
        say: Tells people.
    """

    def __init__(self, most: int | None, say: Callable[[str], None]) -> None:
        self.most, self.say = most, say
        self.devices = visible_devices()
        self.free = list(self.devices)
        self.waiting: deque[tuple[Path, Job]] = deque()
        self.running: list[Worker] = []
        self.slots = self.threads = 0

    def submit(self, jobs: Mapping[Path, Job]) -> None:
        """Into the queue; as many as there is room for are started."""
        first = not self.waiting and not self.running
        self.waiting.extend(jobs.items())
        if first:
            cores, (_, memory_bytes) = processor.usable_cores(), catalogue.memory_limits()
            slots = divided(list(jobs.values()), cores, memory_bytes, len(self.devices))
            self.slots = min(slots, self.most or slots)
            self.threads = max(1, cores // self.slots)
            on = "a GPU" if self._device(next(iter(jobs.values()))) else f"{self.threads} of {cores} cores"
            count = f"{len(jobs)} job{'s' * (len(jobs) > 1)}"
            self.say(f"{count} on this machine, {self.slots} at the same time with {on} each")
        self._start()

    def _device(self, job: Job) -> bool:
        return bool(job.resources.gpus and self.devices)

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            path, job = self.waiting[0]
            if self._device(job) and not self.free:
                return
            self.waiting.popleft()
            device = self.free.pop(0) if self._device(job) else None
            variables = {**environment(), THREADS: _fewer(os.environ.get(THREADS), self.threads)}
            if device is not None:
                variables[VISIBLE] = device
            with log_of(path).open("ab") as log:
                # A session of its own: Ctrl-C of the terminal comes to the command alone, which then stops each once.
                process = subprocess.Popen(
                    command(path, tied=True),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=variables,
                    start_new_session=True,
                )
            self.running.append(Worker(job, process, device))

    def ended(self) -> Mapping[str, str]:
        """By their exit codes; in their places the next are started."""
        over = [worker for worker in self.running if worker.process.poll() is not None]
        for worker in over:
            self.running.remove(worker)
            if worker.process.stdin:
                with suppress(OSError):
                    worker.process.stdin.close()
            if worker.device is not None:
                self.free.append(worker.device)
        self._start()
        return {worker.job.name: how(worker.process.returncode) for worker in over}

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for those that are still there after `PATIENCE`."""
        self.waiting.clear()
        for worker in self.running:
            worker.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for worker in self.running:
            try:
                worker.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; [] without CUDA."""
    target = catalogue.this_machine()
    if target.kind != "cuda":
        return []
    named = [word.strip() for word in os.environ.get(VISIBLE, "").split(",") if word.strip()]
    return named or [str(number) for number in range(target.devices)]


def _fewer(asked: str | None, threads: int) -> str:
    return str(min(threads, int(asked))) if asked and asked.isdigit() and int(asked) else str(threads)


class Local(Backend):
    """Processes side by side."""

    name = "local"

    def check(self, address: str) -> None:
        """`local://N` is a number of workers."""
        if address and not (address.isdigit() and int(address)):
            raise RequestError(
                "this is no number of workers",
                place="--on",
                got=f"local://{address}",
                allowed="local, or local://N for at most N workers at the same time",
                fix="--on local",
            )

    def open(self, address: str, folder: Path, say: Callable[[str], None]) -> Workers:
        """Processes of this machine."""
        return LocalWorkers(int(address) if address else None, say)


KIND: Backend = Local()
