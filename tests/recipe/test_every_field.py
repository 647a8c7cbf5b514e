"""Every field of a recipe does something: each has values here that some row, training, plan or record tells apart.

`FIELDS` says for each field which values to try, in which recipe, and what to look at: never the field itself in a lock
or plan. A field that is not in the table fails the test, so a new one cannot be silent.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest import mock

import datasets
import pytest
import torch
from pydantic import BaseModel
from tiny import labelled, make_lock, make_loop, pairs, recipe_fields, uneven, write_recipe, write_rows

from hfadapt import Run, load_recipe, make_plan, run
from hfadapt.card.build import render_card
from hfadapt.core import registry
from hfadapt.core.errors import DataError, HfadaptError
from hfadapt.core.spec import Spec
from hfadapt.data import clean, prepare
from hfadapt.evaluate import bench
from hfadapt.fast import FastPath, fusion
from hfadapt.hardware.processes import World
from hfadapt.objectives import Objective
from hfadapt.recipe.schema import AUTO, FAST_PARTS, Lock, Recipe

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"


# --- all fields ------------------------------------------------------------------------------------------------------


def members(annotation: Any) -> Iterator[Any]:
    """The branches of a type, without what is around them; of lists and mappings those of what is in them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType, tuple):
        for each in get_args(annotation):
            yield from members(each)
    elif origin is dict:
        yield from members(get_args(annotation)[1])
    elif annotation is not Ellipsis:
        yield annotation


def step(annotation: Any) -> str:
    """What stands between a field and those of the model in it: a name in a mapping, a place in a list."""
    origins = {get_origin(annotation), *(get_origin(each) for each in get_args(annotation))}
    return ".*" if dict in origins else "[]" if tuple in origins else ""


