"""All fields of a recipe, and two or more values of each with what these must make differ."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from unittest import mock

from looks import (
    BETTER,
    CLASSES,
    PAIRS,
    PICTURES,
    SOUNDS,
    TAGS,
    TEXTS,
    Bed,
    asked_of_the_hub,
    calibrated,
    canaries,
    card,
    compared_without,
    evaluation,
    exported,
    exports,
    folder,
    fused,
    gathered,
    heard,
    hub_texts_of_students,
    judged,
    labels,
    losses,
    metrics,
    planned,
    pretrained,
    refusal,
    rows,
    scored_at_once,
    seen,
    splits,
    stages_of,
    steps,
    steps_in_time,
    storage,
    students,
    texts_of_students,
    texts_of_the_hub,
    trackers,
    tried,
    unpacked,
    workers,
)
from pydantic import BaseModel
from tiny import recipe_fields

from hfadapt.core import registry
from hfadapt.core.spec import Spec
from hfadapt.objectives import Objective
from hfadapt.recipe.fast import FAST_PARTS
from hfadapt.recipe.schema import Recipe

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
    """A copy of a recipe's fields with one set: `*` is the domain `one` or the phone, `[]` the first of a list."""
    found = copy.deepcopy(dict(fields))
    place = place.replace("budgets.*", "budgets.android-8gb")
    keys: list[Any] = place.replace("[]", ".0").replace("*", "one").split(".")
    keys = [int(key) if key == "0" else key for key in keys]
    inner: Any = found
    for key in keys[:-1]:
        if isinstance(inner, dict):
            inner.setdefault(key, {})
        inner = inner[key]
    inner[keys[-1]] = value
    return found


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
WESTERN, ENCODINGS = "western.jsonl", ("windows-1252", "windows-1251")
NOISY = {"domains.*.source": "noisy.jsonl"}
TWO = {"domains": {"one": {"source": "labelled.jsonl"}, "two": {"source": "overlapping.jsonl"}}}
ON_PHONE = {"targets": ["android-8gb"]}
SMALL_BROWSER = {
    "student": {"layers": "auto", "ffn": "auto", "int8": False},
    "targets": [{"android-6gb": {"bytes": "390KB"}}],
    "export": {"storage": "float32"},
}
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


def body(place: str) -> dict[str, str]:
    return {f"{place}.text": "body", f"{place}.label": "mood"}


def columns(place: str, beside: Mapping[str, Any]) -> dict[str, Case]:
    """The columns of a domain or of one of its sources."""
    names = ("tagged.jsonl", "heard.jsonl", "seen.jsonl")
    tagged, heard_rows, seen_rows = (json.loads(json.dumps(beside).replace("wide.jsonl", name)) for name in names)
    return {
        f"{place}.text": Case(("body", "title"), rows, beside={**beside, f"{place}.label": "kind"}),
        f"{place}.label": Case(("kind", "mood"), rows, beside={**beside, f"{place}.text": "body"}),
        f"{place}.prompt": Case(("body", "title"), rows, TEXTS, {**beside, f"{place}.completion": "kind"}),
        f"{place}.completion": Case(("kind", "mood"), rows, TEXTS, {**beside, f"{place}.prompt": "body"}),
        f"{place}.messages": Case(("talk", "other_talk"), rows, TEXTS, beside),
        f"{place}.system": Case((None, "body", "title"), rows, TEXTS, {**beside, f"{place}.messages": "talk"}),
        f"{place}.tools": Case((None, "does"), rows, TEXTS, {**beside, f"{place}.messages": "talk"}),
        # What has such is left out.
        f"{place}.media": Case((None, "shows"), rows, TEXTS, {**beside, f"{place}.messages": "talk"}),
        f"{place}.instruction_input": Case(
            (None, "title"), rows, TEXTS, {**beside, f"{place}.prompt": "body", f"{place}.completion": "kind"}
        ),
        f"{place}.group": Case((None, "team"), rows, beside={**beside, **body(place)}),
        f"{place}.group_pattern": Case(
            (None, "^(.)", "(.)$"), rows, beside={**beside, **body(place), f"{place}.group": "team"}
        ),
        f"{place}.split": Case((None, "part"), rows, beside={**beside, **body(place)}),
        f"{place}.label_pattern": Case((None, "quite (.)", "(..)$"), rows, beside={**beside, **body(place)}),
        f"{place}.classes": Case(
            (["is_good", "is_bad"], ["even", "odd"]), rows, beside={**beside, f"{place}.text": "body"}
        ),
        f"{place}.audio": Case(("first", "second"), rows, SOUNDS, {**heard_rows, f"{place}.label": "label"}),
        f"{place}.image": Case(("first", "second"), rows, PICTURES, {**seen_rows, f"{place}.label": "label"}),
        f"{place}.tokens": Case(("w1", "w2"), rows, TAGS, {**tagged, f"{place}.tags": "t1"}),
        f"{place}.tags": Case(("t1", "t2"), rows, TAGS, {**tagged, f"{place}.tokens": "w1"}),
        f"{place}.anchor": Case(("body", "title"), rows, PAIRS, {**beside, f"{place}.positive": "kind"}),
        f"{place}.positive": Case(("kind", "mood"), rows, PAIRS, {**beside, f"{place}.anchor": "body"}),
        f"{place}.chosen": Case(
            ("title", "mood"), rows, BETTER, {**beside, f"{place}.prompt": "body", f"{place}.rejected": "kind"}
        ),
        f"{place}.rejected": Case(
            ("kind", "mood"), rows, BETTER, {**beside, f"{place}.prompt": "body", f"{place}.chosen": "title"}
        ),
        f"{place}.negatives": Case(
            ("kind", "mood"), rows, PAIRS, {**beside, f"{place}.anchor": "body", f"{place}.positive": "title"}
        ),
    }


