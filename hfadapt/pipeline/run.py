"""What can be done with a recipe: run it, plan it, check its data; and renew the report of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hfadapt.core import registry
from hfadapt.core.errors import DataError, HfadaptError, RequestError
from hfadapt.core.notebook import progress_here
from hfadapt.core.progress import Progress, quiet_libraries
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.pipeline.flow import Flow, stages_until, told
from hfadapt.pipeline.known_data import known_data
from hfadapt.pipeline.locks import FolderLock
from hfadapt.pipeline.remaining import Remaining
from hfadapt.pipeline.spread import Spread, backend_of, left_behind
from hfadapt.plan.make import lock as lock_cell
from hfadapt.plan.make import make_plan
from hfadapt.recipe.reading import Asked, as_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.sources import expanded, near_model
from hfadapt.records.plan import Plan
from hfadapt.records.report import Report
from hfadapt.report.run_view import Run
from hfadapt.report.write import earlier, other_base, write_report
from hfadapt.run_folder import LOCK, make_writable, sweep
from hfadapt.stages import Context, compared, narrow
from hfadapt.stages import check_recipe as check_stages
from hfadapt.stages.plan import audit_cell, check_objective, gather_texts, measure_lengths

if TYPE_CHECKING:
    from hfadapt.data import DataReport


@quiet_libraries()
def run_recipe(  # noqa: PLR0913 - those of the command
    recipe: Asked,
    *,
    domains: str | Sequence[str] = (),
    recipe_folder: str | Path | None = None,
    folder: str | Path | None = None,
    until: str = "card",
    fresh: bool = False,
    on: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Does everything for every cell of a recipe and returns the run, which shows itself.

    A cell that fails stops no other and raises nothing: look at the run's `failed`, or write
    `run(recipe).raise_for_failures()`.

    Args:
        recipe: A recipe, the path of its file, or what would stand in one as a dict.
        domains: Only these domains; those that the recipe chooses when empty.
        recipe_folder: Relative sources are looked for here first, then in the working directory; by default beside
            the recipe's file.
        folder: The run folder; `runs/NAME` by default.
        until: The last stage by name (`prepare`, `plan`, `train`, `evaluate`, `card` …); `evaluate` includes the other
            domains.
        fresh: Start over instead of keeping what is done.
        on: Where cells are done as jobs of their own: `local`, `slurm`, `ray`, `ray://HOST:PORT`; by this process
            alone when empty.

    Raises:
        RequestError: there is no such domain or stage, the run folder cannot be written, another run is using it, or
            fewer processes started than were asked for.
        KeyboardInterrupt: finished cells and the last checkpoint are on disk.

    Example:
        >>> from hfadapt import load_recipe, run
        >>> run(load_recipe("sentiment.yaml")).report.cells[0].status
        'done'
    """
    from hfadapt.fast import compiled
    from hfadapt.hardware.processes import World, check_world

    recipe = as_recipe(recipe)
    place = Path(recipe_folder or recipe.folder or "")
    chosen = (recipe.choose(domains) if domains else recipe).chosen
    stages_until(registry.stages(), until)
    backend = backend_of(on, recipe) if on else None
    check_world(recipe.processes)
    compiled.switch()
    folder = Path(folder or Path("runs") / recipe.name)
    make_writable(folder, [folder / domain / target for domain, target in recipe.choose(chosen).cells()])
    world = World(recipe.train.trackers, folder / "trackers")
    run = Run(folder)
    context = Context(recipe.choose(), run, world, progress or progress_here(), place, chosen)
    stages = stages_until(context.stages, until)
    if backend is None:
        context.progress = Remaining(context.progress, context.cells, stages)
    lock = FolderLock(folder, context.progress.say)
    left = world.on_main(lambda: left_behind(folder, backend[0] if backend else None, fresh))
    world.on_main(lambda: lock.acquire(left.there))
    try:
        if not left.there:  # workers that are left still write
            world.on_main(lambda: sweep(folder))
        flow = Flow(context, stages, fresh)
        world.on_main(lambda: _know_speed(context.asked))
        flow.check()
        world.on_main(lambda: say_others(context))
        try:
            with told(context, flow):
                (flow if backend is None else Spread(flow, *backend, left)).run()
        except BaseException as error:  # where one of several processes failed alone, the others never come
            with suppress(HfadaptError, OSError):  # what stopped the run is what has to be told
                if world.size == 1 or isinstance(error, (HfadaptError, KeyboardInterrupt)):
                    world.on_main(lambda: write_report(run, recipe.choose()))
            raise
        world.on_main(lambda: write_report(run, recipe.choose()))
    finally:
        lock.release()
    return run


