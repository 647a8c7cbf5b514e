"""Configurations of TRL's command line, and of the alignment handbook: `trl sft --config FILE`, `trl dpo …`."""

from __future__ import annotations

from typing import Any

from hfadapt.converters import Converter, Lacking, Needless, Refused, Rule, Said, To
from hfadapt.converters._common import (
    ATTENTION,
    LORA,
    TEMPLATE,
    TRAINING,
    adapter,
    asked,
    batch,
    bits,
    domain,
    dtype,
    everything,
    length_of_training,
    number,
    only,
    optimizer,
    schedule,
    switch,
    trackers,
    when_on,
    yes,
)

VARIANTS = {"use_dora": "dora", "use_rslora": "rslora"}
BUILDERS = ("json", "csv", "parquet", "arrow", "text")
PREFERENCE_FIELDS = ("beta", "precompute_ref_log_probs", "max_prompt_length", "rpo_alpha", "ref_model_mixup_alpha")
"""Those that only `trl dpo` reads: the file does not name its command."""
OTHER_COMMANDS = {
    "reward_funcs": "trl grpo or rloo",
    "num_generations": "trl grpo or rloo",
    "desirable_weight": "trl kto",
    "center_rewards_coefficient": "trl reward",
}
SPLITS = ("train", "test")
ALL_ANSWERS = Needless("completions and the assistant's turns alone are learned")
ENTRY = {
    "path": "source",
    "id": "source",
    "name": "config",
    "config": "config",
    "split": "split",
    "fraction": "weight",
    "weight": "weight",
}
"""Fields of a data set of a mixture, in TRL and in the handbook."""

FIELDS: dict[str, Rule] = {
    **TRAINING,
    **LORA,
    "dtype": To("dtype", dtype),
    "lora_task_type": Needless("settled by the task"),
    "bnb_4bit_quant_storage": Needless("settled by hfadapt"),
    "use_bnb_nested_quant": asked(when_on(Lacking("the constants of 4 bits are not quantised again"))),
    "attn_implementation": ATTENTION,
    "max_length": To("data.max_length"),
    "max_seq_length": To("data.max_length"),
    "max_prompt_length": Lacking("`data.max_length` counts prompt and answer"),
    "packing": To("data.packing", switch),
    "packing_strategy": Needless("rows are packed whole, with attention inside each"),
    "padding_free": Needless("rows are packed, not padded"),
    "eval_packing": Needless("settled by hfadapt"),
    "lr_scheduler_type": To("train.schedule", schedule),
    "optim": To("train.optimizer", optimizer),
    "beta": To("train.objective_options.beta", number),
    "rpo_alpha": To("train.objective_options.nll", number),
    "precompute_ref_log_probs": Needless("what the reference says is always worked out once, before step 1"),
    "dataset_streaming": To("data.streaming", switch),
    "test_split_size": To("data.validation", number),
    "completion_only_loss": asked(lambda value: ALL_ANSWERS if yes(value) else Lacking("prompts are never learned")),
    "assistant_only_loss": asked(lambda value: ALL_ANSWERS if yes(value) else Lacking("answers alone are learned")),
    "truncation_mode": asked(only(("keep_start",), "rows are cut at their end")),
    "chat_template": TEMPLATE,
    "chat_template_path": TEMPLATE,
    "project": Needless("curves have the name of the recipe"),
    "report_to": To("train.trackers", trackers),
}

