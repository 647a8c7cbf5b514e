"""Configurations of axolotl: `axolotl train FILE`."""

from __future__ import annotations

from typing import Any

from hfadapt.converters import Converter, Lacking, Needless, Refused, Rule, Said, To
from hfadapt.converters._common import (
    ATTENTION,
    LORA,
    PLACED,
    PLANNED,
    PRINTED,
    PROCESSES,
    SCORED,
    TEMPLATE,
    TRAINING,
    VALIDATED,
    above_zero,
    adapter,
    asked,
    batch,
    bits,
    domain,
    everything,
    length_of_training,
    number,
    only,
    optimizer,
    schedule,
    switch,
    when_on,
    yes,
)

BY_NAME = Needless("columns of this form are recognised by their names")
MODEL = Needless("read from the model itself")
VARIANTS = {"peft_use_dora": "dora", "peft_use_rslora": "rslora"}
BUILDERS = ("json", "csv", "parquet", "arrow", "text")
DPO = ("dpo",)

FIELDS: dict[str, Rule] = {
    **TRAINING,
    **LORA,
    "lora_fan_in_fan_out": MODEL,
    "lora_target_linear": To("adapter.modules", when_on("auto")),
    "lora_model_dir": Lacking("training starts from a new adapter"),
    "sequence_len": To("data.max_length"),
    "sample_packing": To("data.packing", switch),
    "eval_sample_packing": SCORED,
    "pad_to_sequence_len": asked(when_on(Needless("rows are packed, not padded"))),
    "val_set_size": To("data.validation", above_zero("hfadapt always keeps validation rows, by default a tenth")),
    "lr_scheduler": To("train.schedule", schedule),
    "optimizer": To("train.optimizer", optimizer),
    "train_on_inputs": asked(when_on(Lacking("prompts are never learned"), "answers alone are learned")),
    "excess_length_strategy": To(
        "data.too_long", lambda value: value if value in ("drop", "truncate") else Lacking("drop or truncate")
    ),
    "rl_beta": To("train.objective_options.beta", number),
    "dpo_beta": To("train.objective_options.beta", number),
    "rpo_alpha": To("train.objective_options.nll", number),
    "dataset_exact_deduplication": To("data.dedupe.exact", switch),
    "curriculum_sampling": asked(when_on(Lacking("rows come in a new order in each epoch"))),
    "dataset_prepared_path": PLACED,
    "dataset_processes": PROCESSES,
    "strict": PLANNED,
    "eval_table_size": Needless("the report shows the surest errors"),
    "eval_max_new_tokens": SCORED,
    "wandb_project": To("train.trackers", lambda _: ["wandb"]),
    "use_tensorboard": To("train.trackers", when_on(["tensorboard"])),
    "use_mlflow": To("train.trackers", when_on(["mlflow"])),
    "chat_template": TEMPLATE,
    "plugins": Lacking(),
    **dict.fromkeys(("model_type", "tokenizer_type", "is_llama_derived_model", "is_mistral_derived_model"), MODEL),
    **dict.fromkeys(("flash_attention", "xformers_attention", "sdp_attention", "attn_implementation"), ATTENTION),
    **dict.fromkeys(("evals_per_epoch", "saves_per_epoch", "save_first_step"), VALIDATED),
    **dict.fromkeys(("debug", "loss_watchdog_threshold", "loss_watchdog_patience"), PRINTED),
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), Needless("`train.fast` has such kernels")),
}

TOGETHER = frozenset(
    {
        *("base_model", "revision_of_model", "adapter", "load_in_4bit", "load_in_8bit", "rl", "datasets"),
        *("pretraining_dataset", "test_datasets", "micro_batch_size", "gradient_accumulation_steps", "num_epochs"),
        *("max_steps", "warmup_ratio", "warmup_steps", *VARIANTS),
    }
)


def settle(said: Said) -> None:
    """Model, task, adapter, bits, data and the length of training."""
    revision = said.get("revision_of_model")
    model = said.near(str(said.get("base_model", "")))
    said.take(["base_model", "revision_of_model"], "model", f"{model}@{revision}" if revision else model)
    rl = said.get("rl")
    if rl is not None and rl not in DPO:
        raise Refused(f"rl: {rl}")
    for key in ("reward_model", "process_reward_model"):
        if yes(said.get(key, False)):
            raise Refused(f"{key}: true")
    said.take("rl", "task", "causal-lm" if rl is None else "preference")
    if said.has("adapter"):
        adapter(said, "lora", ["adapter"], VARIANTS)
    else:
        everything(said, "full", ["adapter"], "without `adapter` all weights are trained")
    bits(said)
    batch(said, "micro_batch_size", 1)
    length_of_training(said, "num_epochs")
    _data(said, rl is not None)