def source(place: str, hub: Mapping[str, Any]) -> dict[str, Case]:
    """What names the rows of a domain or of one of its sources."""
    western = json.loads(json.dumps(hub).replace("someone/something", WESTERN))
    return {
        f"{place}.encoding": Case(ENCODINGS, rows, beside=western),
        f"{place}.config": Case((None, "english"), asked_of_the_hub, beside=hub),
        f"{place}.revision": Case((None, "v1"), asked_of_the_hub, beside=hub),
        f"{place}.split": Case((None, "test"), asked_of_the_hub, beside=hub),
    }


def adaptation(place: str) -> dict[str, Case]:
    """An adaptation to texts before the task, of the recipe or of a domain."""
    begun = {place: {"sources": [{"source": "texts.jsonl"}], "max_steps": 3}}
    mixed = {place: {"sources": [{"source": "texts.jsonl"}], "general": [{"source": "other.jsonl"}]}}
    cases = {
        "objective": Case(("tsdae", "simcse"), pretrained, beside=begun),
        "epochs": Case((1.0, 2.0), pretrained, beside={place: {"sources": [{"source": "other.jsonl"}]}}),
        "max_steps": Case((2, 3), pretrained, beside=begun),
        "learning_rate": Case((1e-3, 2e-3), pretrained, beside=begun),
        "batch_rows": Case((4, 8), pretrained, beside=begun),
        "general_share": Case((0.1, 0.4), gathered, beside=mixed),
        "skip": Case((True, False), gathered, beside={"pretrain": {"max_steps": 2}}),
    }
    for part in ("sources", "general"):
        hub = {place: {part: [{"source": "someone/something"}]}}
        cases |= {f"{part}[].{name}": Case((None, "v1"), texts_of_the_hub, beside=hub) for name in HUB_WORDS}
        rest = {each: [{"source": "other.jsonl"}] for each in ("sources", "general")}
        named = {place: {**rest, part: [{"source": "texts.jsonl"}]}}
        cases |= {
            f"{part}[].source": Case(("texts.jsonl", "other.jsonl"), gathered, beside=mixed),
            f"{part}[].encoding": Case(
                ENCODINGS,
                gathered,
                beside={place: {**rest, part: [{"source": WESTERN}]}, f"{place}.general_share": 0.8},
            ),
            f"{part}[].column": Case(("text", "more"), gathered, beside=named),
            f"{part}[].rows": Case((3, 20), gathered, beside={**named, f"{place}.general_share": 0.8}),
        }
    return {f"{place}.{name}": case for name, case in cases.items()}