TOGETHER = frozenset(
    {
        *("model_name_or_path", "model_revision", "use_peft", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"),
        *("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_text_field"),
        *(
            "datasets",
            "dataset_mixture",
            "dataset_mixer",
            "dataset_splits",
            "num_train_epochs",
            "max_steps",
            "warmup_ratio",
            "warmup_steps",
            "loss_type",
        ),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes", *VARIANTS, *OTHER_COMMANDS),
    }
)


def settle(said: Said) -> None:
    """Model, task, adapter, bits, data and the length of training."""
    revision, model = said.get("model_revision"), said.near(str(said.get("model_name_or_path", "")))
    said.take(["model_name_or_path", "model_revision"], "model", f"{model}@{revision}" if revision else model)
    _task(said)
    if yes(said.get("use_peft", False)):
        adapter(said, "lora", ["use_peft"], VARIANTS)
    else:
        everything(said, "full", ["use_peft"], "without `use_peft` all weights are trained")
    bits(said)
    if isinstance(count := number(said.get("num_processes", 1)), int) and said.has("num_processes"):
        said.take("num_processes", "processes", count)
    batch(said, "per_device_train_batch_size", 8, "num_processes")
    length_of_training(said, "num_train_epochs")
    if said.has("dataset_mixture"):
        said.open("dataset_mixture")
    mixture = next((key for key in ("datasets", "dataset_mixture.datasets") if said.has(key)), None)
    if mixture:
        _mixture(said, mixture)
    elif said.has("dataset_mixer"):
        _mixer(said)
    else:
        _one(said)


def _task(said: Said) -> None:
    """Which of TRL's commands the file is for, by fields that only one of them reads."""
    for key, command in OTHER_COMMANDS.items():
        if said.has(key):
            raise Refused(f"{key}, a field of {command}")
    pairs = any(said.has(key) for key in PREFERENCE_FIELDS)
    said.take([], "task", "preference" if pairs else "causal-lm")
    usual = ("sigmoid", ["sigmoid"]) if pairs else ("nll", "chunked_nll")
    loss = said.get("loss_type", usual[0])
    if loss not in usual:
        raise Refused(f"loss_type: {loss}")
    said.end("loss_type", Needless("the loss of the task"))


def _one(said: Said) -> None:
    """The data set of `dataset_name`."""
    if not said.has("dataset_name"):
        raise Refused("no dataset_name")
    source: dict[str, Any] = {"source": said.near(str(said.get("dataset_name")))}
    for theirs, ours in (("dataset_config", "config"), ("dataset_train_split", "split")):
        if said.has(theirs):
            source[ours] = said.get(theirs)
    keys = ["dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"]
    if said.has("dataset_text_field"):
        source["columns"] = {"text": said.get("dataset_text_field")}
        keys.append("dataset_text_field")
    domain(said, keys, [source], validation=said.get("dataset_test_split"))


def _mixture(said: Said, key: str) -> None:
    """Several data sets, which train one adapter."""
    used, sources = [], []
    for name in said.entries(key):
        found: dict[str, Any] = {}
        for theirs, ours in ENTRY.items():
            field = f"{name}.{theirs}"
            if said.has(field):
                found[ours] = said.get(field)
                used.append(field)
        files = said.get(f"{name}.data_files")
        if files and found.get("source") in BUILDERS:
            found["source"] = files if isinstance(files, str) else files[0]
            used.append(f"{name}.data_files")
        found["source"] = said.near(str(found.get("source", "")))
        said.end(f"{name}.columns", Needless("columns are recognised by their names"))
        if found.get("weight") == 1.0:
            del found["weight"]
        sources.append(found)
    if len(sources) == 1:
        sources[0].pop("weight", None)
    domain(said, used, sources)
    for key in ("dataset_mixture.test_split_size", "dataset_mixture.seed"):
        place = {"test_split_size": "data.validation", "seed": "data.seed"}[key.rpartition(".")[2]]
        if said.has(key):
            said.take(key, place, number(said.get(key)))
    ignored = [each for each in ("dataset_name", "dataset_config", "dataset_train_split") if said.has(each)]
    said.end(ignored, Needless("a mixture counts"))


def _mixer(said: Said) -> None:
    """Data sets by name with their shares, and the splits that all of them have, as older handbooks say it."""
    train, test = (
        [str(each) for each in said.get("dataset_splits", ["train"]) if word in str(each)] for word in SPLITS
    )
    sources = [
        {
            "source": said.near(name),
            **({"split": train[0]} if train else {}),
            **({"weight": share} if share != 1 else {}),
        }
        for name, share in said.get("dataset_mixer").items()
    ]
    domain(said, ["dataset_mixer", "dataset_splits"], sources, validation=test[0] if test else None)


KIND = Converter("trl", "TRL", FIELDS, TOGETHER, settle)
