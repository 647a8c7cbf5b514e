"""Trackers: programs beside hfadapt that keep the settings, curves, figures and files of a training.

Accelerate writes curves to them while training goes on. Each training is one run there; its names and ids are kept in
the folder `trackers` of the run, so that a training that goes on writes to the same one, and that what is known only
later (evaluation, card, plots) joins it. Nothing is sent anywhere unless the program itself is set up to do so.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfadapt.core.errors import RequestError
from hfadapt.core.spec import Record

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "trackers"
FILES = "files"
MOST_NAME = 100
"""Characters of a name, which is that of a folder too."""
Values = Mapping[str, float]


class Tracked(Record):
    """The run of a training in the trackers.

    Args:
        project: What its runs have in common: the recipe's name.
        run: Its name among them.
        identity: Of the training; another one is another run.
        ids: What each tracker calls it.
    """

    FILE: ClassVar[str] = "tracked.json"
    project: str
    run: str
    identity: str
    ids: dict[str, str]


class Tracker:
    """One program; instances hold no state."""

    name: ClassVar[str]
    install: ClassVar[str]
    package: ClassVar[str]

    def arguments(self, place: Path, tracked: Tracked, again: bool) -> dict[str, Any]:
        """What Accelerate starts it with.

        Args:
            place: Where runs are kept on this disk.
            again: The training goes on: the run is there.
        """
        return {}

    def id_of(self, tracker: Any, tracked: Tracked) -> str:
        """What it calls the run that was started."""
        return tracked.ids.get(self.name, "")

    def keep(self, place: Path, tracked: Tracked, values: Values, files: Sequence[Path]) -> None:
        """Adds figures and files to the run. `files` have different names; the first is text in Markdown."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Figures and texts in event files; files beside them, since TensorBoard holds none."""

    name, package, install = "tensorboard", "tensorboard", 'pip install "hfadapt[tensorboard]"'

    def keep(self, place: Path, tracked: Tracked, values: Values, files: Sequence[Path]) -> None:
        """The card and JSON are under Text."""
        from torch.utils.tensorboard import SummaryWriter

        folder = place / tracked.run / tracked.project
        with SummaryWriter(str(folder)) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value)
            for path in files:
                if path.suffix in (".md", ".json"):
                    text = path.read_text(encoding="utf-8")
                    writer.add_text(path.name, text if path.suffix == ".md" else f"```json\n{text}\n```")
        (folder / FILES).mkdir(exist_ok=True)
        for path in files:
            shutil.copyfile(path, folder / FILES / path.name)


class Wandb(Tracker):
    """Weights & Biases; without a login and `WANDB_MODE` it is offline, and `wandb sync` sends the folder later."""

    name, package, install = "wandb", "wandb", 'pip install "hfadapt[wandb]"'

    def arguments(self, place: Path, tracked: Tracked, again: bool) -> dict[str, Any]:
        """An id of our own, by which the parts of a run become one."""
        return self._run(place, tracked)

    def _run(self, place: Path, tracked: Tracked) -> dict[str, Any]:
        import wandb

        place.mkdir(parents=True, exist_ok=True)
        known = os.environ.get("WANDB_MODE") or wandb.api.api_key
        mode = {} if known else {"mode": "offline"}
        return {"id": tracked.ids[self.name], "name": tracked.run, "dir": str(place), "resume": "allow", **mode}

    def keep(self, place: Path, tracked: Tracked, values: Values, files: Sequence[Path]) -> None:
        """Figures in the summary, pages and pictures as media, and all files as one artefact."""
        import wandb

        run = wandb.init(project=tracked.project, **self._run(place, tracked))
        run.summary.update(dict(values))
        artifact = wandb.Artifact(f"{tracked.ids[self.name]}-results", type="results")
        for path in files:
            artifact.add_file(str(path), name=path.name)
        run.log_artifact(artifact)
        run.log({path.stem: wandb.Html(str(path)) for path in files if path.suffix == ".html"})
        run.finish()


class MLflow(Tracker):
    """MLflow; where `MLFLOW_TRACKING_URI` is not set, in a file store in the run's folder."""

    name, package, install = "mlflow", "mlflow", 'pip install "hfadapt[mlflow]"'

    def _at(self, place: Path) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((place.resolve() / "mlruns").as_uri())

    def arguments(self, place: Path, tracked: Tracked, again: bool) -> dict[str, Any]:
        """MLflow itself makes the id."""
        self._at(place)
        known = {"run_id": tracked.ids[self.name]} if again and self.name in tracked.ids else {}
        return {"run_name": tracked.run, **known}

    def id_of(self, tracker: Any, tracked: Tracked) -> str:
        """That of MLflow."""
        return str(tracker.info.run_id)

    def keep(self, place: Path, tracked: Tracked, values: Values, files: Sequence[Path]) -> None:
        """Metrics and artefacts."""
        import mlflow

        self._at(place)
        with mlflow.start_run(run_id=tracked.ids[self.name]):
            mlflow.log_metrics(dict(values))
            for path in files:
                mlflow.log_artifact(str(path))