HUB_WORDS = ("config", "split", "revision")
TEXTS_TOO, HUB_TEXTS = (
    {"student": {"layers": 1, "texts": [{"source": source}]}} for source in ("texts.jsonl", "someone/something")
)
FIELDS: dict[str, Case] = {
    "name": Case(("this", "that"), folder),
    "model": Case(("./lm", "./lm-untied"), planned, TEXTS),
    "task": Case((CLASSES, TEXTS), metrics, TEXTS, FROM_LABEL),
    "targets": Case((["cpu-16gb"], ["t4"]), planned),
    "budgets.*.bytes": Case((1000, 10**9), exports, TEXTS, ON_PHONE),
    "budgets.*.latency": Case((1e-9, 10.0), exports, TEXTS, ON_PHONE),
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
    "domains.*.no_label": Case(([], ["bad"]), refusal),
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
    "data.allow": Case(([], ["identifiers"]), refusal, beside={"domains.*.source": "numbered.jsonl", **QUICKLY}),
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
        for name, task in (
            *(("word_dropout", TEXTS), ("word_swap", CLASSES), ("typos", CLASSES)),
            *(("punctuation", CLASSES), ("case", TEXTS)),
        )
    },
    **{
        f"data.augment.{name}": Case((0.0, 0.5, 1.0), heard, SOUNDS, {"domains.*.source": "sounds"})
        for name in ("noise", "gain", "shift", "speed", "spec_augment")
    },
    **{
        f"data.augment.{name}": Case((0.0, 0.5, 1.0), seen, PICTURES, {"domains.*.source": "pictures"})
        for name in ("trivial", "crop", "flip", "mixup", "cutmix")
    },
    "data.augment.auto": Case((False, True), stages_of),
    "data.canaries.count": Case((0, 3, 6), canaries),
    "data.canaries.repeats": Case(([1], [2, 4]), canaries, beside={"data.canaries.count": 4}),
    # --- texts without labels
    **adaptation("pretrain"),
    **adaptation("domains.*.pretrain"),
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
    "train.time": Case(("0.001s", "1h"), steps_in_time, beside={"train.max_steps": None}),
    "train.learning_rate": Case((1e-3, 2e-3, "find"), tried, beside={"train.max_steps": 40}),
    "train.schedule": Case(("linear", "cosine", "constant"), losses),
    "train.warmup_ratio": Case((0.0, 0.5), losses),
    "train.hold_ratio": Case((0.0, 0.75), losses),
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
    "train.shard": Case((True, False), planned, TEXTS, {"processes": 2}),
    "train.trackers": Case(([], ["tensorboard"]), trackers),
    **{f"train.fast.{part}": both(part) for part in FAST_PARTS},
    # Of language models no head reads the first token.
    "train.fast.first_token": Case((True, False), steps, beside={"train.max_steps": 2}),
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
    "evaluate.without_pretrain": Case(
        (False, True), compared_without, beside={**QUICKLY, "pretrain": {"max_steps": 2}}
    ),
    # --- export
    "export.format": Case(("merged", "adapter"), exported, beside=QUICKLY),
    "export.storage": Case(("merged-float32", "merged-bfloat16"), exported, beside=QUICKLY),
    "export.calibration_rows": Case((3, 5), calibrated, beside=QUICKLY),
    "export.limits.points": Case((0.0, 1e6), judged, beside={**QUICKLY, "evaluate.metrics": ["loss"]}),
    "export.limits.kl_nats": Case((0.0, 1e6), judged, beside=QUICKLY),
    "export.limits.agreement": Case((0.0, 1.0), judged, beside=QUICKLY),
    # --- a search
    "search.learning_rate": Case(([1e-3, 1e-2], [1e-3, 2e-3]), tried, beside={"train.max_steps": 20}),
    "search.weight_decay": Case(([0.0, 0.5], [0.0, 0.1]), tried, beside={"train.max_steps": 20}),
    "search.rank": Case(([2, 4], [2, 8]), tried, beside={"train.max_steps": 20}),
    "search.alpha": Case(([4.0, 8.0], [4.0, 64.0]), tried, beside={"train.max_steps": 20}),
    "search.dropout": Case(([0.0, 0.1], [0.0, 0.5]), tried, beside={"train.max_steps": 20}),
    "search.budget": Case(
        (1.5, 3.0), tried, beside={"train.max_steps": 40, "search": {"learning_rate": [1e-3, 1e-2, 2e-2]}}
    ),
    # --- a smaller model
    "student.layers": Case((1, None), students, beside={**QUICKLY, "student": {"ffn": 0.5}}),
    "student.ffn": Case((0.25, 0.5), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "student.vocabulary": Case(("data", 0.9, "all"), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "student.activation": Case(
        ("relu", "relu6", "hardswish", None), students, beside={**QUICKLY, "student": {"layers": 1}}
    ),
    "student.int8": Case((True, False), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "student.base": Case(("./encoder", "./lm"), students, beside=QUICKLY),
    "student.texts[].source": Case(("texts.jsonl", "other.jsonl"), texts_of_students, beside=TEXTS_TOO),
    "student.texts[].encoding": Case(
        ENCODINGS, texts_of_students, beside={"student": {"layers": 1, "texts": [{"source": WESTERN}]}}
    ),
    "student.texts[].column": Case(("text", "more"), texts_of_students, beside=TEXTS_TOO),
    "student.texts[].rows": Case((3, 20), texts_of_students, beside=TEXTS_TOO),
    **{f"student.texts[].{name}": Case((None, "v1"), hub_texts_of_students, beside=HUB_TEXTS) for name in HUB_WORDS},
    "student.on_policy": Case((False, True), students, TEXTS, {**ANSWERS, "student": {"layers": 1}}),
    "student.tries": Case((1, 2), students, beside={**QUICKLY, **SMALL_BROWSER}),
    "student.limit": Case(
        (0.0, 1e6),
        students,
        beside={**QUICKLY, "student": {"layers": 1, "learning_rate": 1.0}, "evaluate.metrics": ["loss"]},
    ),
    "student.weight": Case((0.0, 1.0), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "student.epochs": Case((0.5, 1.0), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "student.learning_rate": Case((1e-4, 1e-2), students, beside={**QUICKLY, "student": {"layers": 1}}),
    "evaluate.harness": Case(([], ["nothing-of-that-name"]), refusal, TEXTS, ANSWERS),
}
