"""The command line: verbs only. Heavy imports wait until a verb needs them, so that help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hfadapt.cli import completion
from hfadapt.cli.cards import card_app
from hfadapt.cli.new import new
from hfadapt.cli.options import (
    CellArgument,
    Domains,
    Json,
    JsonEvents,
    On,
    OneDomain,
    OneTarget,
    Overrides,
    Quiet,
    RecipeArgument,
    RunArgument,
    Runs,
    Targets,
    Worse,
    folder,
)
from hfadapt.cli.questions import completion_, convert, doctor, explain, list_, schema, show_
from hfadapt.cli.through import load, through
from hfadapt.core.commands import visible

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="One pretrained model, the right adapter for every data domain and hardware target.",
    epilog="Start with: hfadapt run recipes/sentiment.yaml",
)
app.add_typer(card_app, name="card")

RUNS = Path("runs")
HEAVY: set[str] = set()
"""Commands for which the memory allocator is set before they start."""


def heavy(command: Callable[..., None]) -> Callable[..., None]:
    """Adds a command to `HEAVY`."""
    HEAVY.add(command.__name__)
    return command


def show(value: Any, as_json: bool = False) -> None:
    """Prints a record as JSON, or the text view."""
    typer.echo(value.model_dump_json(indent=1) if as_json else str(value))


@app.command()
@heavy
def run(  # noqa: PLR0913 - options of the command
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    target: Targets = None,
    runs: Runs = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; finished cells are made again.")] = False,
    fail_if_worse: Worse = False,
    publish: Annotated[
        str | None,
        typer.Option("--publish", metavar="USER/NAME", help="Publish every finished adapter at the end."),
    ] = None,
    quiet: Quiet = False,
    json_lines: JsonEvents = None,
    on: On = None,
) -> None:
    """Plan, prepare, train, evaluate and document every cell; finished ones are kept."""
    watch = quiet, json_lines
    through("card", recipe, overrides, domain, target, runs, watch, fresh, fail_if_worse, publish, on)


@app.command(hidden=True)
@heavy
def work(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The file of a job, in the run folder.")],
    tied: Annotated[bool, typer.Option("--tied", help="Stop when standard input is closed.")] = False,
) -> None:
    """Do a job that hfadapt run --on has handed out."""
    from hfadapt.cli.working import work_on

    work_on(job, tied)


@app.command()
@heavy
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    target: Targets = None,
    runs: Runs = RUNS,
    why: Annotated[bool, typer.Option("--why", help="Every reason, memory by part, and what was rejected.")] = False,
    json: Json = False,
) -> None:
    """Show whether every cell fits, its predicted memory and time, and what was decided. Downloads no weights."""
    from hfadapt.cli.terminal import waiting

    asked = load(recipe, overrides, domain, target)
    with waiting("planning: looking at the model without its weights; what is found is kept for the next plan"):
        from hfadapt.pipeline.run import plan_recipe

        found = plan_recipe(asked, runs=runs)
    show(found.why() if why and not json else found, json)
    if not found.fits:
        raise typer.Exit(1)


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    json: Json = False,
) -> None:
    """Prepare the data and look at it as training will see it; exit code 1 when something must be fixed."""
    from hfadapt.cli.terminal import Terminal
    from hfadapt.pipeline.run import check_recipe

    with Terminal() as terminal:
        report = check_recipe(load(recipe, overrides, domain, None), say=terminal.say)
    if json:
        import json as json_library

        typer.echo(json_library.dumps([record.model_dump(mode="json") for record in report.records], indent=1))
    else:
        typer.echo(report.coloured() if sys.stdout.isatty() else str(report))
    if report.hard:
        raise typer.Exit(1)


@app.command()
@heavy
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    target: Targets = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    json_lines: JsonEvents = None,
) -> None:
    """Prepare the data of every cell, and stop there."""
    through("plan", recipe, overrides, domain, target, runs, (quiet, json_lines))


@app.command()
@heavy
def train(  # noqa: PLR0913 - options of the command
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    target: Targets = None,
    runs: Runs = RUNS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    quiet: Quiet = False,
    json_lines: JsonEvents = None,
) -> None:
    """Train every cell, and stop before the evaluation."""
    through("train", recipe, overrides, domain, target, runs, (quiet, json_lines), fresh)


@app.command()
@heavy
def evaluate(  # noqa: PLR0913 - options of the command
    recipe: RecipeArgument,
    overrides: Overrides = None,
    domain: Domains = None,
    target: Targets = None,
    runs: Runs = RUNS,
    fail_if_worse: Worse = False,
    quiet: Quiet = False,
    json_lines: JsonEvents = None,
) -> None:
    """Compare every adapter with its baseline; trains what is not trained yet.

    Measures the metrics of evaluate.metrics (hfadapt list metrics), paired tests, slices, calibration, latency and
    speed; for language models generated text and general text (evaluate.generate_rows, evaluate.general_text); every
    adapter on every domain (evaluate.transfer); leaks and robustness (evaluate.security); merging, and bases in
    other precision (evaluate.drift); and tasks of lm-evaluation-harness (evaluate.harness). A gain below
    evaluate.gates fails the cell.
    """
    watch = quiet, json_lines
    through("evaluate", recipe, overrides, domain, target, runs, watch, fail_if_worse=fail_if_worse)


@app.command()
def report(
    run: RunArgument,
    json: Json = False,
) -> None:
    """Show the matrix of a run and write its report again from the records."""
    from hfadapt.pipeline.run import renew_report
    from hfadapt.report.run_view import Run

    renewed = renew_report(run)
    show(renewed if json else Run(run), json)


@app.command()
def predict(  # noqa: PLR0913 - options of the command
    run: Annotated[
        Path,
        typer.Argument(
            parser=folder,
            metavar="CELL",
            help="runs/NAME/DOMAIN/TARGET, a run, or an exported folder.",
            autocompletion=completion.cells,
        ),
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...", help="Texts, or names of files such as images; - for the lines of standard input."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="A text a line (.txt), or rows by the recipe's columns (.csv …)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A new file for the answers, a JSON object a row; - prints them."
        ),
    ] = None,
    domain: OneDomain = None,
    target: OneTarget = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Where the base is, if it has moved or the adapter was exported."),
    ] = None,
    json: Json = False,
) -> None:
    """Apply an adapter of a run, or an exported folder, to texts, files of images, standard input or a file of rows.

    Answers come in the order of the rows. A row that cannot be asked is named, its line stays empty, and the exit code
    is 1. A row that is longer than the model takes is cut, which is said beside its answer. At the end it is said how
    many there were of both.
    """
    from hfadapt.cli.answers import Counts, answer_rows, shown_answer
    from hfadapt.core import registry
    from hfadapt.serve.adapted import load_adapted

    if file is not None or output is not None or texts in (None, ["-"]):
        answer_rows(lambda: load_adapted(run, domain, target, base), texts or [], file, output, json)
        return
    texts = texts or []
    adapted = load_adapted(run, domain, target, base)
    task = registry.task(adapted.task)
    faults = {text: fault for text in texts if (fault := task.fault(text)) is not None}
    answers = adapted.predict([text for text in texts if text not in faults])
    named = bool(registry.modality(task.modality).suffixes) and len(texts) > 1
    if json:
        import json as json_library

        typer.echo(json_library.dumps([answer.model_dump() for answer in answers], indent=1))
    else:
        for answer in answers:
            typer.echo(f"{visible(answer.text)}: {shown_answer(answer)}" if named else shown_answer(answer))
    for fault in faults.values():
        note(str(fault))
    Counts(len(texts), sum(text in faults for text in texts), sum(each.cut is not None for each in answers)).end()


@app.command()
@heavy
def serve(  # noqa: PLR0913 - options of the command
    run: RunArgument,
    host: Annotated[str, typer.Option("--host", help="Where to listen; 0.0.0.0 for other machines too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    domain: Domains = None,
    target: OneTarget = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Rows that go through the model at once.")] = 32,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Rows that may wait.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="That one request may have written.")] = 1024,
) -> None:
    """Answer over HTTP with one resident base and the adapters of all domains of a run.

    POST /predict {"domain": NAME, "inputs": [TEXT, ...]}; images and recordings in base64, or one alone as the body of
    POST /predict/file?domain=NAME. As OpenAI's API has them, with a domain as model: /v1/models, for language models
    /v1/chat/completions and /v1/completions, for embeddings /v1/embeddings. GET /health and /metrics say how it goes.
    Ctrl-C or SIGTERM finishes what was asked and stops.
    """
    from hfadapt.cli.serving import serve_run

    most = {"batch_rows": max_batch, "queue_rows": max_queue, "new_tokens": max_tokens}
    serve_run(run, domain or (), target, (host, port), note, **most)


@app.command()
@heavy
def ui(
    run: Annotated[
        Path | None,
        typer.Argument(
            parser=folder,
            metavar="RUN",
            help="A run, or a folder of runs; by default runs.",
            autocompletion=completion.runs,
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8765,
) -> None:
    """Show runs in a browser on this machine, for you alone; ask base and adapter side by side, plan, run, export.

    The address that is printed has a token, without which nothing is shown. Ctrl-C stops, and with it a run that was
    started there: it goes on another time.
    """
    from hfadapt.cli.serving import show_pages

    if run is None:
        RUNS.mkdir(exist_ok=True)
    show_pages(run or RUNS, port, note)


@app.command()
def export(  # noqa: PLR0913 - options of the command
    cell: CellArgument,
    to: Annotated[Path, typer.Option("--to", parser=folder, metavar="FOLDER", help="A new folder.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="adapter, merged, onnx …; see hfadapt list formats. By default the recipe's.",
            autocompletion=completion.formats,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="A form such as int8-dynamic; by default the first that passes."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what is refused or was not measured.")] = False,
    server: Annotated[
        str | None,
        typer.Option("--for", metavar="SERVER", help="vllm: check its rules, write the adapter, show its command."),
    ] = None,
    domain: OneDomain = None,
    target: OneTarget = None,
    json: Json = False,
) -> None:
    """Write an adapter as a folder of its own, or merged into its base, and open it again to compare."""
    from hfadapt.export.servers import SERVED
    from hfadapt.export.write import export as export_cell
    from hfadapt.run_folder import find_cell

    found = find_cell(cell, domain, target)
    said = found.lock.export
    # A form is one of a format's: that of the recipe goes with its format alone.
    format = format or (SERVED if server else said.format)
    form = variant or (said.storage if format == said.format else None)
    done = export_cell(found, format, to, variant=form, force=force, server=server, say=note)
    show(done.record if json else done, json)


@app.command()
@heavy
def bench(
    exported: Annotated[
        Path, typer.Argument(parser=folder, metavar="EXPORTED", help="A folder that hfadapt export wrote.")
    ],
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", help="By default one, and all cores; may be said several times."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", help="Rows at once; by default 1, 8 and 32.")] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", help="Positions of a row; by default the most that was trained with."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="About how long each case is measured.")] = 2.0,
    json: Json = False,
) -> None:
    """Measure how fast an exported folder answers here: latency, rows a second and memory by threads and batch."""
    from hfadapt.export.bench import bench as measure

    show(measure(exported, threads or (), batch or (1, 8, 32), length, seconds, note), json)


@app.command()
def publish(  # noqa: PLR0913 - options of the command
    path: Annotated[
        Path,
        typer.Argument(
            parser=folder,
            metavar="CELL_OR_RUN",
            help="runs/NAME/DOMAIN/TARGET, or a run.",
            autocompletion=completion.cells,
        ),
    ],
    repo: Annotated[str | None, typer.Option("--repo", metavar="USER/NAME", help="Where on the Hub.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really send it; without, only show what would be sent.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", parser=folder, metavar="FOLDER", help="Write a folder instead of sending anything."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="By default the next of v1, v2, …")] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="repos: one for each adapter; folders: one, with a folder for each.")
    ] = "repos",
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The licence, where the records cannot say what holds."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="With the test rows that the card shows, where rows are files.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Write a Space that serves one adapter, into --to FOLDER; nothing is sent.")
    ] = False,
    domain: Domains = None,
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="Only this target of a run.")] = None,
    no_verify_load: Annotated[
        bool, typer.Option("--no-verify-load", help="Do not load and score the downloaded adapter.")
    ] = False,
) -> None:
    """Show what would be published of a cell or a run; with --yes send it to the Hub, verify it, and tag it.

    The token is that of `hf auth login` or HF_TOKEN.
    """
    from hfadapt.cli.terminal import waiting
    from hfadapt.publish.publish import publish as publish_cells

    if space:
        from hfadapt.publish.space import space_of

        show(space_of(path, domain, target, to, license, refused={"--repo": repo, "--yes": yes, "--tag": tag}))
        return
    how: dict[str, Any] = {"private": private, "tag": tag, "layout": layout, "license": license, "pictures": pictures}
    chosen: dict[str, Any] = {"domains": domain, "targets": target, "verify_load": not no_verify_load}
    with waiting("looking at what is published") as say:
        found = publish_cells(path, repo, to=to, yes=yes, **how, **chosen, say=say)
    show(found)


def note(text: str) -> None:
    """A line about progress, beside what the command prints."""
    typer.echo(text, err=True)


for question in (list_, show_, explain, schema, convert, completion_, doctor, new):
    app.command(question.__name__.rstrip("_"))(question)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """One pretrained model, the right adapter for every data domain and hardware target."""
    if version:
        from hfadapt import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: errors as messages, never as tracebacks; exit codes 0, 1, 2, 130 and 143."""
    from hfadapt.cli.ending import ended
    from hfadapt.core.progress import quiet_program
    from hfadapt.hardware.processor import limit_libraries

    def command() -> Any:
        limit_libraries()
        return app(standalone_mode=False, complete_var=completion.VARIABLE)

    if completion.VARIABLE in os.environ:
        completion.begin()
    with quiet_program():
        code = ended(command)
    sys.exit(code)
