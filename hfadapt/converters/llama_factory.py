"""Configurations of LLaMA-Factory: `llamafactory-cli train FILE`, with the data sets of its `dataset_info.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfadapt.converters import Converter, Lacking, Needless, Refused, Rule, Said, To
from hfadapt.converters._common import (
    ATTENTION,
    LORA,
    PLACED,
    PLANNED,
    PROCESSES,
    TEMPLATE,
    TRAINING,
    above_zero,
    adapter,
    asked,
    batch,
    domain,
    dtype,
    everything,
    length_of_training,
    modules,
    number,
    only,
    optimizer,
    schedule,
    switch,
    when_on,
)

VARIANTS = {"use_dora": "dora", "use_rslora": "rslora", "pissa_init": "pissa"}
TASKS = {"sft": "causal-lm", "pt": "causal-lm", "dpo": "preference"}
BITS = {4: "nf4", 8: "int8"}
INFO = "dataset_info.json"
NO_TEMPLATE = ("empty", "default")

FIELDS: dict[str, Rule] = {
    **TRAINING,
    **LORA,
    "lora_target": To("adapter.modules", modules),
    "additional_target": Lacking("only adapted layers, and a task's head, are trained"),
    "quantization_method": asked(only(("bitsandbytes", "bnb"), "bitsandbytes here too")),
    "double_quantization": Lacking("the constants of 4 bits are not quantised again"),
    "cutoff_len": To("data.max_length"),
    "val_size": To("data.validation", above_zero("hfadapt always keeps validation rows, by default a tenth")),
    "lr_scheduler_type": To("train.schedule", schedule),
    "optim": To("train.optimizer", optimizer),
    "infer_dtype": To("dtype", dtype),
    "pref_beta": To("train.objective_options.beta", number),
    "pref_ftx": To("train.objective_options.nll", number),
    "packing": To("data.packing", switch),
    "neat_packing": To("data.packing", when_on(True)),
    "streaming": To("data.streaming", switch),
    "train_on_prompt": asked(when_on(Lacking("prompts are never learned"), "answers alone are learned")),
    "mask_history": asked(when_on(Lacking("all answers of a chat are learned; `weight: 0` leaves one out"))),
    "flash_attn": ATTENTION,
    "disable_gradient_checkpointing": To("train.checkpointing", when_on(False)),
    "use_llama_pro": asked(when_on(Lacking())),
    "template": TEMPLATE,
    "overwrite_cache": PLACED,
    "tokenized_path": PLACED,
    "cache_dir": PLACED,
    "use_unsloth": Needless("hfadapt has kernels of its own (`train.fast`)"),
    "upcast_layernorm": PLANNED,
    "ray_num_workers": PROCESSES,
    "include_num_input_tokens_seen": Needless("each step's line has its tokens"),
}

TOGETHER = frozenset(
    {
        *("model_name_or_path", "model_revision", "stage", "finetuning_type", "freeze_trainable_layers"),
        *("freeze_trainable_modules", "quantization_bit", "quantization_type", "dataset", "dataset_dir", "max_samples"),
        *("eval_dataset", "pref_loss", "num_train_epochs", "max_steps", "warmup_ratio", "warmup_steps"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", *VARIANTS),
    }
)


def settle(said: Said) -> None:
    """Model, stage, adapter, bits, data and the length of training."""
    revision, model = said.get("model_revision"), said.near(str(said.get("model_name_or_path", "")))
    said.take(["model_name_or_path", "model_revision"], "model", f"{model}@{revision}" if revision else model)
    stage, loss = str(said.get("stage", "sft")), said.get("pref_loss", "sigmoid")
    if stage not in TASKS:
        raise Refused(f"stage: {stage}")
    if loss != "sigmoid":
        raise Refused(f"pref_loss: {loss}")
    said.take(["stage", "pref_loss"], "task", TASKS[stage])
    _adapter(said)
    quantised = number(said.get("quantization_bit"))
    if said.has("quantization_bit"):
        four = {4: said.get("quantization_type", "nf4")}
        said.take(["quantization_bit", "quantization_type"], "quant", {**BITS, **four}.get(quantised, Lacking()))
    batch(said, "per_device_train_batch_size", 8)
    length_of_training(said, "num_train_epochs")
    _data(said, stage)


def _adapter(said: Said) -> None:
    kind = str(said.get("finetuning_type", "lora"))
    if kind == "lora":
        adapter(said, "lora", ["finetuning_type"], VARIANTS)
    elif kind == "freeze":
        said.take([], "adapter.method", "lora")
        said.end("finetuning_type", Lacking("low-rank updates of the same layers stand for it"))
        layers = number(said.get("freeze_trainable_layers", 2))
        last = isinstance(layers, int) and layers > 0
        said.take("freeze_trainable_layers", "adapter.layers", layers if last else Lacking("only the last layers"))
        said.end("freeze_trainable_modules", Needless("`adapter.modules` names the layers that are adapted"))
    elif kind == "full":
        everything(said, "full", ["finetuning_type"], "all weights are trained")
    else:
        raise Refused(f"finetuning_type: {kind}")


def _data(said: Said, stage: str) -> None:
    """The data sets that `dataset` names, as `dataset_info.json` describes them."""
    listed = said.get("dataset", "")
    names = listed if isinstance(listed, list) else [name.strip() for name in str(listed).split(",") if name.strip()]
    if not names:
        raise Refused("no dataset")
    folder, known = _info(said)
    sources: list[dict[str, Any]] = []
    alpaca = []
    for name in names:
        if not isinstance(known.get(name), dict):
            raise Refused(f"dataset: {name}, which {INFO} does not describe")
        source, plain = _source(said, folder, name, known[name], stage)
        if said.has("max_samples"):
            source["rows"] = number(said.get("max_samples"))
        sources.append(source)
        alpaca.append(plain)
    template = None
    first = alpaca[0]
    if stage == "sft" and first and all(alpaca) and said.get("template", NO_TEMPLATE[0]) not in NO_TEMPLATE:
        if any(each != first for each in alpaca):
            raise Refused("data sets with different columns")
        template = {"messages": [{"role": "user", "content": first[0]}, {"role": "assistant", "content": first[1]}]}
        for source in sources:
            source.pop("columns", None)
    domain(said, ["dataset", "dataset_dir", "max_samples"], sources, template=template)
    said.end("eval_dataset", Lacking("`domains.NAME.validation` names a file or split"))


def _info(said: Said) -> tuple[Path, Mapping[str, Any]]:
    """The folder of the data, and what lies in it."""
    place = str(said.get("dataset_dir", "data"))
    for base in (Path.cwd(), said.folder, *said.folder.parents):
        path = base / place / INFO
        if path.is_file():
            return path.parent, json.loads(path.read_text(encoding="utf-8"))
    raise Refused(f"no {Path(place) / INFO}, which says where the data sets lie")


def _source(
    said: Said, folder: Path, name: str, known: Mapping[str, Any], stage: str
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """One data set as a source, and, of rows in Alpaca's form, what is asked and what is answered."""
    key = f"{INFO}:{name}"
    said.open(key, known)
    get = lambda field: said.get(f"{key}.{field}")  # noqa: E731
    if get("file_name"):
        local = folder / str(get("file_name"))
        source: dict[str, Any] = {"source": said.near(str(local.resolve()))}
    elif get("hf_hub_url"):
        source = {"source": str(get("hf_hub_url"))}
    else:
        raise Refused(f"dataset: {name}, which lies neither in a file nor on the Hub")
    for theirs, ours in (("subset", "config"), ("split", "split"), ("num_samples", "rows")):
        if get(theirs):
            source[ours] = get(theirs)
    columns = get("columns") or {}
    chats = get("formatting") == "sharegpt"
    said.end(
        [f"{key}.{field}" for field in ("file_name", "hf_hub_url", "ms_hub_url", "subset", "split", "num_samples")]
        + [f"{key}.{field}" for field in ("formatting", "ranking")],
        Needless("part of `domains`"),
    )
    said.open(f"{key}.columns")
    parts = _parts(stage, chats)
    said.end([f"{key}.columns.{each}" for each in (*parts, "query")], Needless("part of `domains`"))
    if own := {ours: columns[theirs] for theirs, ours in parts.items() if theirs in columns}:
        source["columns"] = own
    if chats or stage != "sft":
        return source, None
    query = columns.get("query", "" if columns else "input")
    prompt = columns.get("prompt", "instruction")
    return source, (f"{{{prompt}}}" + (f"\n{{{query}}}" if query else ""), f"{{{columns.get('response', 'output')}}}")


def _parts(stage: str, chats: bool) -> dict[str, str]:
    """LLaMA-Factory's columns, and what these are called here."""
    if TASKS[stage] != TASKS["sft"]:
        return {"messages" if chats else "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    if stage == "pt":
        return {"prompt": "text"}
    return {"messages": "messages"} if chats else {"prompt": "prompt", "response": "completion"}


KIND = Converter("llama-factory", "LLaMA-Factory", FIELDS, TOGETHER, settle)