def say_others(context: Context) -> None:
    """Names the cells in the run's folder that another recipe of the same name has made from another base."""
    own = {cell.folder for cell in context.all_cells}
    for cell in context.run.cells():
        if cell.folder not in own and (base := other_base(cell, context.recipe)):
            context.progress.say(
                f"{cell.folder} is of another recipe of this name, on {base}: the report marks it\n"
                "  fix: give one of the two recipes another `name`, or another --runs folder"
            )


def plan_recipe(recipe: Recipe, *, domains: Sequence[str] = (), runs: Path = Path("runs")) -> Plan:
    """The plan of every cell; rows and lengths are those of the data as they are now, as far as they can be known
    within seconds and without fetching anything (`known_data`), else they are assumed.

    Raises:
        RequestError: the recipe asks for what its targets cannot do.
    """
    from hfadapt.models.folders import weight_files
    from hfadapt.models.load import check_base

    recipe = recipe.choose(domains) if domains else recipe
    if weight_files(expanded(recipe.model)):
        # A config alone is enough for a plan.
        check_base(BaseRef.of(recipe))
    check_stages(recipe)
    known = known_data(recipe, recipe.folder or Path(), Run(runs / recipe.name))
    _know_speed(recipe)
    for record in known.values():
        # Without a fingerprint it was looked at in part, and may have other labels.
        check_objective(recipe, record if record.fingerprint else None)
    return make_plan(recipe, data=known)


def _know_speed(recipe: Recipe) -> None:
    """Measures this machine where it trains and nobody knows how fast it is."""
    if any(name == catalogue.THIS_MACHINE or catalogue.only_serves(name) for _, name in recipe.cells()):
        catalogue.measure_rates()


@quiet_libraries()
def check_recipe(
    recipe: Asked,
    *,
    domains: str | Sequence[str] = (),
    recipe_folder: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> DataReport:
    """Prepares and audits every domain in a temporary place; changes no run.

    Example:
        >>> from hfadapt import check_recipe, load_recipe
        >>> check_recipe(load_recipe("sentiment.yaml")).hard
        0
    """
    import tempfile

    from hfadapt.data import DataReport, keep_lengths, pictures, prepare
    from hfadapt.data.unlabelled import Held
    from hfadapt.models.load import load_processor, resolve_model

    recipe = as_recipe(recipe)
    place = Path(recipe_folder or recipe.folder or "")
    chosen = (recipe.choose(domains) if domains else recipe).chosen
    check_stages(narrow(recipe, chosen))
    prepared = prepare(compared(recipe, chosen), recipe_folder=place, progress=say)
    tokenizer = load_processor(resolve_model(recipe.model), registry.task(recipe.task).modality)
    records, looks = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for domain in chosen:
            cell = Run(Path(temporary)).cell(domain, recipe.targets[0])
            prepared[domain].copy_into(cell.folder)
            narrowed = narrow(recipe, [cell.domain], [cell.target])
            record = measure_lengths(cell, narrowed, tokenizer)
            check_objective(recipe, record)
            keep_lengths(record, narrowed, recipe.model)
            record = gather_texts(record, cell, narrowed, tokenizer, Held.of(prepared), place)
            lock = lock_cell(narrowed, make_plan(narrowed, data={domain: record}).cells[0])
            try:
                audit_cell(cell, lock, tokenizer, record)
            except DataError:
                if cell.data.audit is None:
                    raise
            records.append(cell.data)
            pairs = pictures.dropped_pairs(cell.folder, cell.data, recipe.domains[domain], place)
            looks[domain] = [*pictures.contact_sheet(cell.folder, cell.data), *pairs]
    return DataReport(records, recipe.name, looks)


def renew_report(folder: Path) -> Report:
    """Writes report.json and report.md of a run again from its cells' records, and returns the report.

    Raises:
        RequestError: there is no run in this folder.
        RunError: no cell has a lock that can be read.
    """
    run = Run(folder)
    cells = run.cells()
    if not cells:
        raise RequestError("this is not a run", place=str(folder), fix="give a folder such as runs/NAME")
    before = earlier(run)
    marked = {(cell.domain, cell.target) for cell in before.cells if cell.model} if before else set()
    planned = sorted((cell for cell in cells if cell.planned), key=lambda cell: (cell.domain, cell.target) in marked)
    if not planned:
        for cell in cells:
            if (cell.folder / LOCK).exists():
                _ = cell.lock  # says why it cannot be read
        return run.report
    lock = planned[0].lock
    return write_report(run, lock.model_copy(update={"domains": {}, "model": near_model(lock.model)}))
