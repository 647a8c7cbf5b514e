"""What can be looked at to see whether a field of a recipe did something: rows, plans, trainings and records."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest
import torch
from tiny import command, labelled, make_lock, make_loop, uneven, write_recipe

from hfadapt import Run, load_adapted, load_recipe, make_plan, run
from hfadapt.card.build import render_card
from hfadapt.core import registry
from hfadapt.core.errors import DataError, HfadaptError
from hfadapt.data import augment, clean, prepare
from hfadapt.data.unlabelled import Held, open_texts, read_apart
from hfadapt.evaluate import context
from hfadapt.export.gate import Gate
from hfadapt.fast import FastPath, fusion
from hfadapt.formats import Form
from hfadapt.formats import _onnx_graph as graph
from hfadapt.formats.onnx import STATIC
from hfadapt.hardware.processes import World
from hfadapt.modalities import image
from hfadapt.modalities.audio import opened
from hfadapt.recipe.schema import Recipe
from hfadapt.records.search import SearchRecord
from hfadapt.records.student import StudentRecord
from hfadapt.run_folder import read_rows, read_steps

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"
CLASSES, TEXTS, TAGS = "text-classification", "causal-lm", "token-classification"
PAIRS = "embedding"
BETTER = "preference"
SOUNDS, PICTURES = "audio-classification", "image-classification"


@dataclass
class Bed:
    """A folder with sources and the tiny models, and the evaluations that are there already."""

    folder: Path
    evaluated: dict[str, Any] = field(default_factory=dict)

    def recipe(self, fields: Mapping[str, Any]) -> Recipe:
        return load_recipe(write_recipe(self.folder / "tiny.yaml", fields))

    def prepared(self, fields: Mapping[str, Any]) -> Any:
        return prepare(self.recipe(fields), recipe_folder=self.folder)

    def run(self, fields: Mapping[str, Any], until: str, name: str) -> Run:
        return run(self.recipe(fields), until=until, recipe_folder=self.folder, folder=self.folder / "runs" / name)


def rows(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The prepared rows, split by split."""
    return {
        (name, split): each.rows(split)
        for name, each in bed.prepared(fields).items()
        for split in ("train", "validation", "test")
    }