class Trackio(Tracker):
    """Trackio, in the folder where `trackio show` looks for it (`TRACKIO_DIR`)."""

    name, package, install = "trackio", "trackio", 'pip install "hfadapt[trackio]"'

    def arguments(self, place: Path, tracked: Tracked, again: bool) -> dict[str, Any]:
        """Runs go by their names."""
        return {"name": tracked.ids[self.name], "resume": "allow", "embed": False}

    def keep(self, place: Path, tracked: Tracked, values: Values, files: Sequence[Path]) -> None:
        """Figures, the card as text, and all files as one artefact."""
        import trackio

        run = trackio.init(project=tracked.project, **self.arguments(place, tracked, True))
        run.log({**values, files[0].stem: trackio.Markdown(files[0].read_text(encoding="utf-8"))})
        artifact = trackio.Artifact(f"{tracked.ids[self.name]}-results", type="results")
        for path in files:
            artifact.add_file(str(path), name=path.name)
        run.log_artifact(artifact)
        run.finish()


ALL: Mapping[str, Tracker] = {each.name: each for each in (TensorBoard(), Wandb(), MLflow(), Trackio())}


def require_trackers(names: Sequence[str]) -> None:
    """Raises RequestError where a recipe asks for trackers that are not installed, with the command that does it."""
    if lacking := [ALL[name] for name in names if find_spec(ALL[name].package) is None]:
        raise RequestError(
            "a tracker is not installed",
            place="train.trackers",
            got=f"no {', no '.join(each.package for each in lacking)}",
            fix=" && ".join(each.install for each in lacking),
        )


def start(accelerator: Accelerator, folder: Path, tracked: Tracked, names: Sequence[str], config: Any) -> Tracked:
    """Starts a training's run in each tracker, or goes on with it; only the main process does anything.

    Args:
        folder: `trackers` in the folder of the hfadapt run.
        tracked: Names and identity of the training.
        config: What it is made with, of any depth.

    Returns:
        The run with its ids, which are written down.
    """
    if not accelerator.is_main_process:
        return tracked
    before = known(folder, tracked.run)
    again = before is not None and before.identity == tracked.identity
    ids = dict(before.ids) if before and again else {}
    for name in names:
        ids.setdefault(name, f"{tracked.run}-{secrets.token_hex(3)}")
    tracked = tracked.model_copy(update={"ids": ids})
    # TensorBoard has a folder for each run in its place.
    accelerator.project_configuration.logging_dir = str(folder / tracked.run)
    # It would go on writing to those of the training before, which are closed.
    accelerator.trackers = []
    arguments = {name: ALL[name].arguments(folder, tracked, again) for name in names}
    accelerator.init_trackers(tracked.project, config=dict(_flat(config)), init_kwargs=arguments)
    found = {each.name: ALL[each.name].id_of(each.tracker, tracked) for each in accelerator.trackers}
    tracked = tracked.model_copy(update={"ids": {**ids, **found}})
    tracked.write(folder / tracked.run / Tracked.FILE)
    return tracked


def run_name(domains: Sequence[str], target: str) -> str:
    """What the run of a training is called."""
    name = "-".join((*domains, target))
    return name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def known(folder: Path, run: str) -> Tracked | None:
    """What was written down of a run; None where there is nothing."""
    path = folder / run / Tracked.FILE
    return Tracked.read(path) if path.is_file() else None


def keep(folder: Path, run: str, names: Sequence[str], values: Values, files: Sequence[Path]) -> Iterator[str]:
    """Adds figures and files to a training's run in each tracker.

    Args:
        files: Of different names; the first is text in Markdown.

    Yields:
        A sentence for each tracker that did not take them: what it says must not spoil what was trained.
    """
    tracked = known(folder, run)
    for name in names:
        if tracked is None or name not in tracked.ids:
            yield f"{name} gets no evaluation: it has no run of this training"
            continue
        try:
            ALL[name].keep(folder, tracked, values, files)
        except Exception as error:
            # Programs of other people, with errors of every kind.
            yield f"{name} did not take the evaluation: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested ones, by names with dots, as trackers show them."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