def fields_of(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its type, in sections too."""
    for name, info in model.model_fields.items():
        inner = [each for each in members(info.annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
        for each in inner:
            yield from fields_of(each, f"{place}{name}{step(info.annotation)}.")
        if not inner:
            yield f"{place}{name}", info.annotation


ALL = dict(fields_of(Recipe))


def put(fields: Mapping[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy of a recipe's fields with one set: `*` is the domain `one`, `[]` the first place of a list."""
    found = copy.deepcopy(dict(fields))
    keys: list[Any] = place.replace("[]", ".0").replace("*", "one").split(".")
    keys = [int(key) if key == "0" else key for key in keys]
    inner: Any = found
    for key in keys[:-1]:
        if isinstance(inner, dict):
            inner.setdefault(key, {})
        inner = inner[key]
    inner[keys[-1]] = value
    return found


# --- what is looked at -----------------------------------------------------------------------------------------------

CLASSES, TEXTS, TAGS = "text-classification", "causal-lm", "token-classification"


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


def metrics(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What the plan wants to be measured."""
    return make_plan(bed.recipe(fields)).cells[0].value("evaluate.metrics")


def splits(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Rows of each split, as training would see them."""
    return bed.run(fields, "plan", "planned").cell("one", "this-machine").data.splits


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


def scored_at_once(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """Rows of a batch, when the test rows are scored."""
    bed.evaluated.clear()
    with mock.patch.object(bench, "padded", wraps=bench.padded) as called:
        evaluation(bed, fields)
    return {call.args[4] for call in called.call_args_list}


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What to try with a field.

    Args:
        values: Each has to show; all there are, where they can be told.
        look: What is looked at.
        beside: Other fields that it needs, by place.
    """

    values: Sequence[Any]
    look: Callable[[Bed, Mapping[str, Any]], Any]
    task: str = CLASSES
    beside: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, place: str, value: Any) -> dict[str, Any]:
        """The fields of a recipe with one value of the field."""
        model, source = ("encoder", "labelled.jsonl") if self.task == CLASSES else ("lm", "pairs.jsonl")
        fields = recipe_fields(f"./{model}", self.task, {"one": {"source": source}})
        fields |= {"data": {"validation": 8, "test": 8}, "adapter": {}}
        del fields["evaluate"]
        for key, given in {**self.beside, place: value}.items():
            fields = put(fields, key, given)
        return fields


class Scaled(Objective):
    """The task's own loss, larger: what another package may bring."""

    name = "scaled"
    title = "the task's own loss, times a factor"
    further_passes = 1.0

    class Options(Spec):
        factor: float = 3.0

    def losses(self, task: Any, model: Any, batch: Any, started: Any) -> Any:
        found, places = task.losses(model, batch)
        return found * started.factor, places


def with_scaled(bed: Bed, fields: Mapping[str, Any]) -> Any:
    """What is learned, where there is another objective too."""
    entry = EntryPoint("scaled", "test_every_field:SCALED", "hfadapt.objectives")
    with (
        mock.patch.object(EntryPoint, "load", return_value=SCALED),
        mock.patch.object(registry, "entry_points", lambda group: [entry] if group == entry.group else []),
    ):
        for each in (registry.names, registry.load):
            each.cache_clear()
        try:
            return losses(bed, fields)
        finally:
            for each in (registry.names, registry.load):
                each.cache_clear()


SCALED = Scaled()
SEVERAL = {"domains.*": {"sources": [{"source": "labelled.jsonl"}, {"source": "other.jsonl"}]}}
WIDE, HUB = {"domains.*.source": "wide.jsonl"}, {"domains.*.source": "someone/something"}
NOISY = {"domains.*.source": "noisy.jsonl"}
TWO = {"domains": {"one": {"source": "labelled.jsonl"}, "two": {"source": "overlapping.jsonl"}}}
FROM_LABEL = {"domains.*.source": "labelled.jsonl"}
TURNS = [{"role": "user", "content": "{text}"}, {"role": "assistant", "content": "{label}"}]
QUICK = dict.fromkeys(("general_text", "transfer", "security", "drift"), False)
QUICKLY = {"evaluate": {"resamples": 200, **QUICK}, "train": {"batch_rows": 8, "max_steps": 3, "learning_rate": 0.01}}
ANSWERS = {**QUICKLY, "domains.*.source": "uneven.jsonl", "data.dedupe.near": False}
FORMS = {**QUICKLY, "evaluate": {"resamples": 200, **QUICK, "drift": True, "metrics": ["loss"]}}


def both(part: str, **more: Any) -> Case:
    return Case((True, False), steps, TEXTS, {"train.max_steps": 2, **more})


def template(place: str) -> dict[str, Case]:
    """A template's fields, of the recipe or of a domain."""
    messages = {**FROM_LABEL, f"{place}.messages": TURNS}
    return {
        f"{place}.prompt": Case(
            ("{text} :", "Say: {text}"), rows, TEXTS, {**FROM_LABEL, f"{place}.completion": " {label}"}
        ),
        f"{place}.completion": Case(
            (" {label}", " is {label}"), rows, TEXTS, {**FROM_LABEL, f"{place}.prompt": "{text}"}
        ),
        f"{place}.messages[].role": Case(("user", "system", "assistant"), rows, TEXTS, messages),
        f"{place}.messages[].content": Case(("{text}", "About {text}"), rows, TEXTS, messages),
    }


def columns(place: str, beside: Mapping[str, Any]) -> dict[str, Case]:
    """The columns of a domain or of one of its sources."""
    tagged = json.loads(json.dumps(beside).replace("wide.jsonl", "tagged.jsonl"))
    return {
        f"{place}.text": Case(("body", "title"), rows, beside={**beside, f"{place}.label": "kind"}),
        f"{place}.label": Case(("kind", "mood"), rows, beside={**beside, f"{place}.text": "body"}),
        f"{place}.prompt": Case(("body", "title"), rows, TEXTS, {**beside, f"{place}.completion": "kind"}),
        f"{place}.completion": Case(("kind", "mood"), rows, TEXTS, {**beside, f"{place}.prompt": "body"}),
        f"{place}.messages": Case(("talk", "other_talk"), rows, TEXTS, beside),
        f"{place}.tokens": Case(("w1", "w2"), rows, TAGS, {**tagged, f"{place}.tags": "t1"}),
        f"{place}.tags": Case(("t1", "t2"), rows, TAGS, {**tagged, f"{place}.tokens": "w1"}),
    }


def source(place: str, hub: Mapping[str, Any]) -> dict[str, Case]:
    """What names the rows of a domain or of one of its sources."""
    return {
        f"{place}.config": Case((None, "english"), asked_of_the_hub, beside=hub),
        f"{place}.revision": Case((None, "v1"), asked_of_the_hub, beside=hub),
        f"{place}.split": Case((None, "test"), asked_of_the_hub, beside=hub),
    }


FIELDS: dict[str, Case] = {
    "name": Case(("this", "that"), folder),
    "model": Case(("./lm", "./lm-untied"), planned, TEXTS),
    "task": Case((CLASSES, TEXTS), metrics, TEXTS, FROM_LABEL),
    "targets": Case((["cpu-16gb"], ["t4"]), planned),
    "quant": Case(("none", "int8", "nf4", "fp4"), storage, TEXTS, {"dtype": "bfloat16"}),
    "dtype": Case(("float32", "bfloat16", "float16"), storage, TEXTS),
    "processes": Case((1, 2), refusal),
    "memory_margin": Case((0.1, 0.4), planned),
    **template("template"),
    # --- rows
    "domains.*.source": Case(("labelled.jsonl", "other.jsonl"), rows),
    "domains.*.rows": Case((40, 60), rows),
    "domains.*.validation": Case((None, "other.jsonl"), rows),
    "domains.*.test": Case((None, "other.jsonl"), rows),
    "domains.*.labels": Case((["bad", "good"], ["good", "bad"]), labels),
    # Notes, which the card shows.
    "domains.*.language": Case((None, "en", "de"), card),
    "domains.*.license": Case(("mit", "apache-2.0"), card),
    **source("domains.*", HUB),
    **columns("domains.*.columns", WIDE),
    **template("domains.*.template"),
    "domains.*.sources[].source": Case(("labelled.jsonl", "overlapping.jsonl"), rows, beside=SEVERAL),
    "domains.*.sources[].rows": Case((40, 60), rows, beside=SEVERAL),
    "domains.*.sources[].weight": Case((1.0, 0.5), rows, beside=SEVERAL),
    **source("domains.*.sources[]", {"domains.*": {"sources": [{"source": "someone/something"}]}}),
    **columns("domains.*.sources[].columns", {"domains.*": {"sources": [{"source": "wide.jsonl"}]}}),
    "data.train_rows": Case((None, 20), rows),
    "data.validation": Case((8, 0.3), rows),
    "data.test": Case((8, 0.3), rows),
    "data.seed": Case((1, 2), rows),
    "data.max_length": Case((16, 64), losses, TEXTS),
    "data.too_long": Case(
        ("drop", "truncate"), splits, TEXTS, {"domains.*.source": "uneven.jsonl", "data.max_length": 16}
    ),
    "data.conflicts": Case(("drop", "majority", "keep"), rows, beside={**NOISY, "data.dedupe.near": False}),
    "data.packing": Case((True, False), steps, TEXTS),
    "data.streaming": Case((False, True), rows),
    "data.workers": Case((1, 3), workers),
    "data.clean.unicode": Case((True, False), rows, beside=NOISY),
    "data.clean.min_characters": Case((1, 30), rows, beside=NOISY),
    "data.clean.max_characters": Case((60, 1000), rows, beside=NOISY),
    "data.clean.language": Case((None, "en", "de"), rows, beside=NOISY),
    "data.clean.pii": Case(("off", "redact", "drop"), rows, beside=NOISY),
    "data.dedupe.exact": Case((True, False), rows, beside={**NOISY, "data.dedupe.near": False}),
    "data.dedupe.near": Case((True, False), rows, beside=NOISY),
    "data.dedupe.similarity": Case((0.7, 1.0), rows, beside=NOISY),
    "data.dedupe.across_domains": Case((True, False), rows, beside=TWO),
    **{
        f"data.augment.{name}": Case((0.0, 0.3, 0.6), losses, task)
        for name, task in (("word_dropout", TEXTS), ("word_swap", CLASSES), ("typos", CLASSES), ("case", TEXTS))
    },
    "data.canaries.count": Case((0, 3, 6), canaries),
    "data.canaries.repeats": Case(([1], [2, 4]), canaries, beside={"data.canaries.count": 4}),
    # --- training
    "adapter.method": Case(("lora", "dora", "head"), steps),
    "adapter.rank": Case((2, 4), steps, TEXTS),
    "adapter.alpha": Case((4.0, 16.0), losses, TEXTS),
    "adapter.dropout": Case((0.0, 0.3), losses, TEXTS),
    "adapter.modules": Case((["q_proj"], ["v_proj", "o_proj"]), steps, TEXTS),
    "adapter.layers": Case((1, 2), steps, TEXTS),
    "train.objective": Case(("supervised", "scaled"), with_scaled),
    "train.objective_options": Case(({}, {"factor": 9.0}), with_scaled, beside={"train.objective": "scaled"}),
    "train.epochs": Case((1.0, 1.5), losses),
    "train.max_steps": Case((2, 3), losses),
    "train.learning_rate": Case((1e-3, 2e-3), losses),
    "train.schedule": Case(("linear", "cosine", "constant"), losses),
    "train.warmup_ratio": Case((0.0, 0.5), losses),
    "train.batch_rows": Case((4, 8), losses),
    "train.micro_batch_rows": Case((2, 8), steps),
    "train.weight_decay": Case((0.0, 0.5), losses),
    "train.max_grad_norm": Case((0.01, 10.0), losses),
    "train.evaluate_every_steps": Case((1, 3), losses),
    "train.checkpoint_every_steps": Case((1, 100), steps),
    "train.patience": Case((None, 1), losses, beside={"train.learning_rate": 1.0, "train.evaluate_every_steps": 1}),
    "train.seed": Case((1, 2), losses),
    "train.optimizer": Case(("adamw", "adamw-8bit", "paged-adamw-8bit"), steps, TEXTS),
    "train.checkpointing": Case((False, True), steps, TEXTS),
    "train.resident_layers": Case((0, 1, 3), unpacked, TEXTS, {"quant": "nf4", "dtype": "bfloat16"}),
    "train.together": Case((True, False), planned, TEXTS, {"domains.two": {"source": "uneven.jsonl"}}),
    "train.trackers": Case(([], ["tensorboard"]), trackers),
    **{f"train.fast.{part}": both(part) for part in FAST_PARTS},
    "train.fast.bfloat16": Case((True, False), planned, TEXTS, {"targets": ["cpu-amx-64gb"], "dtype": "float32"}),
    "train.fast.compile": Case((True, False), fused, TEXTS),
    "train.fast.frozen_cache": Case((True, False), steps, TEXTS, {"adapter.layers": 1}),
    # --- evaluation
    "evaluate.metrics": Case((["accuracy"], ["loss", "accuracy"]), evaluation, beside=QUICKLY),
    "evaluate.resamples": Case((200, 300), evaluation, beside=QUICKLY),
    "evaluate.confidence": Case((0.9, 0.95), evaluation, beside=QUICKLY),
    "evaluate.batch_rows": Case((4, 8), scored_at_once, beside=QUICKLY),
    "evaluate.gates": Case(({}, {"accuracy": 0.99}), evaluation, beside=QUICKLY),
    "evaluate.generate_rows": Case((0, 2, 4), evaluation, TEXTS, {**ANSWERS, "evaluate.metrics": ["loss", "chrf"]}),
    "evaluate.general_text": Case((False, True), evaluation, TEXTS, ANSWERS),
    "evaluate.transfer": Case((False, True), evaluation, beside={**TWO, **QUICKLY}),
    "evaluate.security": Case((False, True), evaluation, beside=QUICKLY),
    "evaluate.drift": Case((False, True), evaluation, beside=QUICKLY),
    "evaluate.drift_limits.kl_nats": Case((0.0, 9.0), evaluation, beside=FORMS),
    "evaluate.drift_limits.points": Case((0.0, 99.0), evaluation, beside=FORMS),
    "evaluate.harness": Case(([], ["nothing-of-that-name"]), refusal, TEXTS, ANSWERS),
}


def test_the_table_has_every_field() -> None:
    """A new field says here what depends on it."""
    assert FIELDS.keys() == ALL.keys()
    # Which base an earlier stage made is decided, not asked for.
    assert {name for name in dict(fields_of(Lock)) if not name.startswith("base.")} == ALL.keys()


@pytest.mark.parametrize("place", [place for place in FIELDS if place != "train.objective_options"])
def test_all_that_can_be_said_in_a_few_words_is_tried(place: str) -> None:
    branches = set(members(ALL[place]))
    words = {word for each in branches if get_origin(each) is Literal for word in get_args(each)} - {AUTO}
    words |= {True, False} if bool in branches else set()
    values = FIELDS[place].values
    assert len(values) > 1
    assert words <= {each for each in values if isinstance(each, (str, bool))}


@pytest.fixture(scope="module")
def bed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    found = tmp_path_factory.mktemp("bed")
    for model in ("lm", "lm-untied", "encoder"):
        (found / model).symlink_to(models / model)
    noise = labelled(40, seed=7)
    twin = noise[0]["text"] + " once"
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter und die Stadt"
    english = "This is a completely ordinary English sentence about the weather and the city"
    sources: dict[str, list[dict[str, Any]]] = {
        "labelled": labelled(60),
        "other": labelled(30, seed=1),
        "overlapping": [*labelled(20), *labelled(40, seed=2)],
        "pairs": pairs(60),
        "uneven": uneven(60),
        "wide": [
            {
                "body": row["text"],
                "title": f"about {row['text']}",
                "kind": row["label"],
                "mood": f"quite {row['label']}",
                "talk": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}],
                "other_talk": [
                    {"role": "user", "content": f"about {row['text']}"},
                    {"role": "assistant", "content": row["text"]},
                ],
            }
            for row in labelled(60)
        ],
        "tagged": [
            {"w1": words, "w2": words[::-1], "t1": ["A", *"B" * (len(words) - 1)], "t2": ["B", *"A" * (len(words) - 1)]}
            for words in (row["text"].split() for row in labelled(60))
        ],
        "noisy": [
            *noise,
            {"text": "fine", "label": "good"},
            {"text": noise[0]["text"], "label": "bad"},
            {"text": twin, "label": "bad"},
            *({"text": "the very same text of two kinds", "label": label} for label in ("good", "good", "bad")),
            {"text": "cafÃ© and naÃ¯ve, as a wrong encoding leaves them", "label": "good"},
            {"text": "write to someone@example.org about this lovely film", "label": "good"},
            {"text": german, "label": "good"},
            {"text": english, "label": "good"},
        ],
    }
    for name, lines in sources.items():
        write_rows(found / f"{name}.jsonl", lines)
    return Bed(found)


SLOW = ("general_text", "generate_rows", "transfer", "security", "drift", "harness", "batch_rows")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(
            place, marks=pytest.mark.slow if place.startswith(tuple(f"evaluate.{name}" for name in SLOW)) else ()
        )
        for place in FIELDS
    ],
)
def test_every_value_of_a_field_shows(bed: Bed, place: str) -> None:
    case = FIELDS[place]
    seen = [case.look(bed, case.recipe(place, value)) for value in case.values]
    for number, one in enumerate(seen):
        assert one not in seen[:number], f"{place}: {case.values[number]} is as another value"
