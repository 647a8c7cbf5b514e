"""A job: the stages of some cells that one worker does, and what it needs for that."""

from __future__ import annotations

from typing import Any, ClassVar

from hfadapt.core.spec import Record, Spec


class Resources(Spec):
    """What a worker needs.

    Args:
        cpus: Cores.
        gpus: Devices.
        memory_bytes: Main memory, the libraries' own included.
        seconds: About how long it takes, as the plans say; None where nobody can say.
    """

    cpus: int
    gpus: int
    memory_bytes: int
    seconds: float | None = None


class Job(Record):
    """What a worker is told. Paths are as the command had them, seen from its working directory `place`.

    Args:
        name: Its name among the jobs of the command.
        recipe: What was asked for, as JSON.
        domains: The domains of the command: rows are those that were prepared for all of them.
        cells: The cells that this worker does.
        stages: The stages that it does for them.
    """

    FILE: ClassVar[str] = "job.json"
    name: str
    recipe: dict[str, Any]
    domains: tuple[str, ...]
    cells: tuple[str, ...]
    stages: tuple[str, ...]
    folder: str
    recipe_folder: str
    place: str
    resources: Resources