def _data(said: Said, pairs: bool) -> None:
    """All data sets are one domain: they train one adapter."""
    key = "datasets" if said.has("datasets") else "pretraining_dataset"
    if key != "datasets":
        said.take([], "data.streaming", True)
        if isinstance(said.get(key), str):
            domain(said, [key], [{"source": said.near(said.get(key))}])
            return
    if not said.has(key):
        raise Refused("no datasets")
    names, sources, templates = said.entries(key), [], []
    used: list[str] = []
    for name in names:
        source, template, keys = _entry(said, name, pairs)
        sources.append(source)
        templates.append(template)
        used += keys
    template = templates[0] if templates[0] and all(each == templates[0] for each in templates) else None
    if template is None and any(templates):
        raise Refused("data sets with different templates")
    validation, keys = _validation(said)
    domain(said, used + keys, sources, template=template, validation=validation)


def _entry(said: Said, name: str, pairs: bool) -> tuple[dict[str, Any], dict[str, str] | None, list[str]]:
    """One data set: its source, its template where it describes one, and the fields that were read."""
    part = lambda key: f"{name}.{key}"  # noqa: E731
    path, files = str(said.get(part("path"), "")), said.get(part("data_files"))
    if files and (path in BUILDERS or len(files) == 1):
        path = files if isinstance(files, str) else files[0]
    used = [part("path"), *([part("data_files")] if files and path in files else [])]
    found: dict[str, Any] = {"source": said.near(path)}
    for theirs, ours in (("name", "config"), ("split", "split"), ("revision", "revision")):
        if said.has(part(theirs)):
            found[ours] = said.get(part(theirs))
            used.append(part(theirs))
    kind = said.get(part("type"), "")
    template = None
    if isinstance(kind, dict):
        said.open(part("type"))
        template, keys = _described(said, part("type"))
        used += keys
    elif str(kind).partition(".")[0] in ("completion", "pretrain"):
        used.append(part("type"))
        column = part("field") if said.has(part("field")) else part("text_column")
        used.append(column)
        found["columns"] = {"text": said.get(column, "text")}
    else:
        used.append(part("type"))
        columns = {
            ours: said.get(part(theirs))
            for theirs, ours in (
                ("field_messages", "prompt" if pairs else "messages"),
                *(("field_chosen", "chosen"), ("field_rejected", "rejected")),
            )
            if said.has(part(theirs))
        }
        used += [part(key) for key in ("field_messages", "field_chosen", "field_rejected")]
        if columns:
            found["columns"] = columns
    _as_usual(said, name)
    return found, template, used


def _described(said: Said, name: str) -> tuple[dict[str, str], list[str]]:
    """A template of a data set's own: what its columns are called, and how they are put together."""
    get = lambda key, default: str(said.get(f"{name}.{key}", default))  # noqa: E731
    system, text = get("system_prompt", ""), get("format", "{instruction} {input}")
    columns = {"instruction": get("field_instruction", "instruction"), "input": get("field_input", "input")}
    for word, column in columns.items():
        text = text.replace(f"{{{word}}}", f"{{{column}}}")
    prompt = f"{system}\n\n{text}" if system else text
    keys = ("system_prompt", "format", "field_instruction", "field_input", "field_output")
    template = {"prompt": prompt, "completion": f"{{{get('field_output', 'output')}}}"}
    return template, [f"{name}.{key}" for key in keys]


def _as_usual(said: Said, name: str) -> None:
    """Fields of a data set that only repeat what is usual."""
    usual: dict[str, tuple[tuple[Any, ...], str]] = {
        "message_field_role": (("role", "from"), ""),
        "message_field_content": (("content", "value"), ""),
        "message_property_mappings": (
            ({"role": "role", "content": "content"}, {"role": "from", "content": "value"}),
            "",
        ),
        "roles_to_train": ((["assistant"], ["gpt", "assistant"]), "the assistant's turns are learned"),
        "train_on_eos": (("turn", "all"), "only `turn`: the end of each learned turn"),
        "ds_type": (BUILDERS, ""),
        "chat_template": ((said.get(f"{name}.chat_template"),), ""),
        "roles": ((said.get(f"{name}.roles"),), "")
        if _own_roles(said.get(f"{name}.roles"))
        else ((), "rename the roles"),
    }
    for key, (values, why) in usual.items():
        if said.has(f"{name}.{key}"):
            said.take(f"{name}.{key}", "", only(values, BY_NAME.why, why)(said.get(f"{name}.{key}")))


def _own_roles(roles: Any) -> bool:
    """Whether roles are called as everywhere."""
    usual = {
        "system": {"system"},
        "user": {"user", "human"},
        "assistant": {"assistant", "gpt", "model"},
        "tool": {"tool"},
    }
    return isinstance(roles, dict) and all(set(names) <= usual.get(role, set()) for role, names in roles.items())


def _validation(said: Said) -> tuple[str | None, list[str]]:
    """Given validation rows, a split of the same data set or another source, and the fields that name them."""
    if len(said.get("test_datasets", ())) != 1:
        return None, []
    (name,) = said.entries("test_datasets")
    path, split = said.get(f"{name}.path"), said.get(f"{name}.split")
    said.end(f"{name}.type", Needless("read as the training rows"))
    if split and path == said.get("datasets[0].path"):
        return str(split), [f"{name}.path", f"{name}.split"]
    return said.near(str(path)), [f"{name}.path"]


KIND = Converter("axolotl", "axolotl", FIELDS, TOGETHER, settle)
