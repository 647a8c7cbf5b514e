"""A worker's part of a run: some stages of some cells, as a job says. What concerns the whole run is not its affair."""

from __future__ import annotations

import os
from pathlib import Path

from hfadapt.core.errors import RequestError
from hfadapt.core.progress import Progress, Silent, quiet_libraries
from hfadapt.pipeline.flow import Flow, told
from hfadapt.pipeline.locks import job_lock
from hfadapt.pipeline.remaining import Remaining
from hfadapt.recipe.schema import Recipe
from hfadapt.records.job import Job
from hfadapt.report.run_view import Run
from hfadapt.run_folder import make_writable, sweep
from hfadapt.stages import Context


@quiet_libraries()
def do_job(path: Path, progress: Progress) -> bool:
    """Does the job of this file.

    Returns:
        Whether all its cells are as they should be.

    Raises:
        RequestError: this machine lacks what the job needs, or another worker is doing it.
        KeyboardInterrupt: finished cells and the last checkpoint are on disk.
    """
    from hfadapt.fast import compiled
    from hfadapt.hardware.processes import World

    job = Job.read(path)
    _enter(job)
    recipe, folder = Recipe.model_validate(job.recipe).choose(), Path(job.folder)
    with job_lock(path, progress.say):
        compiled.switch()
        world = World(recipe.train.trackers, folder / "trackers")
        context = Context(
            recipe, Run(folder), world, Silent(), Path(job.recipe_folder), domains=job.domains, only=job.cells
        )
        make_writable(folder, [cell.folder for cell in context.cells])
        for cell in context.cells:
            sweep(cell.folder)
        stages = [stage for stage in context.stages if stage.name in job.stages]
        flow = Flow(context, stages)
        flow.check()
        flow.progress = context.progress = Remaining(progress, context.cells, stages)
        with told(context, flow):
            flow.run()
        return not flow.failed


def _enter(job: Job) -> None:
    """Goes to where paths are seen from."""
    try:
        os.chdir(job.place)
        if not Path(job.folder).is_dir():
            raise FileNotFoundError(job.folder)
    except OSError as error:
        raise RequestError(
            "a worker does not see the folder of the run",
            place=str(error.filename or error),
            got=f"on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}: there is no such folder",
            allowed="a folder that all machines of the run see at the same path",
            fix="keep the recipe, its data and --runs on a shared file system",
        ) from None