def canaries(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How many planted rows are trained on beside the training rows."""
    planted = bed.prepared(fields)["one"].record.canaries
    return planted and planted.rows


def labels(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The classes, in the model's order."""
    return bed.prepared(fields)["one"].record.labels


def card(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """A card whose rows come from these sources."""
    (new,) = bed.prepared(fields)["one"].record.sources
    folder = shutil.copytree(EXAMPLES / CLASSES, bed.folder / "card", dirs_exist_ok=True)
    data = json.loads((folder / "data.json").read_text())
    noted = {"license": new.license, "language": new.language}
    data["sources"] = [{**source, **noted} for source in data["sources"]]
    (folder / "data.json").write_text(json.dumps(data))
    return render_card(folder).readme


def gathered(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The texts without labels that the domain's adapter is adapted to first."""
    cell = bed.run(fields, "plan", "gathered").cell("one", "this-machine")
    return [row["text"] for row in read_rows(cell.folder / "pretrain/texts.parquet")] if cell.data.unlabelled else None


def pretrained(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How the domain's adapter is adapted to texts first: every step of it."""
    found = bed.run(fields, "pretrain", "pretrained").cell("one", "this-machine")
    assert not found.state.error, found.state.error
    lines = read_steps(found.folder / "pretrain/metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def compared_without(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Whether a second adapter was trained on the task alone."""
    cell = bed.run(fields, "evaluate", "compared").cell("one", "this-machine")
    assert not cell.state.error, cell.state.error
    return (cell.folder / "without_pretrain.json").exists()


def students(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The smaller model: its shape, how its training went, and what is said of it."""
    target = fields.get("targets", ["this-machine"])[0]
    target = target if isinstance(target, str) else next(iter(target))
    found = bed.run(fields, "student", "students").cell("one", target)
    assert found.has(StudentRecord), found.state.error
    record, path = found.read(StudentRecord), next(found.folder.glob("student/*/*/train.json"))
    assert record.student is not None
    learned = json.loads(path.read_text())
    return [
        record.student.model_dump(),
        record.points,
        learned["steps"],
        learned["final_loss"],
        found.state.error,
        [each.tried_steps for each in record.considered],
    ]


def tried(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What was tried while training, how it went, and what was learned in the end."""
    found = bed.run(fields, "train", "tried").cell("one", "this-machine")
    assert not found.state.error, found.state.error
    record = found.maybe(SearchRecord)
    tries = [(each.settings, each.losses, each.steps) for each in record.tries] if record else []
    return tries, [(step.loss, step.learning_rate) for step in found.steps()]


def steps_in_time(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """After how many steps training is to end."""
    return bed.run(fields, "plan", "in-time").cell("one", "this-machine").lock.train.max_steps


def workers(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How many processes the filters of rows are given."""
    with mock.patch.object(clean, "drop_unusable", side_effect=lambda found, *_: found) as called:
        prepare(bed.recipe(fields), recipe_folder=bed.folder, cache=Path(tempfile.mkdtemp(dir=bed.folder)))
    return called.call_args.args[3]


def asked_of_the_hub(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What `datasets.load_dataset` is asked for."""
    with (
        mock.patch.object(datasets, "load_dataset", side_effect=ConnectionError("no network")) as called,
        pytest.raises(DataError),
    ):
        bed.prepared(fields)
    return called.call_args_list


def texts_of_the_hub(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What `datasets.load_dataset` is asked for, for texts without labels."""
    with (
        mock.patch.object(datasets, "load_dataset", side_effect=ConnectionError("no network")) as called,
        pytest.raises(DataError),
    ):
        bed.run(fields, "plan", "gathered")
    return called.call_args_list


def texts_of_students(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The texts without labels that a student would learn by the adapted model's answers."""
    recipe = bed.recipe(fields)
    sources = open_texts(recipe.student.texts, bed.folder)
    return [row.text for row in read_apart(recipe, "one", sources, Held(()), (), print)[0]]


def hub_texts_of_students(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What `datasets.load_dataset` is asked for, for these."""
    with (
        mock.patch.object(datasets, "load_dataset", side_effect=ConnectionError("no network")) as called,
        pytest.raises(DataError),
    ):
        texts_of_students(bed, fields)
    return called.call_args_list


def folder(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The run's folder, where none is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bed.folder)
        return run(bed.recipe(fields), until="prepare").folder


def refusal(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Why a run does not start, or a stage ends here."""
    try:
        found = bed.run(fields, "evaluate" if "evaluate" in fields else "prepare", "refusal")
    except HfadaptError as error:
        return str(error)
    return [cell.state.errors for cell in found.cells()]


def planned(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Memory and time of every cell."""
    return [
        (
            cell.trains_on,
            cell.budget_bytes,
            [phase.total_bytes for phase in cell.memory],
            cell.predicted_tokens_per_second,
        )
        for cell in make_plan(bed.recipe(fields)).cells
    ]


def exports(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What the plan says of exports for the first target."""
    return [each.verdict for each in make_plan(bed.recipe(fields)).cells[0].exports]


def stages_of(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What a run goes through."""
    recipe = bed.recipe(fields)
    return [stage.name for stage in registry.stages() if stage.wanted(recipe)]


def metrics(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What the plan wants to be measured."""
    return make_plan(bed.recipe(fields)).cells[0].value("evaluate.metrics")


def splits(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Rows of each split, as training would see them."""
    return bed.run(fields, "plan", "planned").cell("one", "this-machine").data.splits


def heard(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What the training rows of sounds are in the first epoch."""
    data, record = bed.recipe(fields).data, bed.prepared(fields)["one"]
    changed = augment.apply(record.rows("train"), "sounded", data.augment, data.seed, 0)
    return [opened(row["audio"]).tobytes() for row in changed]


def seen(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What the training rows of images are in the first epoch."""
    data, record = bed.recipe(fields).data, bed.prepared(fields)["one"]
    changed = augment.apply(record.rows("train"), "pictured", data.augment, data.seed, 0)
    return [image.opened(row["image"]).tobytes() for row in changed]


def loop_of(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """A training loop on 20 rows with these settings."""
    asked = {f"{name}__{key}": value for name in ("train", "data", "adapter") for key, value in fields[name].items()}
    asked |= {key: fields[key] for key in ("quant", "dtype") if key in fields}
    if "train__epochs" in asked:
        asked["train__max_steps"] = None
    lock = make_lock(bed.folder / fields["model"], fields["task"], **{"train__micro_batch_rows": 4, **asked})
    made = labelled if fields["task"] == CLASSES else uneven
    return make_loop(lock, Path(tempfile.mkdtemp(dir=bed.folder)), made(20), made(8, seed=1))


def losses(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What is learned: every line of metrics.jsonl."""
    found = loop_of(bed, fields)
    found.loop.run()
    return found.lines


def steps(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How a training goes: its path, each pass through the first layer, what is trained by what, what is kept."""
    found, passes = loop_of(bed, fields), []
    first = next(module for name, module in found.model.named_modules() if re.search(r"layers?\.0$", name))
    # Inside of what is computed again, where activations are not kept.
    next(first.children()).register_forward_pre_hook(
        lambda _, inputs, named: passes.append(tuple((inputs[0] if inputs else named["hidden_states"]).shape)),
        with_kwargs=True,
    )
    found.loop.run()
    return (
        found.loop.path,
        found.loop.frozen_layers,
        passes,
        {name: tuple(tensor.shape) for name, tensor in found.weights.items()},
        type(found.job.optimizer).__name__,
        sorted(path.name for path in (found.job.folder / "checkpoints").glob("*")),
    )


def storage(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How the base's linear layers are stored."""
    modules = loop_of(bed, fields).base.model.modules()
    weights = [module.weight for module in modules if isinstance(module, torch.nn.Linear)]
    return {(type(weight).__name__, weight.dtype, getattr(weight, "quant_type", "")) for weight in weights}


def unpacked(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """How many quantised layers have an unpacked copy that is kept."""
    found = loop_of(bed, fields)
    path = FastPath(found.model, None, resident=fields["train"].get("resident_layers", 0))
    with path.on():
        frozen = [layer.frozen for group in path.groups for layer in group.layers]
        return sum(each.weight() is each.weight() for each in frozen)


def fused(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Whether passes go through torch.compile, where there is something to compile."""
    with mock.patch.object(fusion, "fusing") as used:
        loop_of(bed, fields).loop.run()
    return used.called


def trackers(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What accelerate is told to log to."""
    with mock.patch("accelerate.Accelerator") as made:
        made.return_value.num_processes = 1
        World(bed.recipe(fields).train.trackers, bed.folder)
    return made.call_args.kwargs["log_with"]


def evaluation(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What an evaluation found, without its times. Recipes that differ in nothing else share the training."""
    trained = json.dumps({**fields, "evaluate": None}, sort_keys=True)
    whole = trained + json.dumps(fields["evaluate"], sort_keys=True)
    if whole not in bed.evaluated:
        name = bed.evaluated.setdefault(trained, f"evaluated-{len(bed.evaluated)}")
        cell = bed.run(fields, "evaluate", name).cell("one", "this-machine")
        general, drift = cell.evaluation.general_text, cell.drift
        bed.evaluated[whole] = {
            "metrics": [metric.model_dump() for metric in cell.evaluation.metrics],
            "general text": general and general.name,
            "missed": cell.state.error,
            "others": (cell.folder.parents[1] / "transfer.json").exists(),
            "security": cell.security is not None,
            "refused forms": drift and drift.refused,
        }
    return bed.evaluated[whole]


def exported(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """The files that `hfadapt export` writes without options, and the tensors' type."""
    name = f"exported-{len(list(bed.folder.glob('exported-*')))}"
    cell = bed.run(fields, "evaluate", name).cell("one", "this-machine")
    said = command("export", cell.folder, "--to", bed.folder / name, "--force")
    assert said.code == 0, said.err
    record = json.loads((bed.folder / name / "export.json").read_text())
    return {path.name for path in (bed.folder / name).iterdir()}, record["variant"]


def judged(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Why a form must not be shipped that is wrong and sure of it in every other row."""
    cell = bed.run(fields, "evaluate", "judged").cell("one", "this-machine")
    gate = Gate(cell, cell.lock.export.limits, torch.device("cpu"))
    model = load_adapted(cell.folder).model

    def coarse(**given: Any) -> Any:
        found = model(**given)
        found.logits[::2] *= -50.0
        return found

    coarse.config = model.config  # type: ignore[attr-defined]
    found = gate.judge(registry.format("merged"), Form("float32", True, own="coarse"), bed.folder / "none", coarse, ())
    return [why.split(",")[0] for why in found.refused]


def calibrated(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """From how many rows the ranges of a form are learned."""
    cell = bed.run(fields, "train", "calibrated").cell("one", "this-machine")
    place = Path(tempfile.mkdtemp(dir=bed.folder))
    with mock.patch.object(graph, "exported"), mock.patch.object(graph, "quantise") as called:
        registry.format("onnx").write(cell, STATIC, place, torch.device("cpu"))
    return len(called.call_args.args[3])


def scored_at_once(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Rows of a batch, when the test rows are scored."""
    bed.evaluated.clear()
    with mock.patch.object(context, "padded", wraps=context.padded) as called:
        evaluation(bed, fields)
    return {call.args[4] for call in called.call_args_list}
